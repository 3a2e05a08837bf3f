use std::sync::Arc;

use hub::HubSettings;
use images::rng::{Purpose, Rng};
use models::precision::Precision;
use models::teacher::Teacher;
use schemas::{Cache, Codec};
use tch::Tensor;

use super::*;
use crate::data::batch::{MaskInput, Patches, RowsBatch, TeacherBatch};
use crate::data::images::Images;
use crate::data::join;
use crate::data::joined::JoinedCaches;
use crate::data::mimic::MimicDataset;
use crate::data::teachers::{self, RunTeacher};
use crate::dist::Share;
use crate::recipe::{Experiment, Recipe};
use crate::testing::{RECIPE, TEACHER_WIDTH, World, relative_l2};

mod half_resolution;

fn plan(world: &World, settings: &[&str], online: &[String]) -> MimicDataset {
    open(world, settings, online).2
}

/// The recipe, its teachers and its data set.
fn open(world: &World, settings: &[&str], online: &[String]) -> (Recipe, Vec<RunTeacher>, MimicDataset) {
    let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
    let recipe = Recipe::parse(RECIPE, "test", &settings).unwrap();
    let cache = Arc::new(Cache::open(&world.cache_dir()).unwrap());
    let teachers =
        teachers::open(&recipe, std::slice::from_ref(&cache), online, &HubSettings::default(), Device::Cpu).unwrap();
    let images = Images::open(&cache, world.images_dir().to_str()).unwrap();
    let samples = join::join(&cache, &[], &images, &recipe.data, &|_, _| ()).unwrap();
    let sampler = Sampler::new(recipe.run.seed, samples.len(), recipe.optim.effective_batch()).unwrap();
    let joined = JoinedCaches::new(vec![(cache, Arc::new(images), samples)]);
    let share = Share::whole(recipe.optim.batch_size, recipe.optim.accum_iter);
    let dataset = MimicDataset::new(&recipe, &teachers, joined, sampler, share).unwrap();
    (recipe, teachers, dataset)
}

/// Samples and tensors of a batch, as bytes.
type LoadedBatch = (Vec<(u64, u16)>, Vec<Vec<u8>>);

fn mask_of(batch: &MimicBatch) -> &Tensor {
    match &batch.mask {
        MaskInput::Order(tensor) | MaskInput::Noise(tensor) => tensor,
    }
}

/// Every tensor of every batch of `steps`, as bytes.
fn load(plan: MimicDataset, threads: usize, steps: std::ops::Range<u64>, recycle: bool) -> Vec<LoadedBatch> {
    let n = steps.clone().count();
    let mut loader = Loader::start(Arc::new(plan), steps, threads, 2, Device::Cpu).unwrap();
    let bytes = |t: &Tensor| {
        let mut out = vec![0; t.numel() * t.kind().elt_size_in_bytes()];
        t.copy_data_u8(&mut out, t.numel());
        out
    };
    let mut batches = Vec::new();
    for _ in 0..n {
        let batch = loader.next_batch().unwrap();
        let mut tensors = vec![bytes(&batch.imgs), bytes(mask_of(&batch))];
        tensors.extend(batch.patches.iter().map(bytes));
        tensors.extend(batch.drop_path.iter().map(bytes));
        for teacher in &batch.teachers {
            if let Some(RowsBatch { tokens, outliers, cls, cls_attn }) = &teacher.rows {
                let columns = tokens.iter().chain(outliers).chain(cls).chain(cls_attn);
                tensors.extend(columns.map(bytes));
            }
            tensors.extend(teacher.pixels.iter().map(bytes));
        }
        batches.push((batch.samples.clone(), tensors));
        if recycle {
            loader.recycle([batch]);
        }
    }
    assert!(loader.next_batch().is_err(), "the loader ends with its steps");
    batches
}

const FOCUSED: [&str; 3] = ["mask.kind=focused", "mask.teacher=clip", "model.drop_path=0.1"];

