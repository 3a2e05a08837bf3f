use tch::Device;

use super::*;
use crate::decoder::DecoderConfig;
use crate::encoder::EncoderConfig;
use crate::init::Init;
use crate::masking::random_masking;
use crate::params::ParamStore;
use crate::vit::VitConfig;

fn mae() -> MaeConfig {
    MaeConfig {
        encoder: EncoderConfig::Vit(VitConfig { img_size: [16, 16], mlp_dim: 48, ..VitConfig::mae(4, 24, 1, 3) }),
        decoder: DecoderConfig { embed_dim: 16, depth: 1, num_heads: 2, mlp_ratio: 2 },
        norm_pix_loss: true,
    }
}

fn config(rec_weight: f64, teachers: &[(&str, i64, f64, TargetNorm)]) -> MrMaeConfig {
    let teachers = teachers.iter().map(|(id, width, weight, target_norm)| {
        (
            id.to_string(),
            MimicConfig {
                width: *width,
                weight: *weight,
                cls_weight: 0.0,
                head: HeadKind::Linear,
                target_norm: *target_norm,
                loss: MimicLoss::L2,
                stats: None,
                cls_norm: target_norm.without_stats(),
                cls_loss: ClsLoss::Mimic(MimicLoss::L2),
                cls_stats: None,
            },
        )
    });
    let (mimic_tokens, teachers) = (MimicTokens::Encoder, teachers.collect());
    MrMaeConfig { mae: mae(), rec_weight, mimic_tokens, teacher_drop: 0.0, teachers }
}

fn two_teachers() -> MrMaeConfig {
    config(0.5, &[("clip-b16", 20, 0.25, TargetNorm::None), ("dino-b16", 28, 2.0, TargetNorm::Ln)])
}

fn random(shape: &[i64], name: &str) -> Tensor {
    Init::Normal { std: 1.0 }.tensor(shape, 11, name)
}

struct Inputs {
    imgs: Tensor,
    masking: Masking,
    targets: BTreeMap<String, Tensor>,
    cls_targets: BTreeMap<String, Tensor>,
}

impl Inputs {
    fn new() -> Self {
        let targets = [("clip-b16", 20), ("dino-b16", 28)];
        let targets = targets.map(|(id, width)| (id.to_owned(), random(&[2, 16, width], id).to_kind(Kind::Half)));
        Self {
            imgs: random(&[2, 3, 16, 16], "imgs"),
            masking: random_masking(&random(&[2, 16], "noise"), 4),
            targets: targets.into(),
            cls_targets: [("clip-b16".to_owned(), random(&[2, 20], "cls"))].into(),
        }
    }

    fn batch(&self) -> Batch<'_> {
        Batch {
            imgs: &self.imgs,
            masking: &self.masking,
            targets: Targets::All(&self.targets),
            cls_targets: &self.cls_targets,
            teacher_drop: None,
            pass: ForwardOptions::default(),
        }
    }
}

fn build(config: &MrMaeConfig) -> (ParamStore, MrMae) {
    let store = ParamStore::new(Device::Cpu, 0);
    let network = MrMae::new(&store.root(), config).unwrap();
    (store, network)
}

fn value(scalar: &Tensor) -> f64 {
    assert_eq!((scalar.kind(), scalar.dim()), (Kind::Float, 0));
    scalar.double_value(&[])
}

#[test]
fn the_total_is_the_weighted_sum_and_the_terms_are_not_weighted() {
    let inputs = Inputs::new();
    let (store, network) = build(&two_teachers());
    assert!(store.get("mimic_heads.clip-b16.weight").unwrap().size() == [20, 24]);
    assert!(store.get("mimic_heads.dino-b16.bias").unwrap().size() == [28]);
    let losses = network.forward(&inputs.batch());
    let rec = value(losses.rec.as_ref().unwrap());
    let expected = 0.5 * rec + 0.25 * value(&losses.mimic["clip-b16"]) + 2.0 * value(&losses.mimic["dino-b16"]);
    assert!((value(&losses.total) - expected).abs() < 1e-5);

    let (_, plain) = build(&config(1.0, &[]));
    let alone = plain.forward(&inputs.batch());
    assert_eq!(value(alone.rec.as_ref().unwrap()), rec, "heads do not change the autoencoder, nor its start");
    assert_eq!(value(&alone.total), rec);
    assert!(alone.mimic.is_empty());
}

/// Targets that were taken at the visible patches before give the same losses, bit for bit, and the same maps.
#[test]
fn targets_at_the_visible_patches_are_enough() {
    let inputs = Inputs::new();
    let (_store, network) = build(&two_teachers());
    let taken = |(id, target): (&String, &Tensor)| (id.clone(), gather_rows(target, &inputs.masking.ids_keep));
    let visible: BTreeMap<String, Tensor> = inputs.targets.iter().map(taken).collect();
    let batch = || Batch { targets: Targets::Visible(&visible), ..inputs.batch() };
    let (all, some) = (network.forward(&inputs.batch()), network.forward(&batch()));
    assert_eq!((value(&all.total), &all.mimic), (value(&some.total), &some.mimic));
    assert_eq!(network.similarity(&inputs.batch()), network.similarity(&batch()));
}

