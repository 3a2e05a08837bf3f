//! From what was typed to a checked build: flags as settings, defaults, ranges.

use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::str::FromStr;

use program::recipe::{self, Error, Setting, invalid, require};
use schemas::{CacheIdentity, DepthWindow, Pack, TeacherId, ViewIdentity, ViewPolicy};
use serde::Serialize;

use super::{
    BuildConfig, CALIBRATION_IMAGES, CODEC, FLIP, RATIO, Recipe, SCALE, TeacherEntry, TeacherTable, VIEWS, View,
};
use crate::cli::{AddTeacherArgs, BuildCacheArgs, FeatureArgs};

/// More threads than any machine has cores; systems refuse some tens of thousands, and each takes memory.
const MAX_THREADS: usize = 4096;

impl BuildConfig {
    /// What `add-teacher` computes for a cache that is there: views and plan are the cache's.
    pub fn for_cache(args: &AddTeacherArgs, cache: &CacheIdentity) -> Result<BuildConfig, Error> {
        let mut flags = Flags::of_teachers(&args.teachers)?;
        flags.add("--images", "data.images", &args.images)?;
        flags.add_features(&args.features)?;
        let mut recipe: Recipe = recipe::typed("", "", &flags.settings)?;
        recipe.data.depth_window = Some(cache.depth_window.to_string());
        recipe.cache.out = Some(args.cache.clone());
        recipe.cache.part_samples = Some(cache.plan.part_samples);
        complete_teachers(&mut recipe, &args.features);
        complete(recipe, cache.views.clone(), cache.pack, false)
    }

    /// Lays flags and `--set` over the recipe, fills in the defaults and checks the result. Reads nothing but the recipe.
    pub fn resolve(args: &BuildCacheArgs) -> Result<BuildConfig, Error> {
        let mut flags = Flags::of_teachers(&args.teachers)?;
        flags.add("--images", "data.images", &args.images)?;
        flags.add("--limit", "data.limit", &args.limit)?;
        flags.add("--depth-window", "data.depth_window", &args.depth_window)?;
        flags.add("--view-policy", "view.policy", &args.view_policy)?;
        flags.add("--views", "view.views", &args.views)?;
        flags.add("--seed", "view.seed", &args.seed)?;
        flags.add("--grid", "features.grid", &args.grid)?;
        flags.add("--pack", "cache.pack", &args.pack)?;
        flags.add("--out", "cache.out", &args.out)?;
        flags.add("--part-samples", "cache.part_samples", &args.part_samples)?;
        flags.add_features(&args.features)?;
        flags.settings.extend(recipe::parse_all(&args.set)?);
        let (text, origin) = match &args.recipe {
            Some(path) => (recipe::read(path)?, path.display().to_string()),
            None => (String::new(), String::new()),
        };
        let mut recipe: Recipe = recipe::typed(&text, &origin, &flags.settings)?;
        complete_teachers(&mut recipe, &args.features);
        check(recipe, args.dry_run)
    }
}

/// What the flags set. Each is short for a `--set`.
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
            let table = TeacherTable { path: dir.to_owned(), ..TeacherTable::default() };
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
        self.add("--threads", "run.threads", &args.threads)
    }
}

/// Gives every teacher what the flags say of all of them and the recipe does not say of it.
fn complete_teachers(recipe: &mut Recipe, args: &FeatureArgs) {
    for entry in recipe.teachers.values_mut() {
        let mut table = entry.clone().into_table();
        table.layer = table.layer.or_else(|| args.layer.clone());
        table.activation = table.activation.or_else(|| args.activation.clone());
        // A mean belongs to its std.
        if table.mean.is_none() && table.std.is_none() {
            (table.mean, table.std) = (args.mean, args.std);
        }
        table.eps = table.eps.or(args.eps);
        table.heads = table.heads.or(args.heads);
        *entry = TeacherEntry::Table(table);
    }
}

/// Fills in the defaults and checks every value.
fn check(recipe: Recipe, dry_run: bool) -> Result<BuildConfig, Error> {
    if recipe.data.images.is_none() {
        return Err(Error::Missing { field: "data.images", flag: "--images SRC" });
    }
    if recipe.cache.out.is_none() {
        return Err(Error::Missing { field: "cache.out", flag: "--out CACHE" });
    }
    let pack = pack(recipe.cache.pack.as_deref().unwrap_or("none"))?;
    let views = check_view(&recipe.view)?;
    complete(recipe, views, pack, dry_run)
}