#[test]
fn batches_are_the_same_for_any_threads_and_any_start() {
    let world = World::with_cache(14);
    let expected = load(plan(&world, &FOCUSED, &[]), 1, 0..9, false);
    assert_eq!(
        expected,
        load(plan(&world, &FOCUSED, &[]), 4, 0..9, true),
        "one thread, four threads and recycled memory"
    );
    assert_eq!(expected[4..], load(plan(&world, &FOCUSED, &[]), 2, 4..9, true), "from step 4");
    let mut kept = FOCUSED.to_vec();
    kept.push("data.pixel_cache_mib=1");
    assert_eq!(expected, load(plan(&world, &kept, &[]), 3, 0..9, true), "crops kept in memory");
}

/// A world whose teachers saw views of 6 x 6 patches, for the student's 4 x 4. Its images are noise, no two parts of which are alike.
fn larger_world(images: usize, codec: Codec) -> World {
    let mut world = World::new(images);
    (world.grid, world.codec) = (6, codec);
    for i in 0..images {
        let mut rng = Rng::new(9, Purpose::Select, &[i as u64]);
        let noise = image::RgbImage::from_fn(40, 32, |_, _| image::Rgb([0; 3].map(|_: u8| rng.range(256) as u8)));
        noise.save(world.images_dir().join(["a", "b"][i % 2]).join(format!("{i:04}.png"))).unwrap();
    }
    world.build_cache();
    world
}

#[test]
fn shifted_batches_are_the_same_for_any_threads_and_any_start() {
    let world = larger_world(14, Codec::F16);
    let mut settings = FOCUSED.to_vec();
    settings.push("data.random_shift=true");
    let expected = load(plan(&world, &settings, &[]), 1, 0..9, false);
    assert_eq!(expected, load(plan(&world, &settings, &[]), 4, 0..9, true), "one thread and four threads");
    assert_eq!(expected[4..], load(plan(&world, &settings, &[]), 2, 4..9, true), "from step 4");
    settings.push("data.pixel_cache_mib=1");
    assert_eq!(expected, load(plan(&world, &settings, &[]), 3, 0..9, true), "views kept in memory");

    // With fresh views too: what is of unspecified content is not compared, since it is not used.
    settings.push("data.fresh=1.0");
    let online = [format!("clip={}", world.teacher_dir().display())];
    let expected = load(plan(&world, &settings, &online), 1, 0..9, false);
    assert_eq!(expected, load(plan(&world, &settings, &online), 4, 0..9, true), "fresh, one thread and four threads");
    assert_eq!(expected[4..], load(plan(&world, &settings, &online), 2, 4..9, true), "fresh, from step 4");
}

/// What the student sees of a view: column and row of the first patch, found by its pixels alone.
fn found_window(whole: &images::RgbImage, img: &Tensor) -> [usize; 2] {
    let view = Tensor::from_slice(&whole.data).view([48, 48, 3]);
    let offsets = (0..3).flat_map(|column| (0..3).map(move |row| [column, row]));
    let is_it =
        |&[column, row]: &[usize; 2]| view.narrow(0, 8 * row as i64, 32).narrow(1, 8 * column as i64, 32) == *img;
    let found: Vec<_> = offsets.filter(is_it).collect();
    assert_eq!(found.len(), 1, "the student's pixels are one part of the view: {found:?}");
    found[0]
}

/// Every codec, and the relative L2 by which what it stores may differ from the teacher's tokens.
fn codecs() -> [(Codec, f64); 4] {
    [(Codec::F32, 1e-6), (Codec::F16, 1e-3), (Codec::Bf16, 1e-2), (Codec::I8(affine()), 3e-2)]
}

/// Steps between -8 and 8, with two channels kept apart.
fn affine() -> schemas::Affine {
    schemas::Affine {
        scale: vec![8.0 / 127.0; TEACHER_WIDTH as usize],
        offset: vec![0.0; TEACHER_WIDTH as usize],
        outliers: vec![3, 60],
        images: 8,
    }
}

