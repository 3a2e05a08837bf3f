use std::io::Cursor;
use std::path::Path;

use clap::Parser;
use image::{ImageFormat, Luma, Rgb};
use images::ImageSource;

use super::*;
use crate::cli::Cli;
use crate::eval::features::{self, Extraction, Views};
use crate::testing::{World, overridden};

fn run(args: &[String]) -> anyhow::Result<String> {
    let mut out = Vec::new();
    crate::run(&Cli::try_parse_from(args).unwrap(), &HubSettings::default(), None, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

fn args(train: &Path, test: &Path, models: &[&str], more: &[&str]) -> Vec<String> {
    let words = ["trainer", "segment", "--device", "cpu", "--batch-size", "5", "--k", "3", "--train"];
    let mut args: Vec<String> = words.map(String::from).into();
    args.extend([train.to_str().unwrap(), "--test", test.to_str().unwrap()].map(str::to_owned));
    args.extend(models.iter().flat_map(|model| ["--model".to_owned(), (*model).to_owned()]));
    args.extend(more.iter().map(|word| (*word).to_owned()));
    if more.contains(&"linear") {
        let k = args.iter().position(|word| word == "--k").unwrap();
        args.drain(k..k + 2);
    }
    overridden(args)
}

fn results(train: &Path, test: &Path, models: &[&str], more: &[&str]) -> Vec<SegmentResult> {
    let json = run(&args(train, test, models, &[more, &["--json"]].concat())).unwrap();
    serde_json::from_str(&json).unwrap()
}

fn miou(train: &Path, test: &Path, models: &[&str], more: &[&str]) -> f64 {
    results(train, test, models, more)[0].test_pixels.miou
}

fn write_png<P>(path: &Path, image: &image::ImageBuffer<P, Vec<P::Subpixel>>)
where
    P: image::PixelWithColorType,
    [P::Subpixel]: image::EncodableLayout,
{
    let mut png = Vec::new();
    image.write_to(&mut Cursor::new(&mut png), ImageFormat::Png).unwrap();
    schemas::atomic::write(path, &png).unwrap();
}

/// The numbers of the classes, which have gaps, and their colors.
const CLASSES: [(u8, [u8; 3]); 4] = [(0, [220, 30, 30]), (2, [30, 200, 40]), (5, [40, 50, 220]), (11, [230, 220, 30])];

/// Writes `n` images of 44 x 32 pixels in cells of 8 pixels of random classes, whose color says the class, and masks that are moved by
/// `shift` pixels to the left. Cells begin at the left edge of the central square, at pixel 6. Every ninth row of a mask has label 255.
fn write_set(dir: &Path, n: u64, seed: u64, shift: u32) {
    for i in 0..n {
        let mut rng = Rng::new(seed, Purpose::Select, &[i]);
        let cells: Vec<usize> = (0..7 * 4).map(|_| rng.range(4) as usize).collect();
        let class = |x: u32, y: u32| CLASSES[cells[((x + 2) / 8 % 7 * 4 + y / 8) as usize]];
        let mut noise = Rng::new(seed, Purpose::Erase, &[i]);
        let image =
            image::RgbImage::from_fn(44, 32, |x, y| Rgb(class(x, y).1.map(|value| value - 10 + noise.range(20) as u8)));
        let mask = image::GrayImage::from_fn(44, 32, |x, y| {
            Luma([if y % 9 == 8 { 255 } else { class((x + shift) % 44, y).0 }])
        });
        write_png(&dir.join(format!("images/part/{i:03}.png")), &image);
        write_png(&dir.join(format!("masks/part/{i:03}.png")), &mask);
    }
}

struct Sets {
    dir: tempfile::TempDir,
}

impl Sets {
    /// 10 images to train on and 6 to test, whose masks are moved by `shift` pixels.
    fn new(shift: u32) -> Sets {
        let sets = Sets { dir: tempfile::tempdir().unwrap() };
        write_set(&sets.train(), 10, 1, 0);
        write_set(&sets.test(), 6, 2, shift);
        sets
    }

    fn train(&self) -> std::path::PathBuf {
        self.dir.path().join("train")
    }

    fn test(&self) -> std::path::PathBuf {
        self.dir.path().join("test")
    }

    /// The message when `change` was made to the test set.
    fn refusal(change: impl FnOnce(&Path), more: &[&str]) -> String {
        let sets = Sets::new(0);
        change(&sets.test());
        format!("{:#}", run(&args(&sets.train(), &sets.test(), &["pixels:16"], more)).unwrap_err())
    }
}

/// Where the color says the class, raw pixels find it, by either method; where the mask is not cut as its image is, they do not.
#[test]
fn colors_are_found_where_masks_lie_on_their_images() {
    let sets = Sets::new(0);
    let linear = ["--method", "linear", "--blr", "1,10", "--probe-batch", "64", "--epochs", "20"];
    for more in [&[][..], &linear] {
        let found = results(&sets.train(), &sets.test(), &["pixels:32"], more).remove(0);
        let pixels = &found.test_pixels;
        assert!(pixels.miou > 0.97 && pixels.pixel_accuracy > 0.98, "{more:?}: {pixels:?}");
        assert_eq!(pixels.classes.keys().copied().collect::<Vec<_>>(), [0, 2, 5, 11]);
        // The central square without the three rows of label 255.
        assert_eq!(pixels.pixels, 6 * 32 * 29);
        assert_eq!((found.sets.train_images, found.sets.test_images, found.grid), (10, 6, 32));
        assert_eq!(
            (found.sets.test_images_in_train, found.sets.skipped_images, found.pixels_of_unseen_classes),
            (0, 0, 0)
        );
        assert_eq!([found.train_patches, found.labeled_patches], [10 * 32 * 29; 2]);
        assert_eq!(found.choice.is_some(), !more.is_empty());
    }
    // Four colors over each patch of 8 pixels are one class each: also coarse patches see them.
    let coarse = miou(&sets.train(), &sets.test(), &["pixels:4"], &[]);
    assert!(coarse > 0.7, "{coarse}");
    // The square begins at pixel 6: a mask that was cut at 0 would be moved by 6 pixels.
    let moved = Sets::new(6);
    let wrong = miou(&moved.train(), &moved.test(), &["pixels:32"], &[]);
    assert!(wrong < 0.5, "{wrong}");
}

#[test]
fn students_teachers_and_pixels_are_measured_alike_and_saved() {
    let sets = Sets::new(0);
    let world = World::with_cache(12);
    run(&world.pretrain_args("run", &[])).unwrap();
    let of_run = world.path("run").display().to_string();
    let untrained = format!("untrained:{of_run}");
    let teacher = world.teacher_dir().display().to_string();
    let models = [&*of_run, &*untrained, &*teacher, "pixels:8"];
    let found = results(&sets.train(), &sets.test(), &models, &[]);
    assert_eq!(found.iter().map(|result| result.grid).collect::<Vec<_>>(), [4, 4, 4, 8]);
    for (result, model) in found.iter().zip(models) {
        let miou = result.test_pixels.miou;
        assert!(miou > 0.0 && miou < 1.0, "{model}: {miou}");
        // Each gets what it gets alone.
        assert_eq!(results(&sets.train(), &sets.test(), &[model], &[]), std::slice::from_ref(result));
    }
    let saved = |name: &str| -> SegmentResult {
        serde_json::from_slice(&std::fs::read(world.path("run/eval").join(name)).unwrap()).unwrap()
    };
    assert_eq!(saved("segment.json"), found[0]);
    assert_eq!(saved("segment-untrained.json"), found[1]);
    let linear = ["--method", "linear", "--probe-batch", "8", "--epochs", "5", "--blr", "0.3,3", "--held-out", "0.3"];
    let chosen = results(&sets.train(), &sets.test(), &[&*of_run], &linear).remove(0);
    assert_eq!(saved("segment-2.json"), chosen);
    let choice = chosen.choice.unwrap();
    assert!(choice.held_out_patches > 0 && choice.rates.len() == 2, "{choice:?}");

    let table = run(&args(&sets.train(), &sets.test(), &["pixels:8"], &[])).unwrap();
    let of_pixels = percent(found[3].test_pixels.miou);
    for words in ["3-NN of patches", "10 train and 6 test images, 4 classes", "8x8", &of_pixels] {
        assert!(table.contains(words), "{table}");
    }

    let page = world.path("report.html");
    run(&["trainer", "report", &of_run, "--out", page.to_str().unwrap()].map(str::to_owned)).unwrap();
    let html = std::fs::read_to_string(page).unwrap();
    let percent = format!("{:.2} %", 100.0 * found[0].test_pixels.miou);
    for words in ["Segmentation of patches", "3 nearest patches vote", "linear layer", "mIoU", &percent] {
        assert!(html.contains(words), "{words}");
    }
}

/// The patches of every model are in the order of the image's rows, and their mean is the feature `mean`.
#[test]
fn the_mean_of_the_patches_is_the_feature_mean() {
    let world = World::with_cache(12);
    run(&world.pretrain_args("run", &["--stop-after", "2"])).unwrap();
    let source = ImageSource::open(world.images_dir().to_str().unwrap()).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().build().unwrap();
    for (spec, patches) in [(world.path("run"), 16), (world.teacher_dir(), 16)] {
        let model = Model::load(spec.to_str().unwrap(), &HubSettings::default(), tch::Device::Cpu).unwrap();
        let extraction = Extraction {
            views: Views::CENTER,
            kinds: ["mean", "patches"].map(str::to_owned).into(),
            max_bytes: u64::MAX,
            batch_size: 5,
            precision: models::precision::Precision::F32,
        };
        let found = features::extract(&[model], &source, &extraction, &pool, &crate::dist::World::alone())
            .unwrap()
            .features
            .remove(0);
        let (mean, tokens) = (found["mean"].get(0), found["patches"].get(0));
        let tokens = tokens.view([12, patches, mean.size()[1]]);
        let difference = crate::testing::relative_l2(&tokens.mean_dim(1, false, tch::Kind::Float), &mean);
        assert!(difference < 1e-5, "{spec:?}: {difference:e}");
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    let sets = Sets::new(0);
    let world = World::new(2);
    let teacher = world.teacher_dir().display().to_string();
    for method in [&["--train-patches", "70"][..], &["--method", "linear", "--probe-batch", "32", "--blr", "1,3"]] {
        let with = |threads: &str| {
            results(&sets.train(), &sets.test(), &[&teacher], &[method, &["--threads", threads]].concat())
        };
        let (one, three) = (with("1"), with("3"));
        assert_eq!(one, three);
        let (used, offered) = (one[0].train_patches, one[0].labeled_patches);
        assert_eq!((used, offered), (if method.len() == 2 { 70 } else { 160 }, 160));
    }
}

#[test]
fn pictures_are_written_as_one_sheet() {
    let sets = Sets::new(0);
    let folder = sets.dir.path().join("new/pictures");
    let more = ["--pictures", folder.to_str().unwrap()];
    run(&args(&sets.train(), &sets.test(), &["pixels:16", "pixels:4"], &more)).unwrap();
    let sheet = image::open(folder.join(SHEET)).unwrap();
    // Six images in rows; image, mask and two predictions beside each other.
    assert_eq!((sheet.width(), sheet.height()), (4 * PANEL + 3 * 4, 6 * PANEL + 5 * 4));
}

#[test]
fn a_pattern_selects_images_and_labels_are_ignored() {
    let sets = Sets::new(0);
    let some = format!("{}::part/00[0-3].png", sets.test().display());
    let found = results(&sets.train(), Path::new(&some), &["pixels:16"], &["--ignore-label", "255,11"]).remove(0);
    assert_eq!((found.sets.test_images, &*found.ignore_labels), (4, &[11, 255][..]));
    assert_eq!(found.test_pixels.classes.keys().copied().collect::<Vec<_>>(), [0, 2, 5]);
    // Without 255 as an ignored label it is a class.
    let found = results(&sets.train(), &sets.test(), &["pixels:16"], &["--ignore-label", "254"]).remove(0);
    assert!(found.test_pixels.classes.contains_key(&255));
}

/// Classes that no training patch has count as wrong, and an image that cannot be decoded is left out.
#[test]
fn unseen_classes_and_damaged_images_are_counted() {
    let sets = Sets::new(0);
    write_png(&sets.test().join("masks/part/000.png"), &image::GrayImage::from_pixel(44, 32, Luma([77])));
    schemas::atomic::write(&sets.test().join("images/part/001.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    let found = results(&sets.train(), &sets.test(), &["pixels:32"], &[]).remove(0);
    assert_eq!((found.sets.test_images, found.sets.skipped_images), (5, 1));
    assert_eq!(found.pixels_of_unseen_classes, 32 * 32);
    assert_eq!(found.test_pixels.classes[&77].iou, 0.0);
    assert!(found.test_pixels.miou < 0.8, "a fifth class counts: {:?}", found.test_pixels);
}

#[test]
fn unusable_sets_are_refused_by_name() {
    let mask = |test: &Path| test.join("masks/part/003.png");
    let gray = |value| image::GrayImage::from_pixel(44, 32, Luma([value]));
    #[allow(clippy::type_complexity)]
    let cases: [(&dyn Fn(&Path), &[&str]); 8] = [
        (
            &|test| std::fs::remove_file(mask(test)).unwrap(),
            &["--test", "1 image of 6 has no mask", "images/part/003.png", "masks/part/003.png"],
        ),
        (&|test| write_png(&mask(test), &image::GrayImage::new(32, 44)), &["003.png", "32 x 44 pixels", "44 x 32"]),
        (&|test| write_png(&mask(test), &image::RgbImage::new(44, 32)), &["003.png", "RGB", "class numbers"]),
        (
            &|test| schemas::atomic::write(&mask(test), b"\xff\xd8\xff\xe0").unwrap(),
            &["003.png", "not a PNG", "one channel"],
        ),
        (
            &|test| write_png(&mask(test), &image::ImageBuffer::from_pixel(44, 32, Luma([5000u16]))),
            &["003.png", "the number 5000", "0 to 4095", "--ignore-label"],
        ),
        (
            &|test| (0..6).for_each(|i| write_png(&test.join(format!("masks/part/00{i}.png")), &gray(9))),
            &["no class of --test", "masks of --test have 9", "0, 2, 5, 11"],
        ),
        (
            &|test| (0..6).for_each(|i| write_png(&test.join(format!("masks/part/00{i}.png")), &gray(255))),
            &["no pixel of --test has a class"],
        ),
        (
            &|test| write_png(&test.join("images/part/003.bmp.png"), &image::RgbImage::new(44, 32)),
            &["has no mask", "masks/part/003.bmp.png"],
        ),
    ];
    for (change, expected) in cases {
        let refused = Sets::refusal(change, &[]);
        for words in expected {
            assert!(refused.contains(words), "{words}: {refused}");
        }
    }
    let copy = |test: &Path| {
        std::fs::copy(test.join("images/part/003.png"), test.join("images/part/003.jpg")).map(|_| ()).unwrap();
    };
    let twice = Sets::refusal(copy, &[]);
    assert!(twice.contains("have one mask") && twice.contains("003.jpg"), "{twice}");
    let moved = Sets::refusal(|test| std::fs::remove_dir_all(test.join("masks")).unwrap(), &[]);
    assert!(moved.contains("there is no folder") && moved.contains("docs/evaluation.md"), "{moved}");
}

#[test]
fn settings_of_the_other_method_are_refused() {
    let refused = |more: &[&str]| {
        let sets = Sets { dir: tempfile::tempdir().unwrap() };
        format!("{:#}", run(&args(&sets.train(), &sets.test(), &["pixels:16"], more)).unwrap_err())
    };
    for option in ["--blr", "--epochs", "--warmup-epochs", "--probe-batch", "--weight-decay", "--held-out"] {
        let message = refused(&[option, "1"]);
        assert!(message.contains(&format!("{option} is a setting of --method linear")), "{message}");
    }
    let mut with_k = args(Path::new("a"), Path::new("b"), &["pixels"], &["--method", "linear"]);
    with_k.extend(["--k".to_owned(), "3".to_owned()]);
    assert!(run(&with_k).unwrap_err().to_string().contains("--k is a setting of --method knn"));
    for (more, words) in [
        (&["--blr", "1,0"][..], "must be positive"),
        (&["--epochs", "2", "--warmup-epochs", "2"], "less than --epochs 2"),
        (&["--weight-decay", "NaN"], "zero or positive"),
        (&["--held-out", "0.6"], "at most 0.5"),
        (&["--held-out", "0.2", "--blr", "1"], "nothing to choose"),
    ] {
        let message = refused(&[&["--method", "linear"], more].concat());
        assert!(message.contains(words), "{message}");
    }
}
