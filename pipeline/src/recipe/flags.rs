//! From what was typed to a checked recipe: a flag is short for a `--set`.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::Path;

use program::recipe::{self, Error, Setting, invalid};
use schemas::{CacheIdentity, Codec, TeacherId, TeacherIdentity};
use serde::Serialize;

use super::{CALIBRATION_IMAGES, CodecName, Recipe, Run, TeacherSource};
use crate::cli::{AddImagesArgs, AddTeacherArgs, BuildCacheArgs, FeatureArgs, RunArgs, VerifyArgs};

impl Recipe {
    /// Lays flags and `--set` over the recipe, fills in the defaults and checks the result. Reads nothing but the recipe.
    ///
    /// # Errors
    /// Any [`Error`].
    pub fn of_build(args: &BuildCacheArgs) -> Result<Recipe, Error> {
        let mut flags = Flags::of_teachers(&args.teachers)?;
        flags.add("--images", "data.images", &args.images)?;
        flags.add("--limit", "data.limit", &args.limit)?;
        flags.add("--dedup", "data.dedup", &args.dedup.then_some(true))?;
        flags.add("--depth-window", "data.depth_window", &args.depth_window)?;
        flags.add("--max-rejects", "data.max_rejects", &args.max_rejects)?;
        flags.add("--view-policy", "view.policy", &args.view_policy)?;
        flags.add("--views", "view.views", &args.views)?;
        flags.add("--seed", "view.seed", &args.seed)?;
        flags.add("--grid", "features.grid", &args.grid)?;
        flags.add("--pack", "cache.pack", &args.pack)?;
        flags.add("--out", "cache.out", &args.out)?;
        flags.add("--reuse", "cache.reuse", &args.reuse)?;
        flags.add("--part-samples", "cache.part_samples", &args.part_samples)?;
        flags.add_features(&args.features)?;
        flags.settings.extend(recipe::parse_all(&args.set)?);
        let (text, origin) = match &args.recipe {
            Some(path) => (recipe::read(path)?, path.display().to_string()),
            None => (String::new(), String::new()),
        };
        let mut recipe: Recipe = recipe::typed(&text, &origin, &flags.settings)?;
        if recipe.data.images.is_none() {
            return Err(Error::Missing { field: "data.images", flag: "--images SRC" });
        }
        recipe.say_of_all_teachers(&args.features);
        recipe.resolve()?;
        Ok(recipe)
    }

    /// What `add-teacher` computes for a cache that is there: views and plan are the cache's.
    ///
    /// # Errors
    /// Any [`Error`] but [`Error::Read`].
    pub fn of_added_teacher(args: &AddTeacherArgs, cache: &CacheIdentity) -> Result<Recipe, Error> {
        let mut flags = Flags::of_teachers(&args.teachers)?;
        flags.add("--images", "data.images", &args.images)?;
        flags.add_features(&args.features)?;
        let mut recipe: Recipe = recipe::typed("", "", &flags.settings)?;
        recipe.of_cache(&args.cache, cache);
        recipe.say_of_all_teachers(&args.features);
        recipe.resolve()?;
        Ok(recipe)
    }

    /// What `add-images` computes for a cache that is there, with some of its teachers: all that decides bytes is as it was.
    ///
    /// # Errors
    /// Any [`Error`] but [`Error::Read`].
    pub fn of_added_images(
        args: &AddImagesArgs,
        cache: &CacheIdentity,
        teachers: &[&TeacherIdentity],
    ) -> Result<Recipe, Error> {
        let mut flags = Flags { settings: Vec::new() };
        flags.add("--images", "data.images", &Some(&args.images))?;
        flags.add("--max-rejects", "data.max_rejects", &args.max_rejects)?;
        flags.add("--device", "run.device", &args.device)?;
        flags.add_run(&args.run)?;
        let mut recipe: Recipe = recipe::typed("", "", &flags.settings)?;
        recipe.repeat(&args.cache, cache, teachers, &args.teachers)?;
        Ok(recipe)
    }

    /// What `verify --spot-check` computes again of a cache.
    ///
    /// # Errors
    /// Any [`Error`] but [`Error::Read`].
    pub fn of_spot_check(
        args: &VerifyArgs,
        cache: &CacheIdentity,
        teachers: &[&TeacherIdentity],
    ) -> Result<Recipe, Error> {
        let mut flags = Flags { settings: Vec::new() };
        flags.add("--images", "data.images", &args.images)?;
        flags.add("--device", "run.device", &args.device)?;
        let mut recipe: Recipe = recipe::typed("", "", &flags.settings)?;
        recipe.repeat(&args.cache, cache, teachers, &args.weights)?;
        Ok(recipe)
    }