/// With a shift, the student's pixels are a part of the whole rendered view, and tokens and attention are what the teacher itself says of the
/// patches in that part: for every codec, at visible and at all patches, from the cache and from the network.
#[test]
fn a_shifted_student_has_the_teachers_own_patches() {
    let idxs = [5, 0, 1, 2];
    for (codec, tolerance) in codecs() {
        let world = larger_world(8, codec.clone());
        let network = Teacher::load(&world.teacher_dir(), Device::Cpu).unwrap();
        let online = [format!("clip={}", world.teacher_dir().display())];
        let shift = "data.random_shift=true";
        let focused = ["mask.kind=focused", "mask.teacher=clip", "loss.w_cls=0.5", shift];
        let mut offsets = std::collections::BTreeSet::new();
        for (settings, online) in [(&focused[..], &[][..]), (&focused, &online), (&[shift], &[]), (&[shift], &online)] {
            let (recipe, run_teachers, plan) = open(&world, settings, online);
            let joined = &plan.joined.members()[0];
            for epoch in [1, 3, 5] {
                let mut batch = plan.shape.allocate(Device::Cpu).unwrap();
                plan.fill(&mut batch, epoch, &idxs).unwrap();
                let (features, masking) = teachers::features(&recipe, &run_teachers, &batch, Device::Cpu).unwrap();
                for (slot, &idx) in idxs.iter().enumerate() {
                    let (sample, view) = joined.samples.get(idx as usize, 1);
                    let img = images::decode(&joined.images.read(sample, 1).unwrap()).unwrap();
                    let whole = images::render(&img, &view, 48).unwrap();
                    let [column, row] = found_window(&whole, &batch.imgs.get(slot as i64));
                    offsets.insert([column, row]);

                    let pixels = images::render(&img, &view, 24).unwrap();
                    let pixels = Tensor::from_slice(&pixels.data).view([1, 24, 24, 3]).permute([0, 3, 1, 2]);
                    let output = network.forward(&pixels.contiguous(), Precision::F32).unwrap();
                    let part = |x: &Tensor| {
                        let square = x.view([6, 6, -1]);
                        square.narrow(0, row as i64, 4).narrow(1, column as i64, 4).reshape([16, -1])
                    };
                    let mut tokens = part(&output.tokens);
                    if features.at == Patches::Visible {
                        tokens = tokens.index_select(0, &masking.ids_keep.get(slot as i64));
                    }
                    let at = slot as i64;
                    let difference = relative_l2(&features.tokens["clip"].get(at), &tokens);
                    assert!(
                        difference <= tolerance,
                        "{codec}, {settings:?}, {online:?}: tokens differ by {difference}"
                    );
                    if settings.len() > 1 {
                        let cls_attn = features.cls_attn.as_ref().unwrap().get(at);
                        let difference = relative_l2(&cls_attn, &part(&output.cls_attn).view([16]));
                        assert!(difference <= 1e-3, "{codec}, {online:?}: attention differs by {difference}");
                        let difference = relative_l2(&features.cls["clip"].get(at), &output.cls.get(0));
                        assert!(difference <= tolerance, "{codec}, {online:?}: CLS tokens differ by {difference}");
                    }
                }
            }
        }
        assert!(offsets.len() > 3, "{offsets:?}");
    }
}

