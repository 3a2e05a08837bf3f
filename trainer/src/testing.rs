//! A tiny world for tests: labeled images in class folders, a teacher with random weights, and a cache of its features.
//!
//! Also compiled into `tests/cli.rs`, so it uses no item of this crate.

#![allow(clippy::unwrap_used)] // Tests state what they expect by unwrapping.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use images::rng::{Purpose, Rng};
use images::{Decoder, IMAGE_CODE, ImageSource, draw_view};
use models::params::ParamStore;
use models::precision::Precision;
use models::teacher::Teacher;
use models::vit::{VisionTransformer, VitConfig};
use schemas::atomic::AtomicFile;
use schemas::{
    Batches, CacheIdentity, Codec, ContentHash, DepthWindow, EncodedRow, FORMAT_VERSION, FeatureCodec, Pack, Plan,
    Reject, RowKey, SampleRow, SamplesWriter, Scalar, TeacherId, TeacherIdentity, TeacherRow, TeacherWriter,
    ViewIdentity, ViewPolicy, add_teacher, create_cache,
};
use tch::{Device, Kind, Tensor};

/// Patches along one side, for student and teacher.
pub(crate) const GRID: u32 = 4;
/// Side of the teacher's patch in pixels; its input is 16 pixels wide.
const TEACHER_PATCH: u32 = 4;
/// Width of the teacher.
pub(crate) const TEACHER_WIDTH: u32 = 64;
/// Width of a second one, whose number of heads goes without saying too.
const SECOND_WIDTH: u32 = 192;

/// A recipe that fits the world: 32 pixels in patches of 8, so a 4 x 4 grid.
pub(crate) const RECIPE: &str = r#"
[model]
img_size = 32
patch_size = 8
embed_dim = 32
depth = 2
num_heads = 2
decoder_embed_dim = 16
decoder_depth = 1
decoder_num_heads = 2
[mimic]
teachers = ["clip"]
[optim]
batch_size = 4
lr = 3e-3
[schedule]
epochs = 4
warmup_epochs = 1
[run]
precision = "f32"
log_every = 1
checkpoint_every = 3
"#;

/// The folder of a world, and how its cache is built.
pub(crate) struct World {
    /// Temporary folder, removed when the world is dropped.
    pub(crate) dir: tempfile::TempDir,
    /// Views per image.
    pub(crate) views: u16,
    /// Images per part.
    pub(crate) part_samples: u64,
    /// Patches along one side of the views that the teachers see.
    pub(crate) grid: u32,
    /// The same for the second teacher, if it has another grid.
    pub(crate) second_grid: Option<u32>,
    /// How the cache's views are drawn.
    pub(crate) policy: ViewPolicy,
    /// The image code that the cache records.
    pub(crate) image_code: String,
    /// The depth window for samples of more than 8 bits.
    pub(crate) depth_window: DepthWindow,
    /// The seed with which views are drawn; the cache always records 3.
    pub(crate) view_seed: u64,
    /// Whether the rows of features have the content hash of another image.
    pub(crate) foreign_features: bool,
    /// A sample whose tokens are so large that their squares are infinite.
    pub(crate) overflowing: Option<u64>,
    /// How features are stored.
    pub(crate) codec: Codec,
    /// Whether the cache packs the images; runs then get no `--images`.
    pub(crate) pack: Pack,
    /// Ids of the cache's teachers: `clip`, and others of another width.
    pub(crate) teachers: Vec<&'static str>,
}

/// A command line in which a repeated option, or a repeated `--set` of one key, replaces the earlier one. The program refuses repetitions;
/// tests use them to override defaults.
pub(crate) fn overridden(args: Vec<String>) -> Vec<String> {
    let key = |at: usize| match (&*args[at], args.get(at + 1)) {
        ("--set", Some(setting)) => setting.split('=').next().unwrap().to_owned(),
        (option, _) => option.to_owned(),
    };
    let mut kept = Vec::new();
    let mut at = 0;
    while at < args.len() {
        let option = args[at].starts_with("--") && args[at] != "--model";
        match option && (at + 1..args.len()).any(|later| args[later] == args[at] && key(later) == key(at)) {
            true => at += 2,
            false => {
                kept.push(args[at].clone());
                at += 1;
            }
        }
    }
    kept
}

