//! Runs whose students see a view at two resolutions.

use tch::Kind;

use super::*;

/// Views of 8 x 8 patches, for the student's 4 x 4.
fn twice_as_large(images: usize, codec: Codec) -> World {
    let mut world = larger_world(images, codec);
    std::fs::remove_dir_all(world.cache_dir()).unwrap();
    world.grid = 8;
    world.build_cache();
    world
}

/// `x [64, K]` at the patches of a view, as the student's `[16, K]`: averaged by libtorch, or those of the part at `[column, row]`.
fn student_s(x: &Tensor, part: Option<[usize; 2]>) -> Tensor {
    let square = x.to_kind(Kind::Float).view([8, 8, -1]);
    let square = match part {
        Some([column, row]) => square.narrow(0, row as i64, 4).narrow(1, column as i64, 4),
        None => pooled(&square),
    };
    square.reshape([16, -1])
}

fn pooled(square: &Tensor) -> Tensor {
    let channels_first = square.permute([2, 0, 1]).contiguous();
    channels_first.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None).permute([1, 2, 0])
}

/// What the student sees of a view of 64 pixels: nothing but the whole one at half the resolution, or the part that begins at a column and row.
fn found(whole: &images::RgbImage, img: &Tensor) -> Option<[usize; 2]> {
    let view = Tensor::from_slice(&whole.data).view([64, 64, 3]);
    if (pooled(&view.to_kind(Kind::Float)) + 0.5).floor().to_kind(Kind::Uint8) == *img {
        return None;
    }
    let mut offsets = (0..5).flat_map(|column| (0..5).map(move |row| [column, row]));
    let is_it =
        |&[column, row]: &[usize; 2]| view.narrow(0, 8 * row as i64, 32).narrow(1, 8 * column as i64, 32) == *img;
    Some(offsets.find(is_it).expect("the student's pixels are a part of the view, or all of it"))
}

/// Pixels, tokens and attention of images at half the resolution are means of 2 x 2 of the view's, and those of the others are the view's own: for
/// every codec, at visible and at all patches, from the cache, from the network and from both. The tolerances are those of
/// `a_shifted_student_has_the_teachers_own_patches`.
#[test]
fn targets_are_the_teachers_own_patches_or_their_means() {
    let idxs = [5, 0, 1, 2];
    for (codec, tolerance) in codecs() {
        let world = twice_as_large(8, codec.clone());
        let network = Teacher::load(&world.teacher_dir(), Device::Cpu).unwrap();
        let online = [format!("clip={}", world.teacher_dir().display())];
        let both = ["data.random_shift=true", "data.half_resolution=0.5"];
        let focused = [&["mask.kind=focused", "mask.teacher=clip", "loss.w_cls=0.5"][..], &both].concat();
        let fresh = [&["data.fresh=0.5"][..], &both].concat();
        let mut seen = std::collections::BTreeSet::new();
        for (settings, online) in
            [(&focused[..], &[][..]), (&focused, &online), (&both, &[]), (&both, &online), (&fresh, &online)]
        {
            let (recipe, run_teachers, plan) = open(&world, settings, online);
            let joined = &plan.joined.members()[0];
            for epoch in [1, 3, 5] {
                let mut batch = plan.shape.allocate(Device::Cpu).unwrap();
                plan.fill(&mut batch, epoch, &idxs).unwrap();
                let (features, masking) = teachers::features(&recipe, &run_teachers, &batch, Device::Cpu).unwrap();
                for (slot, &idx) in idxs.iter().enumerate() {
                    let (sample, stored) = joined.samples.get(idx as usize, 1);
                    let view = plan.fresh_view(epoch, idx as usize).unwrap_or(stored);
                    let img = images::decode(&joined.images.read(sample, 1).unwrap()).unwrap();
                    let whole = images::render(&img, &view, 64).unwrap();
                    let part = found(&whole, &batch.imgs.get(slot as i64));
                    seen.insert(part);

                    let pixels = images::render(&img, &view, 32).unwrap();
                    let pixels = Tensor::from_slice(&pixels.data).view([1, 32, 32, 3]).permute([0, 3, 1, 2]);
                    let output = network.forward(&pixels.contiguous(), Precision::F32).unwrap();
                    let mut tokens = student_s(&output.tokens, part);
                    if features.at == Patches::Visible {
                        tokens = tokens.index_select(0, &masking.ids_keep.get(slot as i64));
                    }
                    let at = slot as i64;
                    let difference = relative_l2(&features.tokens["clip"].get(at), &tokens);
                    let what = format!("{codec}, {settings:?}, {online:?}, {part:?}");
                    assert!(difference <= tolerance, "{what}: tokens differ by {difference}");
                    if let Some(cls_attn) = &features.cls_attn {
                        let expected = student_s(&output.cls_attn.view([64, 1]), part).view([16]);
                        let difference = relative_l2(&cls_attn.get(at), &expected);
                        assert!(difference <= 1e-3, "{what}: attention differs by {difference}");
                        let difference = relative_l2(&features.cls["clip"].get(at), &output.cls.get(0));
                        assert!(difference <= tolerance, "{what}: CLS tokens differ by {difference}");
                    }
                }
            }
        }
        assert!(seen.len() > 4 && seen.contains(&None), "{seen:?}");
    }
}

#[test]
fn batches_are_the_same_for_any_threads_any_start_and_pixels_in_memory() {
    let world = twice_as_large(14, Codec::F16);
    let mut settings = FOCUSED.to_vec();
    settings.extend(["data.random_shift=true", "data.half_resolution=0.5"]);
    let expected = load(plan(&world, &settings, &[]), 1, 0..9, false);
    assert_eq!(expected, load(plan(&world, &settings, &[]), 4, 0..9, true), "one thread and four threads");
    assert_eq!(expected[4..], load(plan(&world, &settings, &[]), 2, 4..9, true), "from step 4");
    settings.push("data.pixel_cache_mib=1");
    assert_eq!(expected, load(plan(&world, &settings, &[]), 3, 0..9, true), "views kept in memory");
}
