use models::decoder::DecoderConfig;
use models::encoder::EncoderConfig;
use models::losses::{ClsLoss, MimicLoss};
use models::mcmae::McmaeEncoderConfig;
use models::mimic::HeadKind;
use models::precision::Precision;
use models::targets::TargetNorm;

use super::*;

const MINIMAL: &str = "[optim]\nbatch_size = 64\n[schedule]\nepochs = 800\nwarmup_epochs = 40\n";

fn parse(settings: &[&str]) -> Result<Recipe, Error> {
    let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
    Recipe::parse(MINIMAL, "minimal.toml", &settings)
}

#[test]
fn resolving_is_idempotent() {
    for settings in [
        &[][..],
        &["mask.kind=focused", "mask.teacher=clip", "mimic.teachers=[\"clip\"]", "optim.clip_grad=1.0"],
        &[
            "mask.kind=block",
            "mimic.teachers=[\"clip\", \"dino\"]",
            "mimic.loss=smooth_l1",
            "mimic.tokens=decoder_all",
            "mimic.teacher.dino.norm=phi_s",
            "mimic.teacher.dino.share=0.25",
            "loss.w_cls=0.1",
            "model.fusion=[3, 7]",
        ],
        &[
            "mimic.teachers=[\"clip\", \"dino\"]",
            "mimic.head=mlp",
            "mimic.loss=cosine_smooth_l1",
            "mimic.cls_loss=angle",
            "mimic.drop=0.5",
            "target.cls_norm=none",
            "loss.w_cls=0.5",
            "mimic.teacher.dino.hidden=64",
            "mimic.teacher.dino.cls_norm=standardize",
        ],
        &["model.encoder=mcmae", "model.cls_token=true"],
        &[
            "schedule.kind=wsd",
            "schedule.decay_epochs=80",
            "optim.ema_decay=0.9999",
            "optim.ema_warmup=true",
            "run.keep_every=5000",
            "run.grad_checkpointing=true",
        ],
    ] {
        let recipe = parse(settings).unwrap();
        let again = Recipe::parse(&recipe.to_toml(), "saved", &[]).unwrap();
        assert_eq!(recipe, again);
        assert_eq!(recipe.differences(&again), []);
    }
}

#[test]
fn settings_are_toml_values_or_bare_words() {
    let recipe = parse(&[
        "run.precision=f32",
        "optim.batch_size=16",
        "mimic.teachers=[\"clip\", \"dino\"]",
        "mask.kind = focused",
        "mask.mode=\"topk\"",
        "mask.teacher=dino",
    ])
    .unwrap();
    assert_eq!(recipe.run.precision, Precision::F32);
    assert_eq!(recipe.optim.batch_size, 16);
    assert_eq!(recipe.mimic.teachers, ["clip", "dino"]);
    assert_eq!(recipe.mask.mode, Some(FocusMode::Topk));
}

