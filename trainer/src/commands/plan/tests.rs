use super::*;
use crate::recipe::Experiment;
use crate::testing::World;

const BASE: &str =
    "[mimic]\nteachers = [\"clip\"]\n[optim]\nbatch_size = 256\naccum_iter = 4\n[schedule]\nepochs = 200\n";

fn recipe(text: &str, settings: &[&str]) -> Recipe {
    let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
    Recipe::parse(text, "test", &settings).unwrap()
}

/// Against figures worked out by hand from the published sizes: 111.7 M parameters, 58.3 GFLOP per image and step, 1,281,167 images in steps
/// of 1,024.
#[test]
fn a_vit_b_on_imagenet() {
    let plan = Estimate::of(&recipe(BASE, &[]), None, 1_281_167, 100.0, 0.5).unwrap();
    assert_eq!(plan.params["encoder"] + plan.params["decoder"], 111_655_680);
    assert_eq!(plan.params["heads"], 768 * 768 + 768);
    assert_eq!(plan.steps, 200 * 1251);
    assert_eq!(plan.images_seen, 200 * 1251 * 1024);
    let step = plan.gflop_per_image["total"];
    assert!((step - 58.3).abs() < 0.1, "{step}");
    assert!((plan.images_per_s - 50e12 / (step * 1e9)).abs() < 1e-6);
    let hours = plan.images_seen as f64 / plan.images_per_s / 3600.0;
    assert!((plan.hours - hours).abs() < 1e-9 * hours);
    let params = plan.memory_bytes["params"];
    assert_eq!(params, 16.0 * (111_655_680 + 768 * 769) as f64);
    assert!(plan.teachers.is_empty());
}

#[test]
fn a_cached_teacher_is_counted_from_its_identity() {
    let world = World::with_cache(8);
    let cache = Cache::open(&world.cache_dir()).unwrap();
    let plan = Estimate::of(&recipe(crate::testing::RECIPE, &[]), Some(&cache), 8, 1.0, 1.0).unwrap();
    let clip = &plan.teachers["clip"];
    // The world's teacher: 2 blocks of width 64 with MLPs of 256 over 16 patches of 4 pixels and CLS.
    let weights = 17.0 * 2.0 * 64.0 * (4.0 * 64.0 + 2.0 * 256.0);
    let block = weights + 4.0 * 17.0 * 17.0 * 64.0;
    let expected = 2.0 * block + 2.0 * 16.0 * 48.0 * 64.0;
    assert!((clip.gflop_per_view * 1e9 - expected).abs() < 1.0);
    assert_eq!(clip.views, 2);
    // Two views are computed once, and four epochs look at one each.
    assert_eq!(clip.pays_after_epochs, Some(2));
    assert!((clip.online_hours / clip.cache_hours - 2.0).abs() < 1e-9);
    assert_eq!(clip.bytes_per_view, 8 * (16 * 64 * 2 + 64 * 2 + 16 * 2));
}

/// Fresh views cost a teacher's pass each, read no rows, and make the cache pay later.
#[test]
fn fresh_views_are_planned_with_their_teachers() {
    let world = World::with_cache(8);
    let cache = Cache::open(&world.cache_dir()).unwrap();
    let plan = |fresh: &str| {
        let recipe = recipe(crate::testing::RECIPE, &[&format!("data.fresh={fresh}")]);
        let plan = Estimate::of(&recipe, Some(&cache), 8, 1.0, 1.0).unwrap();
        let mut text = Vec::new();
        plan.write_text(&recipe, false, &mut text).unwrap();
        (plan, String::from_utf8(text).unwrap())
    };
    let ((stored, without), (some, with), (all, _)) = (plan("0.0"), plan("0.75"), plan("1.0"));
    let clip = |plan: &Estimate| plan.teachers["clip"].clone();
    assert_eq!(clip(&stored).fresh_hours, None);
    assert_eq!(clip(&some).fresh_hours, Some(0.75 * clip(&stored).online_hours));
    assert_eq!((clip(&some).pays_after_epochs, clip(&all).pays_after_epochs), (Some(8), None));
    assert!((some.read_bytes_per_s / stored.read_bytes_per_s - 0.25).abs() < 1e-9);
    assert!(!without.contains("fresh") && with.contains("75 % of all (data.fresh)"), "{with}");
}

