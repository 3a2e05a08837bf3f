//! Teacher dropping: for some images, some teachers do not count.
//!
//! UNIC (Sariyildiz et al. 2024, arXiv 2408.05088; `modeling/teacher_dropping.py` of naver/unic): the teacher from which an image's student is
//! farthest always counts, and each other one is dropped with probability `p`. A teacher that is easy to mimic then takes less of the
//! student's capacity. The loss is the mean over all pairs of an image and a teacher that count.

use tch::{Kind, Tensor};

/// The random numbers of a batch, or of a part of one.
#[derive(Debug, Clone, Copy)]
pub struct TeacherDrop<'a> {
    /// `[N, teachers - 1]` f64, uniform in [0, 1): one for each teacher but the farthest, in the order of their ids. A number below `p`
    /// drops its teacher, so how many teachers an image keeps is known before any loss.
    pub uniform: &'a Tensor,
    /// How many teachers an image keeps, as the mean over the whole batch ([`mean_kept`]) also where this is a part of it: the divisor that
    /// makes the parts' mean the whole's.
    pub mean_kept: f64,
}

/// How many teachers an image keeps, on average over the rows of `uniform` `[N, teachers - 1]`: 1 to the number of teachers.
pub fn mean_kept(uniform: &Tensor, p: f64) -> f64 {
    let images = uniform.size()[0] as f64;
    1.0 + uniform.ge(p).sum(Kind::Double).double_value(&[]) / images
}

/// Which teachers count for which image, 1 or 0 as f32: `[teachers, N]` for the weighted losses `[teachers, N]`, which get no gradient from
/// it. Of equal losses the first is the farthest.
pub(crate) fn kept(losses: &Tensor, drop: &TeacherDrop, p: f64) -> Tensor {
    let (teachers, _) = losses.size2().expect("losses are [teachers, N]");
    let farthest = losses.detach().argmax(0, true); // [1, N]
    let teacher = Tensor::arange(teachers, (Kind::Int64, losses.device())).unsqueeze(1); // [teachers, 1]
    let is_farthest = teacher.eq_tensor(&farthest); // [teachers, N]
    let after = teacher.gt_tensor(&farthest).to_kind(Kind::Int64);
    let place = (teacher - after).clamp_max(teachers - 2); // The farthest has no number; its own place is not used.
    let numbers = drop.uniform.to_device(losses.device()).tr().gather(0, &place, false); // [teachers, N]
    numbers.ge(p).logical_or(&is_farthest).to_kind(Kind::Float)
}

#[cfg(test)]
mod tests;