/// The rest, which a build and an added teacher share.
fn complete(recipe: Recipe, views: ViewIdentity, pack: Pack, dry_run: bool) -> Result<BuildConfig, Error> {
    let Recipe { data, view: _, teachers, features, cache, run } = recipe;
    let out = cache.out.ok_or(Error::Missing { field: "cache.out", flag: "--out CACHE" })?;
    if teachers.is_empty() {
        return Err(Error::Missing { field: "teachers", flag: "--teacher ID=DIR" });
    }
    let teachers = teachers.into_iter().map(|(id, entry)| entry.check(&id)).collect::<Result<_, Error>>()?;

    at_least_one("data.limit", data.limit)?;
    at_least_one("features.grid", features.grid)?;
    at_least_one("features.batch_size", features.batch_size)?;
    at_least_one("features.calibration_images", features.calibration_images)?;
    at_least_one("cache.part_samples", cache.part_samples)?;
    at_least_one("run.threads", run.threads)?;
    if let Some(threads) = run.threads {
        require(threads <= MAX_THREADS, "run.threads", threads, "must be at most 4096")?;
    }
    Ok(BuildConfig {
        images: data.images,
        limit: data.limit,
        depth_window: depth_window(data.depth_window.as_deref())?,
        out,
        teachers,
        grid: features.grid,
        codec: word("features.codec", features.codec.as_deref().unwrap_or(CODEC))?,
        calibration_images: features.calibration_images.unwrap_or(CALIBRATION_IMAGES),
        pack,
        precision: features.precision.as_deref().map(|name| word("features.precision", name)).transpose()?,
        batch_size: features.batch_size,
        part_samples: cache.part_samples,
        views,
        device: run.device.unwrap_or_else(|| "auto".into()),
        threads: run.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get())),
        dry_run,
    })
}

fn depth_window(text: Option<&str>) -> Result<DepthWindow, Error> {
    let window = text.map_or(Ok(DepthWindow::default()), str::parse);
    window.map_err(|error: schemas::BadDepthWindow| {
        invalid("data.depth_window", format!("{:?}", text.unwrap_or_default()), error)
    })
}

/// `none`, `original` or `jpeg:SHORT_SIDE:QUALITY`.
fn pack(text: &str) -> Result<Pack, Error> {
    let jpeg = |rest: &str| {
        let (short_side, quality) = rest.split_once(':')?;
        let (short_side, quality) = (short_side.parse().ok()?, quality.parse().ok()?);
        let good = (1..=1 << 15).contains(&short_side) && (1..=100).contains(&quality);
        good.then_some(Pack::Jpeg { short_side, quality })
    };
    let pack = match text {
        "none" => Some(Pack::None),
        "original" => Some(Pack::Original),
        _ => text.strip_prefix("jpeg:").and_then(jpeg),
    };
    pack.ok_or_else(|| {
        invalid(
            "cache.pack",
            format!("{text:?}"),
            "must be none, original, or jpeg:SHORT_SIDE:QUALITY, for example jpeg:256:90 (a side of 1 to 32768 pixels, a \
             quality of 1 to 100)",
        )
    })
}

fn check_view(view: &View) -> Result<ViewIdentity, Error> {
    let views = view.views.unwrap_or(VIEWS);
    at_least_one("view.views", Some(views))?;
    let seed = view.seed.unwrap_or(0);
    // TOML's integers are signed 64-bit: a larger seed could not be printed as a recipe.
    require(i64::try_from(seed).is_ok(), "view.seed", seed, "must be less than 2^63")?;
    let policy = match view.policy.as_deref().unwrap_or("rrc") {
        "rrc" => {
            let (scale, ratio, flip) =
                (view.scale.unwrap_or(SCALE), view.ratio.unwrap_or(RATIO), view.flip.unwrap_or(FLIP));
            let ordered = |[low, high]: [f64; 2]| low > 0.0 && low <= high && high.is_finite();
            require(
                ordered(scale) && scale[1] <= 1.0,
                "view.scale",
                format!("{scale:?}"),
                "must be [low, high] with 0 < low <= high <= 1",
            )?;
            require(ordered(ratio), "view.ratio", format!("{ratio:?}"), "must be [low, high] with 0 < low <= high")?;
            require((0.0..=1.0).contains(&flip), "view.flip", flip, "must be a probability, 0 to 1")?;
            ViewPolicy::Rrc { scale, ratio, flip }
        }
        name @ ("center" | "full") => {
            let set = [
                ("view.scale", view.scale.is_some()),
                ("view.ratio", view.ratio.is_some()),
                ("view.flip", view.flip.is_some()),
            ];
            for (field, set) in set {
                require(!set, field, "set", "has a meaning only with view.policy = \"rrc\"")?;
            }
            require(
                views == 1,
                "view.views",
                views,
                &format!("view.policy = {name:?} has one view per image; use \"rrc\" for more"),
            )?;
            if name == "center" { ViewPolicy::Center } else { ViewPolicy::Full }
        }
        other => {
            return Err(invalid("view.policy", format!("{other:?}"), "must be \"rrc\", \"center\" or \"full\""));
        }
    };
    Ok(ViewIdentity { policy, views, seed, filter: "bicubic".into() })
}

fn at_least_one<T: Display + PartialEq + From<u8>>(field: &str, value: Option<T>) -> Result<(), Error> {
    match value {
        Some(value) if value == T::from(0) => Err(invalid(field, value, "must be at least 1")),
        _ => Ok(()),
    }
}

pub(super) fn word<T: FromStr<Err: Display>>(field: &str, name: &str) -> Result<T, Error> {
    name.parse().map_err(|e| invalid(field, format!("{name:?}"), e))
}
