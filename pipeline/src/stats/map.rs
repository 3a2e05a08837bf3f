//! Maps of a grid in characters.

/// Characters from 0 to the largest value.
const SHADES: &[u8; 10] = b" .:-=+*#%@";

/// Most rows and columns of a map; larger grids are averaged down.
const MAX_SIZE: usize = 32;

/// The values of a square grid as lines of characters between bars, two to a cell: a space for 0, `@` for the largest.
pub(super) fn map(values: &[f64], grid: usize) -> Vec<String> {
    let size = grid.min(MAX_SIZE);
    let range = |cell: usize| cell * grid / size..(cell + 1) * grid / size;
    let mean = |row: usize, column: usize| {
        let cells = range(row).flat_map(|y| range(column).map(move |x| y * grid + x));
        let (sum, n) = cells.fold((0.0, 0.0), |(sum, n), i| (sum + values[i], n + 1.0));
        sum / n
    };
    let pooled: Vec<f64> = (0..size * size).map(|i| mean(i / size, i % size)).collect();
    let largest = pooled.iter().copied().fold(0.0, f64::max);
    let shade = |value: &f64| {
        let last = SHADES.len() - 1;
        let level = if largest > 0.0 { (value / largest * last as f64).ceil() as usize } else { 0 };
        char::from(SHADES[level.min(last)])
    };
    let line = |row: &[f64]| row.iter().flat_map(|v| [shade(v); 2]).collect::<String>();
    pooled.chunks(size).map(|row| format!("|{}|", line(row))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_show_zero_as_nothing_and_the_largest_as_most() {
        assert_eq!(map(&[0.0, 1.0, 0.01, 0.5], 2), ["|  @@|", "|..++|"]);
        assert_eq!(map(&[0.0; 4], 2), ["|    |", "|    |"]);
        let large = map(&vec![1.0; 100 * 100], 100);
        assert_eq!((large.len(), large[0].len()), (MAX_SIZE, 2 * MAX_SIZE + 2));
    }
}
