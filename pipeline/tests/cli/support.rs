//! Small images, small teachers, and folders compared byte for byte.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::Parser;
use image::{DynamicImage, ImageFormat, RgbImage};
use pipeline::cli::Cli;
use pipeline::{Environment, ExitStatus};
use tempfile::TempDir;

use super::teacher::write_teacher;

/// Usable images that [`World::new`] makes, and bad ones beside them.
pub(crate) const USABLE: u64 = 20;
pub(crate) const BAD: u64 = 3;

/// A folder with images in two classes, two teachers, and room for caches.
pub(crate) struct World {
    dir: TempDir,
}

impl World {
    pub(crate) fn new() -> World {
        let world = World { dir: tempfile::tempdir().expect("a temporary folder") };
        for idx in 0..USABLE as u32 {
            write_image(&world.path("images"), idx);
        }
        // Bad in three ways, spread over the order: cut short, no image at all, empty.
        let whole = fs::read(world.path("images/cat/005.jpg")).unwrap();
        fs::write(world.path("images/cat/006-cut.jpg"), &whole[..whole.len() / 2]).unwrap();
        fs::write(world.path("images/cat/000-text.png"), "not an image").unwrap();
        fs::write(world.path("images/dog/999-empty.jpg"), "").unwrap();
        write_teacher(&world.path("clip"), 4, 1);
        write_teacher(&world.path("dino"), 8, 2);
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Command line of a build into folder `out`: two views, parts of 8 images, batches of 5 rows, so that batches end inside parts,
    /// inside images, and at a part's end.
    pub(crate) fn build_args(&self, out: &str, more: &[&str]) -> Vec<String> {
        let dir = |name: &str| self.path(name).display().to_string();
        let mut args = vec!["pipeline".to_owned(), "build-cache".to_owned()];
        // As settings of the recipe. One that a test gives itself, as a setting or by its flag, is left out here.
        for setting in [
            format!("data.images={}", dir("images")),
            format!("cache.out={}", dir(out)),
            format!("teachers.clip={}", dir("clip")),
            format!("teachers.dino={}", dir("dino")),
            "cache.part_samples=8".to_owned(),
            "features.batch_size=5".to_owned(),
            "view.views=2".to_owned(),
            "run.device=cpu".to_owned(),
        ] {
            let key = setting.split_inclusive('=').next().expect("a setting");
            let flag = match key {
                "data.images=" => "--images",
                "cache.out=" => "--out",
                "cache.part_samples=" => "--part-samples",
                "features.batch_size=" => "--batch-size",
                "view.views=" => "--views",
                "run.device=" => "--device",
                _ => "--teacher",
            };
            let is_given = more.iter().enumerate().any(|(i, said)| match flag {
                "--teacher" => {
                    let id = &key["teachers.".len()..];
                    said.starts_with(key) || (i > 0 && more[i - 1] == flag && said.starts_with(id))
                }
                _ => said.starts_with(key) || *said == flag,
            });
            if !is_given {
                args.extend(["--set".to_owned(), setting]);
            }
        }
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        args
    }

    /// Builds in this process; returns the status and what was printed.
    pub(crate) fn build(&self, out: &str, more: &[&str]) -> anyhow::Result<(ExitStatus, String)> {
        run(self.build_args(out, more))
    }
}

/// Runs a command line in this process.
pub(crate) fn run(args: Vec<String>) -> anyhow::Result<(ExitStatus, String)> {
    let cli = Cli::try_parse_from(args).expect("the tests' command lines are well-formed");
    let mut out = Vec::new();
    let status = pipeline::run(&cli, &Environment::default(), &mut out)?;
    Ok((status, String::from_utf8(out).expect("output is text")))
}

/// The built program with a command line like those for [`run`], which begin with its name.
pub(crate) fn program(args: &[impl AsRef<OsStr>]) -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_pipeline")), args)
}

/// The same with teachers that take `pause_ms` milliseconds more for each row: the example `slow_teachers`.
pub(crate) fn slow_program(args: &[impl AsRef<OsStr>], pause_ms: u64) -> Command {
    let mut command = clean(Command::new(slow_teachers()), args);
    command.env("PAUSE_MS", pause_ms.to_string());
    command
}

/// The example `slow_teachers`, which is built with the tests.
pub(crate) fn slow_teachers() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_pipeline")).with_file_name("examples").join("slow_teachers")
}

fn clean(mut command: Command, args: &[impl AsRef<OsStr>]) -> Command {
    command.args(&args[1..]).env_clear();
    // Nothing that a user may have set reaches the program, and no test asks a network.
    for name in ["PATH", "LD_LIBRARY_PATH", "TMPDIR", "OMP_WAIT_POLICY"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.env("HF_HUB_OFFLINE", "1");
    command
}

/// Runs the built program to its end.
pub(crate) fn output(args: &[impl AsRef<OsStr>]) -> Output {
    program(args).output().expect("the program starts")
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An image of its own size and colors, JPEG or PNG, in the class folder `cat` or `dog`.
pub(crate) fn write_image(dir: &Path, idx: u32) {
    let (width, height) = (40 + 7 * (idx % 5), 36 + 5 * (idx % 7));
    let pixels = RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 5 + idx * 31) as u8, (y * 6 + idx * 17) as u8, ((x ^ y) * 3 + idx * 7) as u8])
    });
    let class = dir.join(if idx % 2 == 1 { "cat" } else { "dog" });
    fs::create_dir_all(&class).unwrap();
    let (name, format) = if idx % 4 < 2 { ("jpg", ImageFormat::Jpeg) } else { ("png", ImageFormat::Png) };
    // Some of the PNGs are gray, which the color policy turns into RGB.
    let image = DynamicImage::ImageRgb8(pixels);
    let image = if idx % 8 == 2 { DynamicImage::ImageLuma8(image.to_luma8()) } else { image };
    image.save_with_format(class.join(format!("{idx:03}.{name}")), format).unwrap();
}

/// Every file below `dir`, hidden ones too, by relative path.
pub(crate) fn tree(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// Two folders hold the same files with the same bytes; says which do not.
pub(crate) fn assert_same_tree(found: &Path, expected: &Path) {
    let (found, expected) = (tree(found), tree(expected));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "other files");
    for (name, bytes) in &expected {
        assert!(found[name] == *bytes, "{name} has other bytes");
    }
}