#[test]
fn a_head_is_compared_with_the_tokens_at_its_positions() {
    let mut inputs = Inputs::new();
    let (store, network) = build(&two_teachers());
    // Teachers whose tokens at each patch are exactly what the student's heads say about it.
    let latent = network.mae().forward_encoder(&inputs.imgs, &inputs.masking).detach();
    let visible = latent.narrow(1, 1, 4);
    let nan = |width: i64| Tensor::full([2, 16, width], f64::NAN, (Kind::Float, Device::Cpu));
    for (id, width) in [("clip-b16", 20), ("dino-b16", 28)] {
        let parameter = |kind: &str| store.get(&format!("mimic_heads.{id}.{kind}")).unwrap().detach();
        let tokens = visible.linear(&parameter("weight"), Some(&parameter("bias")));
        let index = inputs.masking.ids_keep.unsqueeze(-1).expand([-1, -1, width], false);
        // NaN elsewhere: a removed patch's token is not read.
        inputs.targets.insert(id.to_owned(), nan(width).scatter(1, &index, &tokens));
    }
    let losses = network.forward(&inputs.batch());
    assert!(value(&losses.mimic["clip-b16"]) < 1e-12);
    assert!(value(&losses.mimic["dino-b16"]) > 1e-3, "its target is normalized, the head's output is not");
}

#[test]
fn under_autocast_every_loss_is_f32_and_close() {
    let inputs = Inputs::new();
    let (store, network) = build(&two_teachers());
    let exact = network.forward(&inputs.batch());
    let losses = {
        let _bf16 = torch_ext::Autocast::bf16(Device::Cpu);
        network.forward(&inputs.batch())
    };
    let close = |a: &Tensor, b: &Tensor| (value(a) / value(b) - 1.0).abs() < 0.01;
    assert!(close(&losses.total, &exact.total) && close(losses.rec.as_ref().unwrap(), exact.rec.as_ref().unwrap()));
    assert!(losses.mimic.iter().all(|(id, loss)| close(loss, &exact.mimic[id])));
    assert_ne!(value(&losses.total), value(&exact.total), "it was computed in bf16");
    losses.total.backward();
    for (name, tensor) in store.trainable() {
        let grad = tensor.grad();
        assert!(grad.defined() && grad.kind() == Kind::Float, "{name}");
        assert!(bool::try_from(grad.isfinite().all()).unwrap(), "{name}");
    }
}

#[test]
fn without_pixel_loss_the_decoder_is_left_out() {
    let inputs = Inputs::new();
    let (store, network) = build(&config(0.0, &[("clip-b16", 20, 1.0, TargetNorm::Ln)]));
    let losses = network.forward(&inputs.batch());
    assert!(losses.rec.is_none());
    assert_eq!(value(&losses.total), value(&losses.mimic["clip-b16"]));
    losses.total.backward();
    for (name, tensor) in store.trainable() {
        let of_decoder = name.starts_with("decoder_") || name == "mask_token";
        assert_eq!(tensor.grad().defined(), !of_decoder, "{name}");
    }
}

#[test]
fn the_decoder_mimics_at_the_patches_that_are_named() {
    for (mimic_tokens, visible, removed) in [
        (MimicTokens::DecoderVisible, true, false),
        (MimicTokens::DecoderRemoved, false, true),
        (MimicTokens::DecoderAll, true, true),
    ] {
        let mut config = config(0.0, &[("clip-b16", 20, 1.0, TargetNorm::None)]);
        config.mimic_tokens = mimic_tokens;
        let (store, network) = build(&config);
        // The decoder's width, not the encoder's.
        assert_eq!(store.get("mimic_heads.clip-b16.weight").unwrap().size(), [20, 16]);
        let mut inputs = Inputs::new();
        let decoder = network.mae().decoder();
        let latent = network.mae().forward_encoder(&inputs.imgs, &inputs.masking);
        let tokens = decoder.forward_tokens(&latent, &inputs.masking.ids_restore, &ForwardOptions::default());
        let head = |kind: &str| store.get(&format!("mimic_heads.clip-b16.{kind}")).unwrap();
        let said = decoder.patches(&tokens).linear(&head("weight"), Some(&head("bias"))).detach();
        // NaN where nothing may be compared.
        let share = |of: bool, mask: &Tensor| mask * f64::from(u8::from(of));
        let seen = 1.0 - &inputs.masking.mask;
        let counts = share(removed, &inputs.masking.mask) + share(visible, &seen);
        let counts = counts.gt(0.5).unsqueeze(-1);
        let nan = said.full_like(f64::NAN);
        inputs.targets.insert("clip-b16".to_owned(), said.where_self(&counts, &nan));
        let losses = network.forward(&inputs.batch());
        assert!(value(&losses.mimic["clip-b16"]) < 1e-12, "{mimic_tokens:?}");
        let (maps, ids) = network.similarity(&inputs.batch());
        let map = &maps["clip-b16"];
        assert_eq!(map.size(), ids.size());
        assert!((map.min().double_value(&[]) - 1.0).abs() < 1e-5, "{map}");
    }
}