impl World {
    /// Images and a teacher; [`World::build_cache`] makes the cache.
    pub(crate) fn new(images: usize) -> World {
        let dir = tempfile::tempdir().unwrap();
        let world = World {
            dir,
            views: 2,
            part_samples: 5,
            grid: GRID,
            second_grid: None,
            policy: ViewPolicy::rrc(),
            image_code: IMAGE_CODE.to_owned(),
            depth_window: DepthWindow::HighByte,
            view_seed: 3,
            foreign_features: false,
            overflowing: None,
            codec: Codec::F16,
            pack: Pack::None,
            teachers: vec!["clip"],
        };
        write_images(&world.images_dir(), images, 1);
        write_teacher(&world.teacher_dir(), TEACHER_WIDTH, 17);
        world
    }

    /// A world whose cache has the teachers `clip` and `dino`.
    #[allow(dead_code)] // The command line's tests have one teacher.
    pub(crate) fn with_two_teachers(images: usize) -> World {
        let mut world = World::new(images);
        world.add_second_teacher();
        world.build_cache();
        world
    }

    /// Adds the teacher `dino`, for caches that are built later.
    #[allow(dead_code)] // The command line's tests have one teacher.
    pub(crate) fn add_second_teacher(&mut self) {
        self.teachers.push("dino");
        write_teacher(&self.dir_of_teacher("dino"), SECOND_WIDTH, 18);
    }

    /// A world with its cache.
    pub(crate) fn with_cache(images: usize) -> World {
        let world = World::new(images);
        world.build_cache();
        world
    }

