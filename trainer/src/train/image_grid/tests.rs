use models::masking::random_masking;
use models::mr_mae::MrMae;
use models::params::ParamStore;

use super::*;
use crate::recipe::{Experiment, Recipe};
use crate::testing::RECIPE;

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
    let grid = ImageGrid::of(&mae, &imgs, &masking);
    let [original, masked, reconstructed] = &grid.columns[..] else { panic!("{} columns", grid.columns.len()) };
    let mask = masking.mask.unsqueeze(-1).expand([2, 16, 192], false);
    let removed = unpatchify(&mask, 8, [4, 4]);
    let difference = |a: &Tensor, mask: &Tensor| {
        let difference = (a - original).abs() * mask;
        difference.max().double_value(&[])
    };
    let seen = 1.0 - &removed;
    assert!(difference(masked, &seen) < 1e-6 && difference(reconstructed, &seen) < 1e-6);
    assert!(difference(reconstructed, &removed) > 0.01);
    let gray = (masked - REMOVED).abs() * &removed;
    assert!(gray.max().double_value(&[]) < 1e-6);
}

/// A prediction of zeros is each removed patch's own mean: it is de-normalized by the original's statistics.
#[test]
fn predictions_are_given_the_original_s_mean_and_std() {
    let (store, mae) = mae(&["model.norm_pix_loss=true"]);
    let (imgs, masking) = inputs();
    tch::no_grad(|| {
        for name in ["decoder_pred.weight", "decoder_pred.bias"] {
            let _ = store.get(name).unwrap().zero_();
        }
    });
    let grid = ImageGrid::of(&mae, &imgs, &masking);
    let removed = &masking.mask.unsqueeze(-1);
    let patches = patchify(&imgs, 8);
    let mean = patches.mean_dim(-1, true, None).expand_as(&patches);
    let expected = &patches * (1.0 - removed) + mean * removed;
    let expected = pixels(&unpatchify(&expected, 8, [4, 4]));
    let error = (&grid.columns[2] - expected).abs().max();
    assert!(error.double_value(&[]) < 1e-5);
}

#[test]
fn maps_show_similarity_where_it_is_known() {
    let (_store, mae) = mae(&[]);
    let (imgs, masking) = inputs();
    let mut grid = ImageGrid::of(&mae, &imgs, &masking);
    let map = Tensor::from_slice(&[0.0f32, 1.0, 1.0, 1.0]).repeat([2, 1]);
    grid.add_map(&map, &masking.ids_keep);
    let column = &grid.columns[3];
    let color = |id: i64| {
        let (y, x) = (id / 4 * 8 + 3, id % 4 * 8 + 5);
        [0, 1, 2].map(|c| (column.double_value(&[0, c, y, x]) * 255.0).round())
    };
    assert_eq!(color(masking.ids_keep.int64_value(&[0, 0])), [68.0, 1.0, 84.0]);
    assert_eq!(color(masking.ids_keep.int64_value(&[0, 1])), [253.0, 231.0, 37.0]);
    assert_eq!(color(masking.ids_removed.int64_value(&[0, 0])), [184.0; 3]);
    let image = grid.image().unwrap();
    // Panels of 32 pixels are shown four times as large.
    assert_eq!([image.width(), image.height()], [4 * 128 + 3 * 4, 2 * 128 + 4]);
}

/// Drawing the student of pretraining gives the same image as drawing its autoencoder alone.
#[test]
fn the_student_s_autoencoder_is_what_is_drawn() {
    let recipe = Recipe::parse(RECIPE, "test", &[]).unwrap();
    let store = ParamStore::new(Device::Cpu, 0);
    let config = recipe.mr_mae_config(&[("clip".to_owned(), 8)].into(), &[].into());
    let student = MrMae::new(&store.root(), &config).unwrap();
    let (_alone, mae) = mae(&[]);
    let (imgs, masking) = inputs();
    let [a, b] = [student.mae(), &mae].map(|mae| ImageGrid::of(mae, &imgs, &masking).image().unwrap());
    assert!(a == b);
}