/// A fresh view is a crop of the cache's policy by seed, epoch and sample; its pixels and the teacher's features of it are what the batch has. A
/// stored view has the same as without fresh ones, bit for bit. For every codec, with and without a shift, and in parts of the batch.
#[test]
fn fresh_views_have_features_of_their_own_and_stored_ones_their_rows() {
    let idxs = [5, 0, 1, 2];
    let focused = ["mask.kind=focused", "mask.teacher=clip", "loss.w_cls=0.5", "data.random_shift=true"];
    let (mut counts, mut seen) = ([0; 2], std::collections::BTreeSet::new());
    for (codec, settings) in [
        (Codec::F16, &focused[..]),
        (Codec::F16, &["data.random_shift=true"]),
        (Codec::I8(affine()), &["loss.w_cls=0.5", "data.random_shift=true"]),
        (Codec::Bf16, &["model.img_size=48", "loss.w_cls=0.5"]),
    ] {
        let world = larger_world(8, codec);
        let network = Teacher::load(&world.teacher_dir(), Device::Cpu).unwrap();
        let online = [format!("clip={}", world.teacher_dir().display())];
        let (recipe, run_teachers, plan) = open(&world, &[settings, &["data.fresh=0.4"]].concat(), &online);
        let stored = open(&world, settings, &[]);
        let grid = i64::from(recipe.grid());
        for epoch in 0..6 {
            let load = |recipe: &Recipe, teachers: &[RunTeacher], plan: &MimicDataset| {
                let mut batch = plan.shape.allocate(Device::Cpu).unwrap();
                plan.fill(&mut batch, epoch, &idxs).unwrap();
                let (features, masking) = teachers::features(recipe, teachers, &batch, Device::Cpu).unwrap();
                (batch, features, masking)
            };
            let (batch, features, masking) = load(&recipe, &run_teachers, &plan);
            let (stored_batch, stored_features, stored_masking) = load(&stored.0, &stored.1, &stored.2);
            let parts: Vec<_> = batch.micro_batches(2).collect();
            let of_parts =
                parts.iter().map(|part| teachers::features(&recipe, &run_teachers, part, Device::Cpu).unwrap());
            let of_parts: Vec<_> = of_parts.collect();
            for (slot, &idx) in idxs.iter().enumerate() {
                let at = slot as i64;
                let tokens = features.tokens["clip"].get(at);
                let part = of_parts[slot / 2].0.tokens["clip"].get(at % 2);
                assert!(relative_l2(&part, &tokens) < 1e-5, "a part of the batch");
                let cls = features.cls.get("clip").map(|cls| cls.get(at));
                let img = batch.imgs.get(at);
                counts[usize::from(batch.fresh[slot])] += 1;
                if !batch.fresh[slot] {
                    assert_eq!(batch.samples[slot], (u64::from(idx), (epoch % 2) as u16));
                    assert_eq!(img, stored_batch.imgs.get(at));
                    assert_eq!(masking.ids_keep.get(at), stored_masking.ids_keep.get(at));
                    let float = |x: &Tensor| x.get(at).to_kind(tch::Kind::Float);
                    assert_eq!(tokens, float(&stored_features.tokens["clip"]));
                    assert_eq!(cls, stored_features.cls.get("clip").map(float));
                    continue;
                }
                assert_eq!(batch.samples[slot], (u64::from(idx), u16::MAX));
                let joined = &plan.joined.members()[0];
                let (sample, _) = joined.samples.get(idx as usize, 0);
                let source = images::decode(&joined.images.read(sample, 0).unwrap()).unwrap();
                let mut rng = Rng::new(recipe.run.seed, Purpose::Fresh, &[epoch, u64::from(idx)]);
                assert!(rng.uniform_f64() < 0.4);
                let (crop, flip) = images::draw_crop(&world.policy, &mut rng, source.width, source.height);
                let view = schemas::View { index: 0, crop, flip };
                seen.insert((epoch, idx, crop.x, crop.y, crop.w, crop.h, flip));

                let whole = images::render(&source, &view, 48).unwrap();
                let [column, row] = match grid {
                    4 => found_window(&whole, &img),
                    _ => {
                        assert_eq!(img, Tensor::from_slice(&whole.data).view([48, 48, 3]));
                        [0, 0]
                    }
                };
                let pixels = images::render(&source, &view, 24).unwrap();
                let pixels = Tensor::from_slice(&pixels.data).view([1, 24, 24, 3]).permute([0, 3, 1, 2]);
                let output = network.forward(&pixels.contiguous(), Precision::F32).unwrap();
                let part = |x: &Tensor| {
                    let square = x.view([6, 6, -1]);
                    square.narrow(0, row as i64, grid).narrow(1, column as i64, grid).reshape([grid * grid, -1])
                };
                let mut expected = part(&output.tokens);
                if features.at == Patches::Visible {
                    expected = expected.index_select(0, &masking.ids_keep.get(at));
                }
                let difference = relative_l2(&tokens, &expected);
                assert!(difference < 1e-5, "{settings:?}: tokens differ by {difference}");
                if let Some(cls) = cls {
                    assert!(relative_l2(&cls, &output.cls.get(0)) < 1e-5);
                }
                if let Some(cls_attn) = &features.cls_attn {
                    assert!(relative_l2(&cls_attn.get(at), &part(&output.cls_attn).flatten(0, -1)) < 1e-3);
                }
            }
        }
    }
    // The four settings draw the same views, which are new in every epoch.
    let crops: std::collections::BTreeSet<_> =
        seen.iter().map(|&(_, idx, x, y, w, h, flip)| (idx, x, y, w, h, flip)).collect();
    assert!(counts[0] > 4 && counts[1] == 4 * seen.len() && crops.len() == seen.len() && seen.len() > 4, "{counts:?}");
}