    /// The images, in class folders.
    pub(crate) fn images_dir(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    /// The teacher `clip`, a folder with model.safetensors.
    pub(crate) fn teacher_dir(&self) -> PathBuf {
        self.dir_of_teacher("clip")
    }

    fn dir_of_teacher(&self, id: &str) -> PathBuf {
        self.dir.path().join(if id == "clip" { "teacher".to_owned() } else { format!("teacher-{id}") })
    }

    /// The cache.
    pub(crate) fn cache_dir(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// The recipe's file, written when asked for.
    pub(crate) fn recipe(&self) -> PathBuf {
        let path = self.dir.path().join("recipe.toml");
        schemas::atomic::write(&path, RECIPE.as_bytes()).unwrap();
        path
    }

    /// A path in the world's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Arguments of `trainer pretrain` into the run folder `run`.
    pub(crate) fn pretrain_args(&self, run: &str, more: &[&str]) -> Vec<String> {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let mut args: Vec<String> =
            ["trainer", "pretrain", "--device", "cpu", "--threads", "2", "--cache"].map(String::from).into();
        args.push(text(self.cache_dir()));
        if self.pack == Pack::None {
            args.extend(["--images".to_owned(), text(self.images_dir())]);
        }
        args.extend(["--recipe".to_owned(), text(self.recipe())]);
        args.extend(["--out".to_owned(), text(self.path(run))]);
        args.extend(more.iter().map(|s| s.to_string()));
        overridden(args)
    }

    /// Runs the teacher over every view and writes its features, as the pipeline would.
    pub(crate) fn build_cache(&self) {
        self.build_cache_of(&self.images_dir(), &self.cache_dir());
    }

    /// [`Self::build_cache`] of other images in another folder.
    pub(crate) fn build_cache_of(&self, images: &Path, dir: &Path) {
        let source = ImageSource::open(images.to_str().unwrap()).unwrap();
        let identity = CacheIdentity {
            format_version: FORMAT_VERSION,
            dataset: source.identity(),
            image_code: self.image_code.clone(),
            views: ViewIdentity {
                policy: self.policy.clone(),
                views: self.views,
                seed: 3,
                filter: "bicubic".to_owned(),
            },
            plan: Plan { samples: source.len() as u64, part_samples: self.part_samples },
            pack: self.pack,
            depth_window: self.depth_window,
            label_names: source.label_names().to_vec(),
            dedup: false,
            generations: Vec::new(),
        };
        create_cache(dir, &identity).unwrap();
        self.write_parts(&source, dir, &identity);
    }

    /// Appends images to a cache.
    pub(crate) fn append(&self, images: &Path, dir: &Path) {
        let source = ImageSource::open(images.to_str().unwrap()).unwrap();
        let mut identity = schemas::Cache::open(dir).unwrap().identity().clone();
        let mut label_names = identity.all_label_names().to_vec();
        label_names.extend(source.label_names().iter().cloned());
        identity.generations.push(identity.next_generation(source.identity(), label_names));
        schemas::add_generation(dir, &identity).unwrap();
        self.write_parts(&source, dir, &identity);
    }

    /// Writes the parts of the last generation, whose images are those of `source`.
    fn write_parts(&self, source: &ImageSource, dir: &Path, identity: &CacheIdentity) {
        let decoder = Decoder::of_cache(&self.image_code, self.depth_window).unwrap_or_default();
        let teachers = self.teachers.iter().map(|id| {
            let teacher = Teacher::load(&self.dir_of_teacher(id), Device::Cpu).unwrap();
            let teacher_identity = self.teacher_identity(id, &teacher);
            add_teacher(dir, &teacher_identity).unwrap();
            (teacher, teacher_identity)
        });
        let teachers: Vec<_> = teachers.collect();
        let generation = identity.generations.len();
        for part in identity.generation_parts(generation) {
            let mut samples = SamplesWriter::create(dir, part, identity).unwrap();
            let writer =
                |(_, teacher): &(_, TeacherIdentity)| TeacherWriter::create(dir, part, identity, teacher).unwrap();
            let mut features: Vec<_> = teachers.iter().map(writer).collect();
            let mut rejects = Vec::new();
            for sample_id in identity.range(part) {
                let i = (sample_id - identity.generation_samples(generation).start) as usize;
                let bytes = source.read(i).unwrap();
                let content_hash = ContentHash::of(&bytes);
                let mut img = match decoder.decode(&bytes) {
                    Ok(img) => img,
                    Err(reason) => {
                        rejects.push(Reject {
                            sample_id,
                            key: source.key(i).to_owned(),
                            reason: reason.to_string(),
                            content_hash: Some(content_hash),
                        });
                        continue;
                    }
                };
                let bytes = match self.pack {
                    Pack::None | Pack::Original => bytes,
                    Pack::Jpeg { short_side, quality } => images::to_jpeg(&img, short_side, quality).unwrap(),
                };
                img = if self.pack == Pack::None { img } else { images::decode(&bytes).unwrap() };
                for index in 0..self.views {
                    let view =
                        draw_view(&identity.views.policy, self.view_seed, &content_hash, index, img.width, img.height);
                    let packed = (self.pack != Pack::None && index == 0).then_some(&bytes);
                    for ((teacher, teacher_identity), features) in teachers.iter().zip(&mut features) {
                        let pixels = images::render(&img, &view, teacher_identity.input_size).unwrap();
                        let row = self.teacher_row(teacher, sample_id, index, content_hash, &pixels.data);
                        let encoded = EncodedRow::from_stored(teacher_identity, row.key, row.features(), None);
                        features.push(encoded.unwrap()).unwrap();
                    }
                    samples
                        .push_packed(
                            &SampleRow {
                                sample_id,
                                view,
                                key: source.key(i).to_owned(),
                                content_hash,
                                // The one new class of an addition follows those before.
                                label: source.label(i).map(|label| label + generation as i32),
                                width: img.width,
                                height: img.height,
                                image_hash: packed.map(|bytes| ContentHash::of(bytes)),
                            },
                            packed.map(Vec::as_slice),
                        )
                        .unwrap();
                }
            }
            samples.finish(&rejects).unwrap();
            for features in features {
                features.finish().unwrap();
            }
        }
    }

    fn teacher_row(
        &self,
        teacher: &Teacher,
        sample_id: u64,
        view: u16,
        content_hash: ContentHash,
        pixels: &[u8],
    ) -> TeacherRow {
        let side = (pixels.len() / 3).isqrt() as i64;
        let pixels = Tensor::from_slice(pixels).view([1, side, side, 3]).permute([0, 3, 1, 2]).contiguous();
        let mut output = teacher.forward(&pixels, Precision::F32).unwrap();
        if self.overflowing == Some(sample_id) {
            output.tokens *= 1e30;
        }
        let encode = |codec: &dyn FeatureCodec, tensor: &Tensor| {
            let mut bytes = Vec::new();
            codec
                .encode(
                    &Vec::<f32>::try_from(tensor.flatten(0, -1).to_kind(Kind::Float)).unwrap(),
                    teacher.info().width as usize,
                    &mut bytes,
                )
                .unwrap();
            bytes
        };
        let foreign = ContentHash([7; 16]);
        TeacherRow {
            key: RowKey { sample_id, view, content_hash: if self.foreign_features { foreign } else { content_hash } },
            tokens: encode(self.codec.tokens(), &output.tokens),
            cls: encode(&self.codec.cls(), &output.cls),
            cls_attn: encode(&Scalar::F16, &output.cls_attn),
        }
    }

    fn teacher_identity(&self, id: &str, teacher: &Teacher) -> TeacherIdentity {
        let info = teacher.info();
        let grid = self.second_grid.filter(|_| id == "dino").unwrap_or(self.grid);
        TeacherIdentity {
            format_version: FORMAT_VERSION,
            id: TeacherId::new(id).unwrap(),
            arch: info.arch.clone(),
            source: "a test".to_owned(),
            assumed: Vec::new(),
            weights_sha256: info.weights_sha256.clone(),
            layer: "last".to_owned(),
            activation: "gelu".to_owned(),
            norm_eps: info.norm_eps,
            input_size: grid * info.patch_size,
            patch_size: info.patch_size,
            mean: info.mean,
            std: info.std,
            grid,
            width: info.width,
            codec: self.codec.clone(),
            precision: "f32".to_owned(),
            batch_size: 1,
            batches: Batches::Samples,
            device: "cpu".to_owned(),
            device_name: None,
            runtime: torch_ext::RUNTIME.to_owned(),
        }
    }
}

/// Writes `n` PNGs of 40 x 32 pixels: stripes of random phase, color and width, vertical in class `a` and horizontal in class `b`.
pub(crate) fn write_images(dir: &Path, n: usize, seed: u64) {
    for i in 0..n {
        let (width, height) = (40u32, 32u32);
        let mut rng = Rng::new(seed, Purpose::Select, &[i as u64]);
        let (period, phase) = (4 + rng.range(8) as u32, rng.range(12) as u32);
        let colors: [[u8; 3]; 2] = std::array::from_fn(|_| std::array::from_fn(|_| rng.range(256) as u8));
        let img = image::RgbImage::from_fn(width, height, |x, y| {
            let along = if i % 2 == 0 { x } else { y };
            image::Rgb(colors[((along + phase) / period % 2) as usize])
        });
        let path = dir.join(["a", "b"][i % 2]).join(format!("{i:04}.png"));
        let mut png = Vec::new();
        img.write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png).unwrap();
        schemas::atomic::write(&path, &png).unwrap();
    }
}

/// The 2-norm of `found - expected` relative to that of `expected`.
#[allow(dead_code)] // The command line's tests compare no tensors.
pub(crate) fn relative_l2(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let norm = |x: &Tensor| x.to_kind(Kind::Double).norm().double_value(&[]);
    let difference = norm(&(found.to_kind(Kind::Double) - expected.to_kind(Kind::Double)));
    if difference == 0.0 { 0.0 } else { difference / norm(expected) }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The interpreter of the Python environment; `None`, with a message, if it is not installed.
#[allow(dead_code)] // Not every file of tests asks Python.
pub(crate) fn python() -> Option<PathBuf> {
    let python = Command::new(root().join("scripts/python-env")).arg("--if-present").output().unwrap();
    if !python.status.success() {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: the Python environment is not installed (scripts/python-env installs it)"
        );
        return None;
    }
    Some(PathBuf::from(String::from_utf8(python.stdout).unwrap().trim()))
}

/// Makes the files of `tests/golden/NAME` again with their script; `None` if the Python environment is not installed.
#[allow(dead_code)] // Only unit tests look at golden files.
pub(crate) fn made_again(name: &str) -> Option<tempfile::TempDir> {
    let python = python()?;
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new(python)
        .arg(root().join("scripts/golden").join(format!("{name}.py")))
        .args(["--out".as_ref(), folder.path()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(folder)
}

/// Compares a file that was made again with the one in the repository.
#[allow(dead_code)] // Only unit tests look at golden files.
pub(crate) fn same_tensors(made: &tempfile::TempDir, name: &str, file: &str, tolerance: f64) {
    let read = |folder: &Path| -> BTreeMap<String, Tensor> {
        let tensors = Tensor::read_safetensors(folder.join(file)).unwrap();
        tensors.into_iter().collect()
    };
    let (kept, new) = (read(&root().join("tests/golden").join(name)), read(made.path()));
    assert!(kept.keys().eq(new.keys()), "{file}: other entries");
    for (entry, tensor) in &kept {
        let difference = relative_l2(&new[entry], tensor);
        assert!(difference <= tolerance, "{file}: {entry} differs by {difference:e}");
    }
}

/// A ViT of random weights in timm's layout, which is also that of MAE's encoder.
fn write_teacher(dir: &Path, width: u32, seed: u64) {
    let config = VitConfig {
        img_size: [i64::from(GRID * TEACHER_PATCH); 2],
        ..VitConfig::mae(TEACHER_PATCH.into(), width.into(), 2, i64::from(width / 64))
    };
    let params = ParamStore::new(Device::Cpu, seed);
    let _network = VisionTransformer::new(&params.root(), &config).unwrap();
    let tensors = params.tensors();
    let mut file = AtomicFile::create(&dir.join("model.safetensors")).unwrap();
    models::weights::write(&mut file, &tensors, None).unwrap();
    file.flush().unwrap();
    file.publish().unwrap();
}
