use tch::Device;

use super::*;

fn rows(values: &[f64], columns: i64) -> Tensor {
    Tensor::from_slice(values).reshape([-1, columns])
}

/// Three teachers, three images: the farthest always counts, and the others' numbers are taken in the order of their ids.
#[test]
fn the_farthest_counts_and_the_others_by_their_numbers() {
    let losses = rows(&[3.0, 1.0, 1.0, 2.0, 5.0, 1.0, 1.0, 2.0, 4.0], 3).to_kind(Kind::Float);
    let uniform = rows(&[0.1, 0.9, 0.9, 0.1, 0.1, 0.2], 2);
    let drop = TeacherDrop { uniform: &uniform, mean_kept: mean_kept(&uniform, 0.5) };
    let expected = rows(&[1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0], 3).to_kind(Kind::Float);
    assert_eq!(kept(&losses, &drop, 0.5), expected);
    // Five counts over three images, known without the losses.
    assert!((drop.mean_kept - 5.0 / 3.0).abs() < 1e-12);
    assert_eq!(expected.sum(Kind::Double).double_value(&[]), 5.0);
}

#[test]
fn equal_losses_keep_the_first() {
    let losses = Tensor::ones([2, 4], (Kind::Float, Device::Cpu));
    let uniform = Tensor::zeros([4, 1], (Kind::Double, Device::Cpu));
    let found = kept(&losses, &TeacherDrop { uniform: &uniform, mean_kept: 1.0 }, 0.5);
    assert_eq!(found, rows(&[1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], 4).to_kind(Kind::Float));
}