#[test]
fn wrong_recipes_are_refused_by_name() {
    let cases: &[(&[&str], &str)] = &[
        (&["optim.batchsize=1"], "batchsize"),
        (&["optimizer.lr=1"], "optimizer"),
        (&["optim.batch_size=many"], "many"),
        (&["run.seed=9223372036854775808"], "beyond 2^63 - 1"),
        (&["run.seed=99999999999999999999"], "beyond 2^63 - 1"),
        (
            &["data.missing=Skip"],
            "--set data.missing=Skip: unknown value `Skip`, expected `error` or `skip` in `data.missing`",
        ),
        (&["optim.batch_size"], "no '='"),
        (&["optim={batch_size=4}"], "is a table; set its keys one by one, as --set optim.batch_size=VALUE"),
        (&["schedule = { epochs = 3 }"], "--set schedule.epochs=VALUE"),
        (&["data={}"], "is a table"),
        (&["mimic.teacher={clip={share=1.0}}"], "is a table"),
        (&["mimic.teacher.clip={share=1.0}"], "is a table"),
        (&["optim.lr=1e-3", "optim=2e-3"], "--set optim is given twice"),
        (&["=3"], "names no key"),
        (&["optim.batch_size.x=3"], "not a section"),
        (&["optim.lr=1e-3", "optim.blr=1e-3"], "excludes optim.blr"),
        (&["model.patch_size=15"], "model.img_size = 224"),
        (&["model.init="], "model.init = \"\": nothing is named; give a run, ema:RUN, a file or an id"),
        (&["model.init=ema:"], "nothing is named"),
        (
            &["model.init=unfused:ema:a"],
            "model.init = \"unfused:ema:a\": takes a run, ema:RUN, a file or an id; leave out `unfused:`",
        ),
        (&["model.init=untrained:a"], "leave out `untrained:`"),
        (&["model.init=teacher:a"], "leave out `teacher:`"),
        (&["model.mlp_ratio=0"], "model.mlp_ratio = 0: must be at least 1"),
        (&["model.num_heads=7"], "num_heads = 7 must divide it"),
        (&["mask.ratio=1.0"], "mask.ratio = 1"),
        (&["mask.ratio=0"], "must remove a patch"),
        (&["mask.kind=focused"], "mask.teacher"),
        (&["mask.teacher=clip"], "mask.teacher"),
        (&["mask.mode=topk"], "mask.mode"),
        (&["mimic.teachers=[\"clip\", \"clip\"]"], "twice"),
        (&["optim.lr=1e-3", " optim.lr =2e-3"], "--set optim.lr is given twice"),
        (&["loss.w_rec=0"], "loss.w_rec"),
        (&["loss.w_cls=-1"], "loss.w_cls"),
        (&["model.fusion=[11]"], "fusion"),
        (&["model.depths=[2, 2, 11]"], "model.depths"),
        (&["model.cls_token=true"], "model.cls_token"),
        (&["model.encoder=mcmae", "model.embed_dim=64"], "model.embed_dim"),
        (&["model.encoder=mcmae", "model.fusion=[1]"], "stage_fusion"),
        (&["model.encoder=mcmae", "model.patch_size=8"], "must be 16"),
        (&["model.encoder=mcmae", "loss.w_cls=0.1"], "model.cls_token"),
        (&["model.encoder=mcmae", "model.embed_dims=[3, 4]"], "embed_dims"),
        (&["model.encoder=swin"], "swin"),
        (&["model.fusion=[3, 3]"], "fusion"),
        (&["model.drop_path=1.0"], "model.drop_path"),
        (&["mimic.loss=l1"], "l1"),
        (&["mimic.beta=2.0"], "smooth_l1"),
        (&["mimic.loss=smooth_l1", "mimic.beta=0.0"], "must be positive"),
        (&["mimic.loss=cosine_smooth_l1", "mimic.beta=0.0"], "must be positive"),
        (&["mimic.loss=cosine", "mimic.beta=2.0"], "\"cosine_smooth_l1\""),
        (&["mimic.loss=angle"], "angle"),
        (&["mimic.head=conv"], "conv"),
        (&["mimic.hidden=64"], "applies only with head = \"mlp\""),
        (&["mimic.head=mlp", "mimic.hidden=0"], "mimic.hidden = 0: must be at least 1"),
        (&["mimic.teachers=[\"clip\"]", "mimic.teacher.clip.hidden=64"], "applies only with head = \"mlp\""),
        (&["mimic.cls_loss=cosine"], "loss.w_cls above 0"),
        (&["target.cls_norm=ln"], "loss.w_cls above 0"),
        (&["mimic.teachers=[\"clip\"]", "mimic.teacher.clip.cls_loss=angle"], "mimic.teacher.clip.cls_loss"),
        (&["loss.w_cls=0.5", "target.cls_norm=phi_s"], "is defined for patch tokens"),
        (
            &["loss.w_cls=0.5", "mimic.teachers=[\"clip\"]", "mimic.teacher.clip.cls_norm=phi_s"],
            "mimic.teacher.clip.cls_norm = phi_s",
        ),
        (&["mimic.teachers=[\"clip\", \"dino\"]", "mimic.drop=1.0"], "mimic.drop = 1: must be in [0, 1)"),
        (&["mimic.teachers=[\"clip\", \"dino\"]", "mimic.drop=-0.5"], "must be in [0, 1)"),
        (&["mimic.teachers=[\"clip\", \"dino\"]", "mimic.drop=nan"], "must be in [0, 1)"),
        (&["mimic.teachers=[\"clip\"]", "mimic.drop=0.5"], "leaves one of several teachers"),
        (
            &["mimic.teachers=[\"clip\", \"dino\"]", "mimic.drop=0.5", "mimic.teacher.dino.share=0.0"],
            "leaves one of several teachers",
        ),
        (&["mimic.tokens=all"], "all"),
        (&["mimic.teacher.clip.share=1.0"], "not in mimic.teachers"),
        (&["mimic.teachers=[\"clip\"]", "mimic.teacher.clip.share=-1.0"], "share"),
        (&["mimic.teachers=[\"clip\"]", "mimic.teacher.clip.weight=1.0"], "weight"),
        (&["target.norm=phis"], "phis"),
        (&["schedule.warmup_epochs=800"], "schedule.warmup_epochs"),
        (&["schedule.min_lr=1"], "schedule.min_lr"),
        (&["optim.clip_grad=0"], "optim.clip_grad"),
        (&["optim.ema_decay=1.0"], "optim.ema_decay = 1"),
        (&["optim.ema_decay=0.0"], "optim.ema_decay = 0"),
        (&["optim.ema_decay=nan"], "optim.ema_decay = NaN"),
        (&["optim.ema_warmup=true"], "only with optim.ema_decay"),
        (&["schedule.kind=linear"], "linear"),
        (&["schedule.kind=wsd"], "schedule.decay_epochs = unset"),
        (&["schedule.decay_epochs=9"], "belongs to schedule.kind"),
        (&["optim.batch_size=9223372036854775807", "optim.accum_iter=4"], "makes the effective batch size overflow"),
        (&["schedule.decay=linear"], "schedule.decay"),
        (&["schedule.kind=wsd", "schedule.decay_epochs=0.0"], "must be above 0"),
        (&["schedule.kind=wsd", "schedule.decay_epochs=761"], "at most schedule.epochs - schedule.warmup_epochs"),
        (&["schedule.kind=wsd", "schedule.decay_epochs=80", "schedule.decay=cubic"], "cubic"),
        (&["run.keep_every=0"], "run.keep_every"),
        (&["run.log_every=0"], "run.log_every"),
        (&["run.precision=fp16"], "fp16"),
        (&["data.prefetch=1025"], "data.prefetch = 1025: must be at most 1024"),
        (&["data.prefetch=9223372036854775807"], "must be at most 1024"),
    ];
    for (settings, words) in cases {
        let message = parse(settings).unwrap_err().to_string();
        assert!(message.contains(words), "{settings:?} gave {message:?}, which lacks {words:?}");
    }
}

