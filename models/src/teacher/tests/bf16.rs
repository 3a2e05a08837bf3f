//! bf16 copies of the weights: the numbers are those of autocast, which casts them for every pass.

use super::families::{clip_config, openai_tensors};
use super::trained::families;
use super::*;

/// All that a pass gives, through the f32 tower, whose weights autocast casts.
fn cast_by_autocast(teacher: &Teacher, pixels: &Tensor) -> Vec<Tensor> {
    tch::no_grad(|| {
        let _guard = Precision::Bf16.guard(Device::Cpu);
        let tower = &teacher.tower;
        let patches = teacher.normalise(&tower.unfold(pixels));
        let mut seen = Vec::new();
        let output = tower.forward_with_attention(&patches, (2, 4), |x| seen.push(x.shallow_clone()));
        seen.extend([output.x, output.attn]);
        seen.extend(output.pooled);
        if tower.config().projection.is_some() {
            let projected = tower.project(&tower.forward_norm(&seen[0]));
            seen.push(projected.to_kind(Kind::Float));
        }
        seen
    })
}

fn cast_once(teacher: &Teacher, pixels: &Tensor) -> Vec<Tensor> {
    let mut seen = teacher.hidden_states(pixels, Precision::Bf16).unwrap();
    let stage = teacher.run(pixels, Precision::Bf16, |_| {}).unwrap();
    tch::no_grad(|| {
        let _guard = Precision::Bf16.guard(Device::Cpu);
        let tower = teacher.tower(Precision::Bf16);
        seen.push(seen[seen.len() - 1].shallow_clone());
        seen.push(stage.attn);
        seen.extend(stage.pooled);
        if tower.config().projection.is_some() {
            let projected = tower.project(&tower.forward_norm(&seen[0]));
            seen.push(projected.to_kind(Kind::Float));
        }
    });
    seen
}

#[test]
fn weights_cast_once_give_the_bits_of_weights_cast_for_every_pass() {
    let siglip = VitConfig { pooling: Pooling::Attention, ..timm_config() };
    let facts = json!({"hidden_act": "quick_gelu", "num_attention_heads": 2,
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}});
    let mut teachers = Vec::new();
    for (family, folder) in families() {
        teachers.push((family, Teacher::load(folder.path(), Device::Cpu).unwrap()));
    }
    let projecting = folder(&openai_tensors(&clip_config()), &config(facts));
    let options = TeacherOptions { layer: Layer::Proj, ..TeacherOptions::default() };
    let clip = Teacher::load_with(projecting.path(), &options, Device::Cpu).unwrap();
    teachers.push(("projection", clip));
    // No layout of such a file is small enough for a test to write it, so the tower is given its tensors.
    let (_, like) = &teachers[0];
    let siglip = Teacher::build(
        like.info.clone(),
        &siglip,
        Device::Cpu,
        siglip
            .tensors()
            .into_iter()
            .map(|TensorSpec { name, shape }| {
                let values = Init::Normal { std: 0.1 }.tensor(&shape, 0, &name);
                (name, values)
            })
            .collect(),
        Bf16Weights::default(),
    );
    teachers.push(("siglip", siglip));
    let pixels = Init::Normal { std: 50.0 }.tensor(&[3, 3, 16, 32], 1, "pixels") + 128.0;
    let pixels = pixels.clamp(0.0, 255.0).to_kind(Kind::Uint8);
    for (family, teacher) in &teachers {
        let expected = cast_by_autocast(teacher, &pixels);
        // Of a handle first, so that the copies are shared the other way too.
        let handle = teacher.shallow_clone();
        for teacher in [&handle, teacher] {
            let found = cast_once(teacher, &pixels);
            assert_eq!(found.len(), expected.len(), "{family}");
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert!(found.equal(expected), "{family}, stage {i}");
            }
        }
        // f32 is still f32: nothing of the copies is in it.
        let exact = teacher.hidden_states(&pixels, Precision::F32).unwrap();
        assert!(!exact[1].equal(&expected[1]), "{family}");
        let copies = teacher.bf16_weights.lock().unwrap();
        let copies = copies.as_ref().unwrap();
        assert!(
            copies.keys().all(|name| !name.contains("norm"))
                && copies.contains_key("patch_embed.proj.weight")
                && copies.contains_key("blocks.0.mlp.fc2.bias"),
            "{family}"
        );
    }
}

/// Tables of rotary positions are kept from pass to pass; another grid has others.
#[test]
fn kept_rotary_tables_follow_the_grid() {
    let (_, dinov3) = families().remove(2);
    let load = || Teacher::load(dinov3.path(), Device::Cpu).unwrap();
    let kept = load();
    for (height, width) in [(16, 32), (32, 16), (16, 16), (16, 32)] {
        let pixels = Tensor::full([1, 3, height, width], 7, (Kind::Uint8, Device::Cpu));
        let found = kept.forward(&pixels, Precision::F32).unwrap().tokens;
        let fresh = load().forward(&pixels, Precision::F32).unwrap().tokens;
        assert!(found.equal(&fresh), "{height} x {width}");
    }
}