    /// Computes with teachers of a cache as they were computed: everything that decides bytes is the cache's. `moved` says of some of them where they are
    /// now, as `--teacher` does.
    fn repeat(
        &mut self,
        folder: &Path,
        cache: &CacheIdentity,
        teachers: &[&TeacherIdentity],
        moved: &[String],
    ) -> Result<(), Error> {
        self.of_cache(folder, cache);
        let moved: Recipe = recipe::typed("", "", &Flags::of_teachers(moved)?.settings)?;
        let any_device = self.run.device == Run::default().device;
        for teacher in teachers {
            let path = moved.teachers.get(&teacher.id).map_or(&teacher.source, |moved| &moved.path);
            self.teachers.insert(teacher.id.clone(), TeacherSource::as_built(teacher, path)?);
            let features = &mut self.features;
            features.grid = Some(teacher.grid);
            features.batch_size = Some(teacher.batch_size);
            let precision = teacher.precision.parse();
            features.precision = Some(precision.map_err(|e| invalid("features.precision", &teacher.precision, e))?);
            (features.codec, features.calibration_images) = match &teacher.codec {
                Codec::F32 => (CodecName::F32, CALIBRATION_IMAGES),
                Codec::F16 => (CodecName::F16, CALIBRATION_IMAGES),
                Codec::Bf16 => (CodecName::Bf16, CALIBRATION_IMAGES),
                Codec::I8(affine) => (CodecName::I8, affine.images),
            };
            if any_device {
                self.run.device.clone_from(&teacher.device);
            }
        }
        self.resolve()
    }

    /// What a cache that is there says of whatever is added to it.
    fn of_cache(&mut self, folder: &Path, cache: &CacheIdentity) {
        self.data.depth_window = cache.depth_window;
        self.data.dedup = cache.dedup;
        self.view = (&cache.views).into();
        self.cache.out = folder.to_path_buf();
        self.cache.pack = cache.pack;
        self.cache.part_samples = Some(cache.plan.part_samples);
    }

    /// Gives every teacher what the flags say of all of them and the recipe does not say of it.
    fn say_of_all_teachers(&mut self, args: &FeatureArgs) {
        for teacher in self.teachers.values_mut() {
            teacher.layer = teacher.layer.or(args.layer);
            teacher.activation = teacher.activation.or(args.activation);
            // A mean belongs to its std.
            if teacher.mean.is_none() && teacher.std.is_none() {
                (teacher.mean, teacher.std) = (args.mean, args.std);
            }
            teacher.eps = teacher.eps.or(args.eps);
            teacher.heads = teacher.heads.or(args.heads);
        }
    }
}

/// What the flags set.
struct Flags {
    settings: Vec<Setting>,
}

impl Flags {
    /// Those of `--teacher ID=DIR`, each of which adds to the recipe's teachers or replaces the one of the same id.
    fn of_teachers(teachers: &[String]) -> Result<Flags, Error> {
        let mut typed = BTreeSet::new();
        let mut setting = |teacher: &String| {
            let bad = |problem: &str| Error::Form {
                given: format!("--teacher {teacher}"),
                problem: format!("{problem}; write it as id=folder, for example clip=/models/clip-vit-base-patch16"),
            };
            let (id, dir) = teacher.split_once('=').ok_or_else(|| bad("has no '='"))?;
            if dir.is_empty() {
                return Err(bad("names no folder"));
            }
            TeacherId::new(id).map_err(|e| invalid(format!("teachers.{id}"), dir, e))?;
            if !typed.insert(id.to_owned()) {
                return Err(bad("gives the same id twice"));
            }
            // As a table, so that --set can say more about the teacher.
            let table = toml::Table::from_iter([("path".to_owned(), dir.into())]);
            Setting::flag(format!("--teacher {teacher}"), format!("teachers.{id}"), &table)
        };
        let settings = teachers.iter().map(&mut setting).collect::<Result<_, _>>()?;
        Ok(Flags { settings })
    }

    /// The setting `key`, if the flag was given.
    fn add<T: Serialize + Debug>(&mut self, flag: &str, key: &str, value: &Option<T>) -> Result<(), Error> {
        if let Some(value) = value {
            self.settings.push(Setting::flag(flag, key, value)?);
        }
        Ok(())
    }

    /// What a build and an added teacher share.
    fn add_features(&mut self, args: &FeatureArgs) -> Result<(), Error> {
        self.add("--codec", "features.codec", &args.codec)?;
        self.add("--calibration-images", "features.calibration_images", &args.calibration_images)?;
        self.add("--precision", "features.precision", &args.precision)?;
        self.add("--batch-size", "features.batch_size", &args.batch_size)?;
        self.add("--device", "run.device", &args.device)?;
        self.add_run(&args.run)
    }

    /// What every command that runs teachers shares.
    fn add_run(&mut self, args: &RunArgs) -> Result<(), Error> {
        self.add("--threads", "run.threads", &args.threads)?;
        self.add("--worker", "run.worker", &args.worker)?;
        self.add("--allow-full-disk", "run.allow_full_disk", &args.allow_full_disk.then_some(true))
    }
}