#[test]
fn batches_that_wait_are_bounded_in_fine_tuning_too() {
    let with = |batches: u64| {
        finetune::FinetuneRecipe::parse(MINIMAL, "minimal.toml", &[format!("run.prefetch={batches}")])
            .map_err(|e| e.to_string())
    };
    assert_eq!(with(1024).unwrap().run.prefetch, Some(1024));
    assert_eq!(with(i64::MAX as u64).unwrap_err(), format!("run.prefetch = {}: must be at most 1024", i64::MAX));
    assert_eq!(with(0).unwrap_err(), "run.prefetch = 0: must be at least 1");
}

#[test]
fn differences_are_named_with_both_values() {
    let recipe = parse(&[]).unwrap();
    let other = parse(&["optim.weight_decay=0.1"]).unwrap();
    let [(field, ours, theirs)] = &recipe.differences(&other)[..] else {
        panic!("one setting differs");
    };
    assert_eq!((field.as_str(), ours.as_str(), theirs.as_str()), ("optim.weight_decay", "0.05", "0.1"));
    let clipped = parse(&["optim.clip_grad=1.0"]).unwrap();
    let [(field, ours, theirs)] = &recipe.differences(&clipped)[..] else {
        panic!("one setting differs");
    };
    assert_eq!((field.as_str(), ours.as_str(), theirs.as_str()), ("optim.clip_grad", "unset", "1.0"));
    // All of them, not the first.
    let both = parse(&["optim.weight_decay=0.1", "run.seed=9", "schedule.epochs=700"]).unwrap();
    let differences = recipe.differences(&both);
    let names: Vec<_> = differences.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["optim.weight_decay", "run.seed", "schedule.epochs"]);
}

#[test]
fn what_changes_no_result_may_change() {
    let settings = ["run.keep_every=7", "run.grad_checkpointing=true", "run.deterministic=true"];
    let other = parse(&settings).unwrap();
    assert_eq!(parse(&[]).unwrap().differences(&other), []);

    // The length of a plateau is open until the decay; that of a cosine is not, and the decay's is not either.
    let wsd = |epochs: &str, decay: &str| {
        let kind = "schedule.kind=wsd";
        parse(&[kind, &format!("schedule.decay_epochs={decay}"), &format!("schedule.epochs={epochs}")]).unwrap()
    };
    let run = wsd("800", "80");
    assert_eq!(run.differences(&wsd("900", "80")), []);
    let (field, ..) = &run.differences(&wsd("800", "90"))[0];
    assert_eq!(field, "schedule.decay_epochs");
    let longer = parse(&["schedule.epochs=900"]).unwrap();
    let (field, ..) = &parse(&[]).unwrap().differences(&longer)[0];
    assert_eq!(field, "schedule.epochs");
}

#[test]
fn an_average_begins_fast_only_if_asked_to() {
    let plain = parse(&["optim.ema_decay=0.99"]).unwrap();
    assert_eq!(plain.optim.ema_decay_at(0), Some(0.99));
    let warm = parse(&["optim.ema_decay=0.99", "optim.ema_warmup=true"]).unwrap();
    assert_eq!(warm.optim.ema_decay_at(0), Some(2.0 / 11.0));
    assert_eq!(warm.optim.ema_decay_at(8), Some(10.0 / 19.0));
    assert_eq!(warm.optim.ema_decay_at(10_000), Some(0.99));
    assert_eq!(parse(&[]).unwrap().optim.ema_decay_at(5), None);
}