/// 640 draws at probability 0.3 have a standard deviation of 12 around 192.
#[test]
fn the_share_of_fresh_views_is_the_recipes() {
    let world = World::with_cache(8);
    let online = [format!("clip={}", world.teacher_dir().display())];
    for (setting, range) in [("data.fresh=0.3", 145..240), ("data.fresh=1.0", 640..641), ("data.fresh=0.0", 0..1)] {
        let plan = plan(&world, &[setting], &online);
        let mut batch = plan.shape.allocate(Device::Cpu).unwrap();
        let mut fresh = 0;
        for epoch in 0..80 {
            for idxs in [[0, 1, 2, 3], [7, 6, 5, 4]] {
                plan.fill(&mut batch, epoch, &idxs).unwrap();
                fresh += batch.fresh.iter().filter(|fresh| **fresh).count();
            }
        }
        assert!(range.contains(&fresh), "{setting}: {fresh} of 640");
    }
}

#[test]
fn views_rotate_and_masks_are_drawn_anew_each_epoch() {
    let world = World::with_cache(8);
    // Two steps an epoch; epochs 0 and 2 use view 0, epoch 1 uses view 1.
    let batches = load(plan(&world, &[], &[]), 2, 0..6, true);
    for (step, (samples, _)) in batches.iter().enumerate() {
        let view = (step / 2 % 2) as u16;
        assert!(samples.iter().all(|&(_, v)| v == view), "step {step}: {samples:?}");
    }
    let of_sample_0 = |epoch: usize, tensor: usize| {
        let epoch = &batches[2 * epoch..2 * epoch + 2];
        let (batch, slot) = epoch
            .iter()
            .find_map(|batch| Some((batch, batch.0.iter().position(|&(id, _)| id == 0)?)))
            .expect("8 images in 2 steps of 4 are all of them");
        let bytes = &batch.1[tensor];
        bytes[slot * bytes.len() / 4..(slot + 1) * bytes.len() / 4].to_vec()
    };
    let (imgs, mask, tokens) = (0, 1, 2);
    assert_eq!(of_sample_0(0, imgs), of_sample_0(2, imgs));
    assert_ne!(of_sample_0(0, imgs), of_sample_0(1, imgs));
    assert_ne!(of_sample_0(0, mask), of_sample_0(2, mask));
    // The tokens are those of the visible patches, so another mask brings others.
    assert_ne!(of_sample_0(0, tokens), of_sample_0(2, tokens));
}

