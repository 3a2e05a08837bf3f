use clap::Parser;
use hub::HubSettings;
use models::mr_mae::MrMae;

use super::*;
use crate::cli::Cli;
use crate::config::Recipe;
use crate::pretrain::student_config;
use crate::testing::{RECIPE, World};

fn mae(settings: &[&str]) -> (ParamStore, Mae) {
    let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
    let recipe = Recipe::parse(RECIPE, "test", &settings).unwrap();
    let store = ParamStore::new(Device::Cpu, 0);
    let mae = Mae::new(&store.root(), &recipe.mae_config()).unwrap();
    (store, mae)
}

fn inputs() -> (Tensor, Masking) {
    let random = |shape: &[i64], name| models::init::Init::Normal { std: 1.0 }.tensor(shape, 4, name);
    let masking = random_masking(&random(&[2, 16], "noise"), 4);
    (random(&[2, 3, 32, 32], "imgs"), masking)
}

/// Visible patches are the original's in every column; removed ones are gray, then the prediction.
#[test]
fn visible_patches_are_the_original_s() {
    let (_store, mae) = mae(&[]);
    let (imgs, masking) = inputs();
    let sheet = Sheet::of(&mae, &imgs, &masking);
    let [original, masked, reconstructed] = &sheet.columns[..] else { panic!("{} columns", sheet.columns.len()) };
    let mask = masking.mask.unsqueeze(-1).expand([2, 16, 192], false);
    let removed = unpatchify(&mask, 8, [4, 4]);
    let difference = |a: &Tensor, of: &Tensor| {
        let difference = (a - original).abs() * of;
        difference.max().double_value(&[])
    };
    let seen = 1.0 - &removed;
    assert!(difference(masked, &seen) < 1e-6 && difference(reconstructed, &seen) < 1e-6);
    assert!(difference(reconstructed, &removed) > 0.01);
    let gray = (masked - REMOVED).abs() * &removed;
    assert!(gray.max().double_value(&[]) < 1e-6);
}

/// A prediction of zeros is each removed patch's own mean: it is de-normalised by the original's statistics.
#[test]
fn predictions_are_given_the_original_s_mean_and_deviation() {
    let (store, mae) = mae(&["model.norm_pix_loss=true"]);
    let (imgs, masking) = inputs();
    tch::no_grad(|| {
        for name in ["decoder_pred.weight", "decoder_pred.bias"] {
            let _ = store.get(name).unwrap().zero_();
        }
    });
    let sheet = Sheet::of(&mae, &imgs, &masking);
    let removed = &masking.mask.unsqueeze(-1);
    let patches = patchify(&imgs, 8);
    let mean = patches.mean_dim(-1, true, None).expand_as(&patches);
    let expected = &patches * (1.0 - removed) + mean * removed;
    let expected = pixels(&unpatchify(&expected, 8, [4, 4]));
    let error = (&sheet.columns[2] - expected).abs().max();
    assert!(error.double_value(&[]) < 1e-5);
}

#[test]
fn maps_show_similarity_where_it_is_known() {
    let (_store, mae) = mae(&[]);
    let (imgs, masking) = inputs();
    let mut sheet = Sheet::of(&mae, &imgs, &masking);
    let map = Tensor::from_slice(&[0.0f32, 1.0, 1.0, 1.0]).repeat([2, 1]);
    sheet.add_map(&map, &masking.ids_keep);
    let column = &sheet.columns[3];
    let colour = |id: i64| {
        let (y, x) = (id / 4 * 8 + 3, id % 4 * 8 + 5);
        [0, 1, 2].map(|c| (column.double_value(&[0, c, y, x]) * 255.0).round())
    };
    assert_eq!(colour(masking.ids_keep.int64_value(&[0, 0])), [68.0, 1.0, 84.0]);
    assert_eq!(colour(masking.ids_keep.int64_value(&[0, 1])), [253.0, 231.0, 37.0]);
    assert_eq!(colour(masking.ids_removed.int64_value(&[0, 0])), [184.0; 3]);
    let image = sheet.image().unwrap();
    // Panels of 32 pixels are shown four times as large.
    assert_eq!([image.width(), image.height()], [4 * 128 + 3 * 4, 2 * 128 + 4]);
}

fn run(args: &[String]) -> anyhow::Result<String> {
    let mut out = Vec::new();
    crate::run(&Cli::try_parse_from(args).unwrap(), &HubSettings::default(), &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

/// A run leaves pictures with its checkpoints, and the command draws others; both are keyed.
#[test]
fn runs_and_the_command_draw() {
    let world = World::with_cache(8);
    run(&world.pretrain_args("run", &[])).unwrap();
    let found = sheets(&world.path("run")).unwrap();
    assert_eq!(found.len(), 3, "one with each checkpoint: {found:?}");
    let drawn = image::open(&found[0]).unwrap();
    assert_eq!(drawn.width(), 4 * 128 + 3 * 4, "and the map of one teacher");
    run(&world.pretrain_args("none", &["--set", "run.pictures=0"])).unwrap();
    assert!(sheets(&world.path("none")).unwrap().is_empty());

    let text = |name: &str| world.path(name).to_str().unwrap().to_owned();
    let draw = |out: &str, more: &[&str]| {
        let mut args = ["trainer", "reconstruct", "--device", "cpu", "--count", "3"].map(String::from).to_vec();
        args.extend(["--model".into(), text("run"), "--images".into(), text("images")]);
        args.extend(["--out".into(), text(out)]);
        args.extend(more.iter().map(|s| s.to_string()));
        run(&args)
    };
    assert!(draw("a.png", &[]).unwrap().contains("3 images"));
    draw("b.png", &[]).unwrap();
    draw("c.png", &["--seed", "1"]).unwrap();
    let bytes = |name: &str| fs::read(world.path(name)).unwrap();
    assert!(bytes("a.png") == bytes("b.png") && bytes("a.png") != bytes("c.png"));
    let refused = draw("d.png", &["--mask-ratio", "1.5"]).unwrap_err();
    assert!(refused.to_string().contains("--mask-ratio"), "{refused:#}");
}

/// The network of pretraining has the autoencoder that is drawn.
#[test]
fn the_student_s_autoencoder_is_what_is_drawn() {
    let recipe = Recipe::parse(RECIPE, "test", &[]).unwrap();
    let store = ParamStore::new(Device::Cpu, 0);
    let config = student_config(&recipe, &[("clip".to_owned(), 8)].into(), &[].into());
    let student = MrMae::new(&store.root(), &config).unwrap();
    let (_alone, mae) = mae(&[]);
    let (imgs, masking) = inputs();
    let [a, b] = [student.mae(), &mae].map(|mae| Sheet::of(mae, &imgs, &masking).image().unwrap());
    assert!(a == b);
}
