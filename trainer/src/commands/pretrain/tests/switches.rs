use super::*;

fn settings<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    settings.iter().flat_map(|s| ["--set", s]).collect()
}

/// Every choice of the method trains: its terms are logged under their names, and each falls.
#[test]
fn every_switch_trains() {
    let world = World::with_cache(12);
    let both: &[&str] = &["rec", "mimic.clip"];
    for (name, switches, terms) in [
        ("standardize", &["target.norm=standardize"][..], both),
        ("phi-s", &["target.norm=phi_s"], both),
        ("none", &["target.norm=none"], both),
        ("l2", &["target.norm=l2"], both),
        ("smooth", &["mimic.loss=smooth_l1", "mimic.beta=2.0"], both),
        ("cosine", &["mimic.loss=cosine"], both),
        ("at-decoder", &["mimic.tokens=decoder_removed"], both),
        ("decoder-all", &["mimic.tokens=decoder_all"], both),
        ("mimic-only", &["loss.w_rec=0"], &["mimic.clip"]),
        ("decoder-mimic-only", &["loss.w_rec=0", "mimic.tokens=decoder_visible"], &["mimic.clip"]),
        ("pixel-only", &["mimic.teachers=[]"], &["rec"]),
        ("cls", &["loss.w_cls=0.5"], &["rec", "mimic.clip", "mimic_cls.clip"]),
        ("fusion", &["model.fusion=[0]"], both),
        ("block", &["mask.kind=block"], both),
        ("topk", &["mask.kind=focused", "mask.mode=topk", "mask.teacher=clip"], both),
        ("own", &["mimic.teacher.clip.norm=l2", "mimic.teacher.clip.share=0.5"], both),
        ("mlp", &["mimic.head=mlp"], both),
        ("mlp-at-decoder", &["mimic.head=mlp", "mimic.hidden=24", "mimic.tokens=decoder_removed"], both),
        ("cosine-smooth", &["mimic.loss=cosine_smooth_l1", "target.norm=standardize"], both),
        ("cls-own", &["loss.w_cls=0.5", "mimic.cls_loss=cosine", "target.cls_norm=standardize"], &CLS),
        ("angle", &["loss.w_cls=0.5", "mimic.cls_loss=angle", "target.cls_norm=none", "mimic.head=mlp"], &CLS),
    ] {
        let mut args = settings(switches);
        args.extend(["--set", "schedule.epochs=20"]);
        let lines = losses(&train(&world, name, &args));
        assert_eq!(lines.len(), 60);
        let logged: Vec<&str> = lines[0].2.keys().map(String::as_str).collect();
        let mut expected = vec!["grad_norm", "loss"];
        expected.extend(terms);
        expected.sort_unstable();
        assert_eq!(logged, expected, "{name}");
        for term in terms {
            let mean = |lines: &[(u64, f64, BTreeMap<String, f64>)]| {
                lines.iter().map(|(_, _, means)| means[*term]).sum::<f64>() / lines.len() as f64
            };
            let (first, last) = (mean(&lines[..9]), mean(&lines[51..]));
            assert!(last < 0.98 * first, "{name}: {term} went from {first} to {last}");
        }
    }
}

/// The terms of a recipe that mimics CLS tokens too.
const CLS: [&str; 3] = ["rec", "mimic.clip", "mimic_cls.clip"];

/// Both teachers, with everything that was made for several of them.
const JOINT: [&str; 10] = [
    "mimic.teachers=[\"clip\", \"dino\"]",
    "mimic.head=mlp",
    "mimic.loss=cosine_smooth_l1",
    "mimic.cls_loss=angle",
    "mimic.drop=0.5",
    "target.norm=phi_s",
    "target.cls_norm=none",
    "loss.w_cls=0.5",
    "mimic.teacher.dino.cls_norm=standardize",
    "mimic.teacher.dino.norm=standardize",
];