/// Two numbers for each of the encoder's blocks, of the sample and the epoch alone, and not those of its mask.
#[test]
fn what_is_dropped_is_drawn_per_sample_and_epoch() {
    let world = World::with_cache(8);
    let plan = plan(&world, &["model.drop_path=0.3"], &[]);
    let numbers = |epoch: u64, idxs: &[u32]| {
        let mut batch = plan.shape.allocate(Device::Cpu).unwrap();
        plan.fill(&mut batch, epoch, idxs).unwrap();
        let mask = mask_of(&batch).narrow(1, 0, 4).to_kind(tch::Kind::Double);
        (batch.drop_path.unwrap(), mask)
    };
    let (first, mask) = numbers(1, &[5, 0, 1, 2]);
    assert_eq!(first.size(), [4, 2 * 2]);
    assert_eq!(first.kind(), tch::Kind::Double);
    assert_ne!(first, mask);
    assert_eq!(first.get(0), numbers(1, &[3, 4, 5, 6]).0.get(2));
    assert_ne!(first.get(0), first.get(1));
    assert_ne!(first.get(0), numbers(2, &[5, 0, 1, 2]).0.get(0));
    assert!(first.min().double_value(&[]) >= 0.0 && first.max().double_value(&[]) < 1.0);
}

/// One number for each teacher but one, of the sample and the epoch alone, and not those of stochastic depth; and the number of teachers that the
/// whole batch keeps, which its parts have too.
#[test]
fn teachers_are_dropped_per_sample_and_epoch() {
    let world = World::with_two_teachers(8);
    let settings = ["mimic.teachers=[\"clip\", \"dino\"]", "mimic.drop=0.5", "model.drop_path=0.3"];
    let plan = plan(&world, &settings, &[]);
    let load = |epoch: u64, idxs: &[u32]| {
        let mut batch = plan.shape.allocate(Device::Cpu).unwrap();
        plan.fill(&mut batch, epoch, idxs).unwrap();
        batch
    };
    let numbers =
        |batch: &MimicBatch| Vec::<f64>::try_from(batch.teacher_drop.as_ref().unwrap().flatten(0, -1)).unwrap();
    let first = load(1, &[5, 0, 1, 2]);
    assert_eq!(numbers(&first).len(), 4);
    assert!(numbers(&first).iter().all(|u| (0.0..1.0).contains(u)));
    assert_ne!(first.drop_path.as_ref().unwrap().double_value(&[0, 0]), numbers(&first)[0]);
    assert_eq!(numbers(&first)[0], numbers(&load(1, &[3, 4, 5, 6]))[2]);
    assert_ne!(numbers(&first)[0], numbers(&load(2, &[5, 0, 1, 2]))[0]);
    let kept = 1.0 + numbers(&first).iter().filter(|&&u| u >= 0.5).count() as f64 / 4.0;
    assert_eq!(first.mean_kept, kept);
    for part in first.micro_batches(2) {
        assert_eq!((part.mean_kept, numbers(&part).len()), (kept, 2));
    }
}

/// A part is the images that it names, in every tensor.
#[test]
fn parts_make_up_the_batch() {
    let world = larger_world(8, Codec::F16);
    let online = [format!("clip={}", world.teacher_dir().display())];
    for (online, fresh) in [(&[][..], "0.0"), (&online, "0.0"), (&online, "1.0")] {
        let fresh = format!("data.fresh={fresh}");
        let plan = plan(&world, &[&FOCUSED[..], &["data.random_shift=true", &fresh]].concat(), online);
        let mut batch = plan.shape.allocate(Device::Cpu).unwrap();
        plan.fill(&mut batch, 1, &[5, 0, 1, 2]).unwrap();
        let parts = [batch.narrow(0, 2), batch.narrow(2, 2)];
        let joined = |tensors: &dyn Fn(&MimicBatch) -> Vec<Tensor>| {
            let [first, second] = [tensors(&parts[0]), tensors(&parts[1])];
            let pairs = first.iter().zip(&second);
            let joined: Vec<Tensor> = pairs.map(|(a, b)| Tensor::cat(&[a, b], 0)).collect();
            assert!(!joined.is_empty() && joined == tensors(&batch));
        };
        joined(&|b| vec![b.imgs.shallow_clone(), mask_of(b).shallow_clone()]);
        joined(&|b| b.patches.iter().chain(&b.drop_path).map(Tensor::shallow_clone).collect());
        joined(&|b| {
            let TeacherBatch { rows, pixels } = &b.teachers[0];
            let columns = rows.iter().flat_map(|rows| rows.tokens.iter().chain(&rows.cls_attn));
            columns.chain(pixels).map(Tensor::shallow_clone).collect()
        });
        let samples = parts.iter().flat_map(|part| part.samples.clone());
        assert_eq!(samples.collect::<Vec<_>>(), batch.samples);
    }
}