/// A student that sees a part of each view costs what it does without, and its teachers what they cost for the whole view.
#[test]
fn shifted_students_are_planned_with_whole_views() {
    let mut world = World::new(8);
    world.grid = 6;
    world.build_cache();
    let cache = Cache::open(&world.cache_dir()).unwrap();
    let plan = |settings: &[&str], cache| Estimate::of(&recipe(crate::testing::RECIPE, settings), cache, 8, 1.0, 1.0);
    let error = plan(&[], Some(&cache)).unwrap_err();
    assert!(error.to_string().contains("data.random_shift=true"), "{error}");
    let shifted = plan(&["data.random_shift=true"], Some(&cache)).unwrap();
    let whole = plan(&[], None).unwrap();
    for part in ["encoder", "decoder"] {
        assert_eq!(shifted.gflop_per_image[part], whole.gflop_per_image[part]);
    }
    assert_eq!(shifted.teachers["clip"].bytes_per_view, 8 * (36 * 64 * 2 + 64 * 2 + 36 * 2));
}

/// The plan's steps are those that pretraining takes: for a cache with damaged images in several parts, for an unfinished cache, and if
/// nothing is left over.
#[test]
fn steps_are_those_of_the_run() {
    use clap::Parser;

    let mut world = World::new(17);
    for damaged in ["a/0004.png", "b/0011.png", "b/0015.png"] {
        let path = world.images_dir().join(damaged);
        schemas::atomic::write(&path, b"no picture").unwrap();
    }
    world.part_samples = 4;
    world.build_cache();
    let run = |args: &[String]| {
        let mut out = Vec::new();
        let cli = crate::cli::Cli::try_parse_from(args).unwrap();
        crate::run(&cli, &HubSettings::default(), None, &mut out)
            .map(|_| String::from_utf8(out).unwrap())
            .map_err(|error| format!("{error:#}"))
    };
    let planned = |settings: &[&str], json: bool| {
        let mut args: Vec<String> = ["trainer", "plan", "--peak-tflops", "1", "--recipe"].map(String::from).into();
        args.push(world.recipe().display().to_string());
        args.extend(["--cache".to_owned(), world.cache_dir().display().to_string()]);
        args.extend(settings.iter().flat_map(|set| ["--set".to_owned(), set.to_string()]));
        args.extend(json.then(|| "--json".to_owned()));
        run(&args).unwrap()
    };
    let compare = |name: &str, settings: &[&str], [images, steps, left_over]: [u64; 3]| {
        let plan: serde_json::Value = serde_json::from_str(&planned(settings, true)).unwrap();
        let found = ["images", "steps", "left_over_per_epoch"].map(|field| plan[field].as_u64().unwrap());
        assert_eq!(found, [images, steps, left_over], "{settings:?}");
        let more: Vec<&str> = settings.iter().flat_map(|set| ["--set", set]).collect();
        run(&world.pretrain_args(name, &more)).unwrap();
        let newest = crate::train::checkpoint::newest(&world.path(name)).unwrap().unwrap();
        let last = newest.file_name().unwrap().to_str().unwrap().to_owned();
        let step: u64 = last.rsplit('-').next().unwrap().parse().unwrap();
        assert_eq!(step, steps, "{settings:?}: {last}");
    };
    // 14 of 17 images in steps of 4, 7 and 2 x 3, four epochs.
    compare("four", &[], [14, 12, 2]);
    compare("seven", &["optim.batch_size=7"], [14, 8, 0]);
    compare("accumulated", &["optim.batch_size=3", "optim.accum_iter=2"], [14, 8, 2]);
    let text = planned(&[], false);
    assert!(text.contains("2 of 14 images are left over in each epoch"), "{text}");
    assert!(text.contains("without 3 images that the build could not use"), "{text}");

    // A part without its record is still to be built: counted whole, or not at all where the run may do without.
    let records: Vec<_> = std::fs::read_dir(world.cache_dir().join("teachers/clip"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.display().to_string().contains("00000.commit"))
        .collect();
    assert_eq!(records.len(), 1);
    std::fs::remove_file(&records[0]).unwrap();
    let whole: serde_json::Value = serde_json::from_str(&planned(&[], true)).unwrap();
    assert_eq!(whole["images"], 14);
    assert!(planned(&[], false).contains("unfinished parts: 1, counted"));
    let cache = Cache::open(&world.cache_dir()).unwrap();
    let first = cache.part_state(0).unwrap().samples.unwrap();
    let rest = 14 - first.file.rows / 2;
    let steps = 4 * (rest / 4);
    compare("part", &["data.allow_incomplete=true"], [rest, steps, rest % 4]);
}

#[test]
fn what_cannot_be_planned_is_refused() {
    let error = Estimate::of(&recipe(BASE, &[]), None, 1000, 1.0, 1.0).unwrap_err();
    assert!(error.to_string().contains("cannot fill one step"), "{error}");
    let world = World::with_cache(8);
    let cache = Cache::open(&world.cache_dir()).unwrap();
    let other = recipe(crate::testing::RECIPE, &["mimic.teachers=[\"dino\"]"]);
    let error = Estimate::of(&other, Some(&cache), 8, 1.0, 1.0).unwrap_err();
    assert!(error.to_string().contains("no teacher dino"), "{error}");
    let error = Estimate::of(&recipe(BASE, &[]), Some(&cache), 1_281_167, 1.0, 1.0).unwrap_err();
    assert!(error.to_string().contains("4x4 grid, the student a 14x14"), "{error}");
    let shifted = recipe(crate::testing::RECIPE, &["data.random_shift=true"]);
    let error = Estimate::of(&shifted, Some(&cache), 8, 1.0, 1.0).unwrap_err();
    assert!(error.to_string().contains("out of a larger one"), "{error}");
    let error = Estimate::of(&recipe(BASE, &[]), None, u64::MAX, 1.0, 1.0).unwrap_err();
    assert!(error.to_string().contains("more than any"), "{error}");
    let long = recipe(BASE, &["schedule.epochs=9223372036854775807"]);
    let error = Estimate::of(&long, None, 1_281_167, 1.0, 1.0).unwrap_err();
    assert!(error.to_string().contains("schedule.epochs"), "{error}");
}

/// If only the encoder mimics, nothing passes through the decoder, but its weights are still allocated.
#[test]
fn a_decoder_without_a_loss_costs_its_weights_alone() {
    let plan = |settings: &[&str]| Estimate::of(&recipe(BASE, settings), None, 1_281_167, 100.0, 0.5).unwrap();
    let (both, mimic) = (plan(&[]), plan(&["loss.w_rec=0.0"]));
    let decoder = both.params["decoder"] as f64;
    assert_eq!(mimic.params, both.params);
    assert_eq!(both.memory_bytes["params"] - mimic.memory_bytes["params"], 12.0 * decoder);
    let of_decoder = 256.0 * (8.0 * 197.0 * 512.0) * (8.0 + 2.0 * 14.0);
    let less = both.memory_bytes["activations"] - mimic.memory_bytes["activations"];
    assert!((less - of_decoder).abs() < 1.0, "{less}");
    let mut text = Vec::new();
    let recipe = recipe(BASE, &["loss.w_rec=0.0"]);
    mimic.write_text(&recipe, false, &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("86.2 M trained") && text.contains("26.0 are not"), "{text}");
}

/// Two matrices and a norm for each teacher and kind of token; what the hidden layer keeps is ten bytes a number in bf16.
#[test]
fn mlp_heads_count() {
    let plan = |settings: &[&str]| Estimate::of(&recipe(BASE, settings), None, 1_281_167, 100.0, 0.5).unwrap();
    let linear = plan(&["loss.w_cls=0.5"]);
    let mlp = plan(&["loss.w_cls=0.5", "mimic.head=mlp", "mimic.cls_loss=angle", "target.cls_norm=standardize"]);
    assert_eq!(linear.params["heads"], 2 * (768 * 768 + 768));
    assert_eq!(mlp.params["heads"], 2 * (768 * 3072 + 2 * 3072 + 3072 * 768));
    assert_eq!(linear.params["encoder"], mlp.params["encoder"]);
    let gflop = 3.0 * 2.0 * 50.0 * 2.0 * 768.0 * 3072.0 / 1e9;
    assert!((mlp.gflop_per_image["heads"] - gflop).abs() < 1e-9, "{}", mlp.gflop_per_image["heads"]);
    let more = mlp.memory_bytes["activations"] - linear.memory_bytes["activations"];
    assert_eq!(more, 256.0 * 50.0 * 3072.0 * 10.0);
}

#[test]
fn figures_have_three_digits_at_any_size() {
    let found = [0.0123456, 0.1789, 58.34, 989.0, 14947.0].map(figure);
    assert_eq!(found, ["0.0123", "0.179", "58.3", "989", "14947"]);
}

/// The average is one more f32 for every trained parameter. A checkpointed block keeps only its input, four bytes per channel, except for the
/// one that is recomputed: ViT-B keeps 50 tokens of 768 in 12 blocks, the decoder 197 of 512 in 8, whose blocks are the larger ones.
#[test]
fn memory_follows_the_average_and_checkpointing() {
    let bytes =
        |settings: &[&str]| Estimate::of(&recipe(BASE, settings), None, 1_281_167, 100.0, 0.5).unwrap().memory_bytes;
    let plain = bytes(&["run.precision=\"bf16\""]);
    assert!(!plain.contains_key("ema"));
    let (encoder, decoder) = (50.0 * 768.0, 197.0 * 512.0);
    let kept = 8.0 + 2.0 * 14.0;
    let expected = 256.0 * kept * (12.0 * encoder + 8.0 * decoder);
    assert!((plain["activations"] - expected).abs() < 1.0, "{plain:?}");
    let average = bytes(&["optim.ema_decay=0.9999"]);
    assert_eq!(4.0 * average["ema"], average["params"]);
    let checkpointed = bytes(&["run.precision=\"bf16\"", "run.grad_checkpointing=true"]);
    let expected = 256.0 * (4.0 * (12.0 * encoder + 8.0 * decoder) + kept * decoder);
    assert!((checkpointed["activations"] - expected).abs() < 1.0, "{checkpointed:?}");
    assert_eq!(checkpointed["params"], plain["params"]);
}

/// Against published figures: ViT-B/16 with 1000 classes has 86.57 M parameters and 17.56 G multiply-adds (two FLOPs each) per forward pass.
#[test]
fn a_fine_tuning_is_planned_for_its_encoder() {
    use models::encoder::EncoderConfig;
    use models::vit::VitConfig;

    use crate::recipe::finetune::FinetuneRecipe;

    let text = "[optim]\nbatch_size = 128\naccum_iter = 8\nema_decay = 0.9999\n[schedule]\nepochs = 100\n";
    let recipe = |settings: &[String]| FinetuneRecipe::parse(text, "test", settings).unwrap();
    let encoder = EncoderConfig::Vit(VitConfig::BASE_PATCH16);
    let plan = |images| Estimate::of_finetuning(&recipe(&[]), &encoder, 1000, images, 100.0, 0.5);
    let found = plan(1_281_167).unwrap();
    assert_eq!(found.params["encoder"] + found.params["classifier"], 86_567_656);
    assert_eq!(found.params["classifier"], 769_000);
    assert_eq!((found.steps, found.images_seen), (125_100, 125_100 * 1024));
    let step = found.gflop_per_image["total"];
    assert!((step / 3.0 - 2.0 * 17.56).abs() < 0.1, "{step}");
    assert_eq!(found.memory_bytes["ema"], 4.0 * 86_567_656.0);
    let thrifty = recipe(&["run.grad_checkpointing=true".to_owned()]);
    let thrifty = Estimate::of_finetuning(&thrifty, &encoder, 1000, 1_281_167, 100.0, 0.5).unwrap();
    assert!(thrifty.memory_bytes["activations"] < 0.5 * found.memory_bytes["activations"]);
    assert!(plan(1000).unwrap_err().to_string().contains("cannot fill one step"));
}

#[test]
fn a_recipe_of_fine_tuning_says_what_is_missing() {
    use clap::Parser;

    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/finetune_tiny.toml");
    let run = |more: &[&str]| {
        let recipe = path.to_str().unwrap();
        let mut args = vec!["trainer", "plan", "--recipe", recipe, "--peak-tflops", "1"];
        args.extend(more);
        let mut out = Vec::new();
        let cli = crate::cli::Cli::try_parse_from(args).unwrap();
        crate::run(&cli, &HubSettings::default(), None, &mut out)
            .map(|_| String::from_utf8(out).unwrap())
            .map_err(|error| format!("{error:#}"))
    };
    assert!(run(&[]).unwrap_err().contains("--num-images"));
    assert!(run(&["--num-images", "8000"]).unwrap_err().contains("--init"));
    assert!(run(&["--cache", "x"]).unwrap_err().contains("reads no cache"));
    let teacher = path.ancestors().nth(3).unwrap().join("assets/teachers/clip-tiny");
    let init = ["--init", teacher.to_str().unwrap(), "--num-images", "8000", "--num-classes", "21"];
    let text = run(&init).unwrap();
    assert!(text.contains("classifier of 21 classes") && text.contains("10 epochs of 8000"), "{text}");
}