#[test]
fn the_peak_rate_is_scaled_or_literal() {
    let peak = |settings: &[&str]| parse(settings).unwrap().schedule().lr;
    assert_eq!(peak(&["optim.batch_size=64", "optim.accum_iter=64"]), 1.5e-4 * 4096.0 / 256.0);
    assert_eq!(peak(&["optim.lr=1e-3"]), 1e-3);
}

#[test]
fn a_teacher_has_the_shared_settings_but_for_its_own() {
    let recipe = parse(&[
        "mimic.teachers=[\"clip\", \"dino\"]",
        "mimic.loss=smooth_l1",
        "mimic.teacher.dino.norm=phi_s",
        "mimic.teacher.dino.share=0.25",
        "mimic.teacher.dino.loss=cosine",
    ])
    .unwrap();
    let how = |share, norm, loss, cls_norm| Mimicked {
        share,
        head: HeadKind::Linear,
        patches: (norm, loss),
        cls: (cls_norm, ClsLoss::Mimic(loss)),
    };
    let smooth = MimicLoss::SmoothL1 { beta: 1.0 };
    assert_eq!(recipe.mimic_of("clip"), how(0.5, TargetNorm::Ln, smooth, TargetNorm::Ln));
    // Statistics of patches are not those of CLS tokens, which are normalized one by one unless `cls_norm` says otherwise.
    assert_eq!(recipe.mimic_of("dino"), how(0.25, TargetNorm::PhiS, MimicLoss::Cosine, TargetNorm::Ln));
}

#[test]
fn heads_and_class_tokens_of_a_teacher_have_settings_of_their_own() {
    let recipe = parse(&[
        "mimic.teachers=[\"clip\", \"dino\", \"siglip\"]",
        "mimic.head=mlp",
        "mimic.loss=cosine_smooth_l1",
        "mimic.cls_loss=angle",
        "mimic.drop=0.5",
        "target.norm=standardize",
        "target.cls_norm=standardize",
        "loss.w_cls=0.5",
        "mimic.teacher.dino.head=linear",
        "mimic.teacher.dino.beta=2.0",
        "mimic.teacher.dino.cls_norm=none",
        "mimic.teacher.siglip.hidden=96",
        "mimic.teacher.siglip.cls_loss=smooth_l1",
        "mimic.teacher.siglip.share=0.0",
    ])
    .unwrap();
    let both = |beta| MimicLoss::CosineSmoothL1 { beta };
    let clip = recipe.mimic_of("clip");
    assert_eq!((clip.head, clip.patches), (HeadKind::Mlp { hidden: 3072 }, (TargetNorm::Standardize, both(1.0))));
    assert_eq!(clip.cls, (TargetNorm::Standardize, ClsLoss::Angle));
    let dino = recipe.mimic_of("dino");
    assert_eq!((dino.head, dino.patches.1), (HeadKind::Linear, both(2.0)));
    assert_eq!(dino.cls, (TargetNorm::None, ClsLoss::Angle));
    let siglip = recipe.mimic_of("siglip");
    let smooth = ClsLoss::Mimic(MimicLoss::SmoothL1 { beta: 1.0 });
    assert_eq!((siglip.head, siglip.cls.1), (HeadKind::Mlp { hidden: 96 }, smooth));
    // Two of the three have a weight, and one of those two always counts.
    assert_eq!(recipe.teacher_draws(), 1);
    // What is spelled out is what was left open.
    let text = recipe.to_toml();
    assert!(text.contains("hidden = 3072") && text.contains("beta = 1.0"), "{text}");
    // A student of another width has heads of another.
    assert_eq!(parse(&["mimic.head=mlp", "model.embed_dim=192"]).unwrap().mimic.hidden, Some(768));
}

/// A recipe that leaves out heads, losses of CLS tokens and dropping is resolved to a text without them, which equals what runs have saved that
/// know no such settings.
#[test]
fn settings_at_their_defaults_are_left_out() {
    let text = parse(&["mimic.teachers=[\"clip\"]", "loss.w_cls=0.5"]).unwrap().to_toml();
    let table: toml::Table = text.parse().unwrap();
    let keys = |section: &str| -> Vec<String> { table[section].as_table().unwrap().keys().cloned().collect() };
    assert_eq!(keys("mimic"), ["loss", "teachers", "tokens"]);
    assert_eq!(keys("target"), ["norm"]);
}

#[test]
fn an_mcmae_is_the_published_base_unless_told() {
    let recipe = parse(&["model.encoder=mcmae"]).unwrap();
    let EncoderConfig::Mcmae(config) = recipe.mae_config().encoder else { panic!("another encoder") };
    assert_eq!(config, McmaeEncoderConfig::BASE);
    assert_eq!(recipe.mae_config().decoder, DecoderConfig::PUBLISHED);
    assert_eq!(recipe.grid(), 14);
}
