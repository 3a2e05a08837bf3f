//! Hadamard matrices: entries ±1, rows orthogonal.

/// A Hadamard matrix of order `n`, row-major `[n, n]`, or `None` where neither construction below reaches `n`.
///
/// Sylvester's doubling, from 1 or from an order `q + 1` for a prime `q ≡ 3 (mod 4)` (Paley's first construction). That has every
/// power of two and the widths of published transformers: 192 and 384 and 768 from 12, 1152 from 72, 1280 from 20, 1408 from 44.
pub fn hadamard(n: usize) -> Option<Vec<i8>> {
    // The most doublings last: a small core is quickly made.
    let mut core = n;
    loop {
        if core == 1 {
            return Some(double_to(vec![1], 1, n));
        }
        if core >= 4 && core.is_multiple_of(4) && is_prime(core - 1) {
            return Some(double_to(paley(core - 1), core, n));
        }
        if core == 0 || !core.is_multiple_of(2) {
            return None;
        }
        core /= 2;
    }
}

/// `[[H, H], [H, -H]]`, again and again.
fn double_to(mut matrix: Vec<i8>, mut side: usize, n: usize) -> Vec<i8> {
    while side < n {
        let mut doubled = Vec::with_capacity(4 * side * side);
        for sign in [1, -1] {
            for row in matrix.chunks_exact(side) {
                doubled.extend_from_slice(row);
                doubled.extend(row.iter().map(|v| sign * v));
            }
        }
        matrix = doubled;
        side *= 2;
    }
    matrix
}

/// Paley I for a prime `q ≡ 3 (mod 4)`: `I + S` of order `q + 1`, where `S` is the skew matrix `[[0, 1], [-1, Q]]` and
/// `Q[i][j]` is the quadratic character of `i - j`.
fn paley(q: usize) -> Vec<i8> {
    let mut is_square = vec![false; q];
    (1..q).for_each(|i| is_square[i * i % q] = true);
    let side = q + 1;
    let mut matrix = vec![1i8; side * side];
    for i in 0..q {
        matrix[(i + 1) * side] = -1;
        for j in 0..q {
            let difference = (i + q - j) % q;
            matrix[(i + 1) * side + j + 1] = if difference == 0 || is_square[difference] { 1 } else { -1 };
        }
    }
    matrix
}

fn is_prime(n: usize) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_orthogonal_for_every_width_of_published_transformers() {
        for n in
            [1, 2, 4, 8, 12, 16, 20, 24, 32, 44, 48, 64, 72, 96, 128, 192, 384, 512, 768, 1024, 1152, 1280, 1408, 1536]
        {
            let h = hadamard(n).unwrap_or_else(|| panic!("no matrix of order {n}"));
            assert_eq!(h.len(), n * n);
            assert!(h.iter().all(|v| v.abs() == 1), "order {n}");
            // All pairs where that is quick, else each row against a few others.
            let step = (n / 48).max(1);
            for i in 0..n {
                for j in (i % step..n).step_by(step) {
                    let dot: i64 = (0..n).map(|c| i64::from(h[i * n + c]) * i64::from(h[j * n + c])).sum();
                    assert_eq!(dot, if i == j { n as i64 } else { 0 }, "order {n}, rows {i} and {j}");
                }
            }
        }
    }

    #[test]
    fn other_orders_are_not_made_up() {
        for n in [0, 3, 5, 6, 10, 36 + 1, 1000 + 2] {
            assert_eq!(hadamard(n), None, "order {n}");
        }
    }
}
