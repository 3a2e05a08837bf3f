//! The masks of a batch.

use models::masking::{FocusKind, Masking, focused_noise, masking_of_order, random_masking};
use tch::{Device, Tensor};
use torch_ext::to_device;

use super::batch::MaskInput;
use crate::recipe::{FocusMode, Recipe};

/// The masks of a batch on `device`. Focused masking needs the teacher's attention `cls_attn [N, L]`.
///
/// # Panics
/// If the masks are focused and `cls_attn` is absent, which is a bug in the loader.
pub(crate) fn masking(
    recipe: &Recipe,
    mask: &MaskInput,
    cls_attn: Option<&Tensor>,
    device: Device,
) -> anyhow::Result<Masking> {
    Ok(match mask {
        MaskInput::Order(order) => masking_of_order(&to_device(order, device)?, recipe.len_keep()),
        MaskInput::Noise(noise) => {
            let cls_attn = cls_attn.expect("the focusing teacher's attention is loaded");
            let kind = match recipe.mask.mode {
                Some(FocusMode::Topk) => FocusKind::TopK,
                Some(FocusMode::Multinomial) | None => FocusKind::Multinomial,
            };
            random_masking(&focused_noise(cls_attn, &to_device(noise, device)?, kind), recipe.len_keep())
        }
    })
}

#[cfg(test)]
mod tests {
    use models::init::Init;
    use tch::Kind;

    use super::*;
    use crate::recipe::Experiment;
    use crate::testing::RECIPE;

    #[test]
    fn focused_masks_follow_the_attention() {
        // All attention on the last four of 16 patches: either rule must keep exactly those.
        let cls_attn = Tensor::cat(
            &[Tensor::zeros([2, 12], (Kind::Half, Device::Cpu)), Tensor::ones([2, 4], (Kind::Half, Device::Cpu))],
            1,
        );
        let noise = Init::Normal { std: 1.0 }.tensor(&[2, 16], 3, "noise").to_kind(Kind::Double).sigmoid();
        for mode in ["multinomial", "topk"] {
            let settings = ["mask.kind=focused", "mask.teacher=clip", &format!("mask.mode={mode}")].map(str::to_owned);
            let recipe = Recipe::parse(RECIPE, "test", &settings).unwrap();
            let noise = MaskInput::Noise(noise.shallow_clone());
            let masks = masking(&recipe, &noise, Some(&cls_attn), Device::Cpu).unwrap();
            let expected = Tensor::cat(
                &[Tensor::ones([2, 12], (Kind::Float, Device::Cpu)), Tensor::zeros([2, 4], (Kind::Float, Device::Cpu))],
                1,
            );
            assert_eq!(masks.mask, expected, "{mode}");
        }
    }
}