/// Every term is logged and falls, of all images whatever is dropped, and stopping and resuming changes not one bit: statistics and dispersions
/// come from the checkpoint, and which teachers are dropped from the seed.
#[test]
fn two_teachers_train_and_resume() {
    let world = World::with_two_teachers(9);
    let mut args = settings(&JOINT);
    args.extend(["--set", "schedule.epochs=20", "--set", "optim.accum_iter=2"]);
    let whole = train(&world, "whole", &args);
    let lines = losses(&whole);
    let logged: Vec<&str> = lines[0].2.keys().map(String::as_str).collect();
    let terms = ["mimic.clip", "mimic.dino", "mimic_cls.clip", "mimic_cls.dino"];
    let kept = ["mimic_kept.clip", "mimic_kept.dino"];
    assert_eq!(logged, [&["grad_norm", "loss"], &terms[..], &kept, &["rec"]].concat());
    let mean = |lines: &[(u64, f64, BTreeMap<String, f64>)], term: &str| {
        lines.iter().map(|(_, _, means)| means[term]).sum::<f64>() / lines.len() as f64
    };
    for term in terms {
        let (first, last) = (mean(&lines[..4], term), mean(&lines[lines.len() - 4..], term));
        assert!(last < 0.98 * first, "{term} went from {first} to {last}");
    }
    // The farthest counts and the other one in half of the images.
    let both = mean(&lines, kept[0]) + mean(&lines, kept[1]);
    assert!((both - 1.5).abs() < 0.2, "{both} teachers an image");
    assert!(lines.iter().any(|(_, _, means)| kept.iter().any(|&name| means[name] < 1.0)));

    while losses(&world.path("cut")).len() < lines.len() {
        let mut args = args.clone();
        args.extend(["--stop-after", "7"]);
        train(&world, "cut", &args);
    }
    let cut = world.path("cut");
    assert_eq!(losses(&cut), lines);
    assert!(tensors(&cut) == tensors(&whole));
    let model = checkpoint::load_last(&cut, &mut |_| {}).unwrap().unwrap().model;
    for name in [
        "mimic_targets.clip.scale",
        "mimic_targets.dino.scale",
        "mimic_cls_targets.clip.dispersion",
        "mimic_cls_targets.dino.scale",
        "mimic_cls_targets.dino.dispersion",
    ] {
        assert!(model.contains_key(name), "{name}");
    }
}

/// With a probability of next to nothing, what is minimized is the sum over all teachers.
#[test]
fn dropping_nothing_is_the_sum() {
    let world = World::with_two_teachers(8);
    let run = |name: &str, drop: &str| {
        let mut args = settings(&JOINT);
        args.extend(["--set", drop, "--stop-after", "1"]);
        losses(&train(&world, name, &args))[0].2.clone()
    };
    let (none, all) = (run("none", "mimic.drop=1e-12"), run("all", "mimic.drop=0.0"));
    assert_eq!([none["mimic_kept.clip"], none["mimic_kept.dino"]], [1.0, 1.0]);
    for (name, value) in &all {
        assert!((none[name] - value).abs() < 1e-5 * value.abs(), "{name}: {} and {value}", none[name]);
    }
    assert!(!all.contains_key("mimic_kept.clip"));
    let half = run("half", "mimic.drop=0.5");
    assert_ne!(half["loss"], all["loss"]);
    assert_eq!(half["mimic.clip"], none["mimic.clip"], "logged of all images");
}

/// Statistics are measured once and belong to the run: a resumed one has them from its checkpoint, to the bit.
#[test]
fn statistics_of_targets_come_back_with_the_checkpoint() {
    let world = World::with_cache(9);
    for norm in ["standardize", "phi_s"] {
        let norm_setting = format!("target.norm={norm}");
        let args = settings(&[&norm_setting, "schedule.epochs=3"]);
        let whole = train(&world, norm, &args);
        let cut = format!("{norm}-cut");
        for _ in 0..3 {
            let mut args = args.clone();
            args.extend(["--stop-after", "2"]);
            train(&world, &cut, &args);
        }
        let cut = world.path(&cut);
        assert_eq!(losses(&cut), losses(&whole));
        assert!(tensors(&cut) == tensors(&whole), "{norm}");
        let model = checkpoint::load_last(&cut, &mut |_| {}).unwrap().unwrap().model;
        assert!(model.contains_key("mimic_targets.clip.scale"));
    }
}

/// The other encoder in the same loop: it trains, stops and goes on, and its features are judged without a CLS token.
#[test]
fn masked_convolutions_train_and_resume() {
    let world = World::with_cache(9);
    let vit = "patch_size = 8\nembed_dim = 32\ndepth = 2\nnum_heads = 2\n";
    let mcmae =
        "encoder = \"mcmae\"\nembed_dims = [8, 16, 32]\ndepths = [1, 1, 2]\nmlp_ratios = [2, 2, 2]\nnum_heads = 2\n";
    let recipe = crate::testing::RECIPE.replace(vit, mcmae);
    let recipe = recipe.replace("img_size = 32", "img_size = 64");
    assert!(recipe.contains("mcmae") && recipe.contains("64"));
    let path = world.path("mcmae.toml");
    schemas::atomic::write(&path, recipe.as_bytes()).unwrap();
    let mut args = vec!["--recipe", path.to_str().unwrap()];
    args.extend(settings(&["schedule.epochs=10"]));
    let whole = train(&world, "whole", &args);
    let lines = losses(&whole);
    assert_eq!(lines.len(), 20);
    for term in ["rec", "mimic.clip"] {
        let mean = |lines: &[(u64, f64, BTreeMap<String, f64>)]| {
            lines.iter().map(|(_, _, means)| means[term]).sum::<f64>() / lines.len() as f64
        };
        assert!(mean(&lines[16..]) < 0.98 * mean(&lines[..4]), "{term}");
    }
    for _ in 0..4 {
        let mut args = args.clone();
        args.extend(["--stop-after", "6"]);
        train(&world, "cut", &args);
    }
    let cut = world.path("cut");
    assert_eq!(losses(&cut), lines);
    assert!(tensors(&cut) == tensors(&whole));
}