/// A batch holds the pixels of the row's crop box, at the student's and at the teacher's size.
#[test]
fn pixels_are_the_rows_crop() {
    let world = World::with_cache(8);
    let online = [format!("clip={}", world.teacher_dir().display())];
    let plan_ = plan(&world, &[], &online);
    let joined = &plan_.joined.members()[0];
    let (sample, view) = joined.samples.get(5, 1);
    let img = images::decode(&joined.images.read(sample, 1).unwrap()).unwrap();
    let expected = [32, 16].map(|size| images::render(&img, &view, size).unwrap().data);
    let mut batch = plan_.shape.allocate(Device::Cpu).unwrap();
    plan_.fill(&mut batch, 1, &[5, 0, 1, 2]).unwrap();
    let TeacherBatch { rows: None, pixels: Some(pixels) } = &batch.teachers[0] else { panic!("it runs online") };
    for (tensor, expected) in [&batch.imgs, pixels].into_iter().zip(expected) {
        assert_eq!(Vec::<u8>::try_from(tensor.get(0).flatten(0, -1)).unwrap(), expected);
    }
    assert_eq!(batch.samples[0], (5, 1));
    // Once the student's crop is in memory, the teacher's still comes from the image.
    let kept = plan(&world, &["data.pixel_cache_mib=1"], &online);
    for _ in 0..2 {
        let mut again = kept.shape.allocate(Device::Cpu).unwrap();
        kept.fill(&mut again, 1, &[5, 0, 1, 2]).unwrap();
        let TeacherBatch { pixels: Some(found), .. } = &again.teachers[0] else { panic!("it runs online") };
        assert_eq!((&again.imgs, found), (&batch.imgs, pixels));
    }
}

#[test]
fn a_loader_that_is_dropped_early_stops() {
    let world = World::with_cache(8);
    let mut loader = Loader::start(Arc::new(plan(&world, &[], &[])), 0..1_000_000, 2, 2, Device::Cpu).unwrap();
    loader.next_batch().unwrap();
    drop(loader);
}

/// The mask that the data set draws is the one that its noise makes, and the tokens that it loads are those of the visible patches.
#[test]
fn visible_tokens_are_those_of_the_whole_row_at_the_mask() {
    let world = World::with_cache(8);
    for settings in [&[][..], &["mask.kind=block"]] {
        let visible = plan(&world, settings, &[]);
        let mut batch = visible.shape.allocate(Device::Cpu).unwrap();
        visible.fill(&mut batch, 3, &[5, 0, 1, 2]).unwrap();
        // The decoder mimics at all patches, so all are loaded; the mask is the same.
        let all = [settings, &["mimic.tokens=decoder_all"]].concat();
        let all = plan(&world, &all, &[]);
        let mut whole = all.shape.allocate(Device::Cpu).unwrap();
        all.fill(&mut whole, 3, &[5, 0, 1, 2]).unwrap();
        assert_eq!(mask_of(&batch), mask_of(&whole));
        let sorted = mask_of(&batch).sort(1, false).0;
        assert_eq!(sorted, Tensor::arange(16, (tch::Kind::Int64, Device::Cpu)).expand([4, 16], false));
        let keep = visible.shape.keep as i64;
        let ids_keep = mask_of(&batch).narrow(1, 0, keep);
        let tokens = |batch: &MimicBatch| {
            let rows = batch.teachers[0].rows.as_ref().unwrap();
            rows.tokens.as_ref().unwrap().shallow_clone()
        };
        let (found, expected) = (tokens(&batch), tokens(&whole));
        assert_eq!(found.size()[1], keep);
        assert_eq!(found, models::tokens::gather_rows(&expected, &ids_keep));
    }
}