#[test]
fn a_cls_token_is_mimicked_by_a_head_of_its_own() {
    let mut config = config(0.0, &[("clip-b16", 20, 0.0, TargetNorm::Ln)]);
    config.teachers.get_mut("clip-b16").unwrap().cls_weight = 0.5;
    let (store, network) = build(&config);
    assert!(store.get("mimic_heads.clip-b16.weight").is_none());
    let inputs = Inputs::new();
    let losses = network.forward(&inputs.batch());
    let latent = network.mae().forward_encoder(&inputs.imgs, &inputs.masking);
    let head = |kind: &str| store.get(&format!("mimic_cls_heads.clip-b16.{kind}")).unwrap();
    let said = latent.select(1, 0).linear(&head("weight"), Some(&head("bias")));
    let target = TargetNorm::Ln.per_token(&inputs.cls_targets["clip-b16"]);
    let expected = value(&(said - target).square().mean(None));
    assert!((value(&losses.mimic_cls["clip-b16"]) - expected).abs() < 1e-6);
    assert!((value(&losses.total) - 0.5 * expected).abs() < 1e-6);
    assert!(losses.mimic.is_empty());
}

/// Both kinds of MLP heads, and names that a checkpoint has.
#[test]
fn an_mlp_head_has_a_hidden_layer_for_each_kind_of_token() {
    let mut config = config(0.0, &[("clip-b16", 20, 0.5, TargetNorm::Ln)]);
    let teacher = config.teachers.get_mut("clip-b16").unwrap();
    (teacher.head, teacher.cls_weight) = (HeadKind::Mlp { hidden: 12 }, 0.5);
    let (store, network) = build(&config);
    for kind in ["mimic_heads", "mimic_cls_heads"] {
        for (layer, shape) in
            [("fc1.weight", &[12, 24][..]), ("norm.weight", &[12]), ("norm.bias", &[12]), ("fc2.weight", &[20, 12])]
        {
            let name = format!("{kind}.clip-b16.{layer}");
            assert_eq!(store.get(&name).unwrap().size(), shape, "{name}");
            assert!(is_mimic_param(&name));
        }
        assert!(store.get(&format!("{kind}.clip-b16.weight")).is_none());
    }
    assert!(is_mimic_param("mimic_cls_targets.clip-b16.dispersion"));
    let losses = network.forward(&Inputs::new().batch());
    assert!(value(&losses.mimic["clip-b16"]) > 0.0 && value(&losses.mimic_cls["clip-b16"]) > 0.0);
}

#[test]
fn losses_that_cannot_be_are_refused() {
    let check = |word: &str, config: MrMaeConfig| {
        let refused = MrMae::new(&ParamStore::frozen(Device::Cpu).root(), &config);
        let Err(Error::Config { field, .. }) = refused else { panic!("{word}: {refused:?}") };
        assert_eq!(field, word);
    };
    check("rec_weight", config(0.0, &[]));
    check("rec_weight", config(0.0, &[("a", 4, 0.0, TargetNorm::Ln)]));
    check("weight", config(f64::NAN, &[]));
    check("weight", config(1.0, &[("a", 4, -0.5, TargetNorm::Ln)]));
    check("width", config(1.0, &[("a", 0, 0.5, TargetNorm::Ln)]));
    let mut no_beta = config(1.0, &[("a", 4, 0.5, TargetNorm::Ln)]);
    no_beta.teachers.get_mut("a").unwrap().loss = MimicLoss::SmoothL1 { beta: 0.0 };
    check("beta", no_beta);
    let mut no_cls_beta = config(1.0, &[("a", 4, 0.5, TargetNorm::Ln)]);
    let negative = MimicLoss::CosineSmoothL1 { beta: -1.0 };
    no_cls_beta.teachers.get_mut("a").unwrap().cls_loss = ClsLoss::Mimic(negative);
    check("beta", no_cls_beta);
    let mut no_hidden = config(1.0, &[("a", 4, 0.5, TargetNorm::Ln)]);
    no_hidden.teachers.get_mut("a").unwrap().head = HeadKind::Mlp { hidden: 0 };
    check("hidden", no_hidden);
    let mut one_name = config(1.0, &[("a", 4, 0.5, TargetNorm::Ln), ("a.fc1", 4, 0.5, TargetNorm::Ln)]);
    one_name.teachers.get_mut("a").unwrap().head = HeadKind::Mlp { hidden: 8 };
    check("teachers", one_name);
    for (drop, second) in [(0.5, 0.0), (1.0, 0.5), (f64::NAN, 0.5)] {
        let mut drops = config(1.0, &[("a", 4, 0.5, TargetNorm::Ln), ("b", 4, second, TargetNorm::Ln)]);
        drops.teacher_drop = drop;
        check("teacher_drop", drops);
    }
    check("target_norm", config(1.0, &[("a", 4, 0.5, TargetNorm::PhiS)]));
    let mut without_patches = config(1.0, &[]);
    let EncoderConfig::Vit(vit) = &mut without_patches.mae.encoder else { panic!("a ViT was configured") };
    vit.patch_size = 0;
    check("patch_size", without_patches);
}
