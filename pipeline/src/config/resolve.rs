//! From what was typed to a checked build: reading, `--set`, flags, defaults, ranges.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

use super::{
    BuildConfig, CALIBRATION_IMAGES, CODEC, CacheFolder, Data, FLIP, PRECISION, RATIO, Recipe,
    SCALE, TeacherEntry, VIEWS, View,
};
use schemas::{CacheIdentity, DepthWindow, Pack, ViewIdentity, ViewPolicy, plain_words};

use crate::cli::{AddTeacherArgs, BuildCacheArgs, FeatureArgs};

/// More threads than any machine has cores; systems refuse some tens of thousands, and each takes memory.
const MAX_THREADS: usize = 4096;

/// What can be wrong with the settings. Every message names the setting and what would be accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe file cannot be read.
    #[error("{path:?}: cannot read the recipe")]
    Read {
        /// The recipe file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("{origin}: {message}")]
    Parse {
        /// The file, or `--set`.
        origin: String,
        /// The parser's message, which names the key.
        message: String,
    },
    /// `--set` or `--teacher` in a form that cannot be understood.
    #[error("{option} {given}: {problem}")]
    Form {
        /// `--set` or `--teacher`.
        option: &'static str,
        /// What was typed.
        given: String,
        /// What is wrong with it, with an example of the right form.
        problem: String,
    },
    /// A setting without a default was not given.
    #[error("{field} is missing: give {flag}, or {field} in a recipe")]
    Missing {
        /// Dotted name of the setting.
        field: &'static str,
        /// The flag, with its value's name.
        flag: &'static str,
    },
    /// A value outside its range, or settings that exclude each other.
    #[error("{field} = {value}: {problem}")]
    Invalid {
        /// Dotted name of the setting.
        field: String,
        /// What it was.
        value: String,
        /// What it must be.
        problem: String,
    },
}

impl BuildConfig {
    /// What `add-teacher` computes for a cache that is there: views and plan are the cache's.
    pub fn for_cache(args: &AddTeacherArgs, cache: &CacheIdentity) -> Result<BuildConfig, Error> {
        let mut recipe = Recipe {
            data: Data {
                images: args.images.clone(),
                limit: None,
                depth_window: Some(cache.depth_window.to_string()),
            },
            cache: CacheFolder {
                out: Some(args.cache.clone()),
                pack: None,
                part_samples: Some(cache.plan.part_samples),
            },
            ..Recipe::default()
        };
        let teachers = teacher_paths(&args.teachers)?.into_iter();
        recipe.teachers = teachers
            .map(|(id, dir)| (id, TeacherEntry::Path(dir)))
            .collect();
        overlay_features(&mut recipe, &args.features);
        complete(recipe, cache.views.clone(), cache.pack, false)
    }

    /// Merges defaults, recipe, and `--set` with flags (the later wins) and checks the result. Reads nothing but the recipe.
    pub fn resolve(args: &BuildCacheArgs) -> Result<BuildConfig, Error> {
        let teachers = teacher_paths(&args.teachers)?;
        refuse_flag_and_setting(args, &teachers)?;
        let mut recipe = read(args.recipe.as_deref(), &teachers, &args.set)?;
        overlay_flags(&mut recipe, args);
        check(recipe, args.dry_run)
    }
}

/// Refuses a setting that a flag and `--set` both give: which of them is meant is not ours to guess.
fn refuse_flag_and_setting(
    args: &BuildCacheArgs,
    teachers: &[(String, String)],
) -> Result<(), Error> {
    let features = &args.features;
    let flags = [
        ("data.images", "--images", args.images.is_some()),
        ("data.limit", "--limit", args.limit.is_some()),
        (
            "data.depth_window",
            "--depth-window",
            args.depth_window.is_some(),
        ),
        ("view.policy", "--view-policy", args.view_policy.is_some()),
        ("view.views", "--views", args.views.is_some()),
        ("view.seed", "--seed", args.seed.is_some()),
        ("features.grid", "--grid", args.grid.is_some()),
        ("features.codec", "--codec", features.codec.is_some()),
        (
            "features.calibration_images",
            "--calibration-images",
            features.calibration_images.is_some(),
        ),
        (
            "features.precision",
            "--precision",
            features.precision.is_some(),
        ),
        (
            "features.batch_size",
            "--batch-size",
            features.batch_size.is_some(),
        ),
        ("cache.pack", "--pack", args.pack.is_some()),
        ("cache.out", "--out", args.out.is_some()),
        (
            "cache.part_samples",
            "--part-samples",
            args.part_samples.is_some(),
        ),
        ("run.device", "--device", features.device.is_some()),
        ("run.threads", "--threads", features.threads.is_some()),
    ];
    for setting in &args.set {
        let key = setting.split('=').next().unwrap_or_default().trim();
        let flag = (flags.iter()).find(|(field, _, given)| *given && *field == key);
        let teacher = key.strip_prefix("teachers.").and_then(|key| {
            let id = key.strip_suffix(".path").unwrap_or(key);
            teachers.iter().find(|(given, _)| given == id)
        });
        let flag = match (flag, teacher) {
            (Some((_, flag, _)), _) => (*flag).to_owned(),
            (None, Some((id, path))) => format!("--teacher {id}={path}"),
            (None, None) => continue,
        };
        return Err(Error::Form {
            option: "--set",
            given: setting.clone(),
            problem: format!("{flag} says the same setting; give one of them"),
        });
    }
    Ok(())
}

/// The recipe file (or an empty one) with the paths of `--teacher` and every `--set` applied.
fn read(
    path: Option<&Path>,
    teachers: &[(String, String)],
    settings: &[String],
) -> Result<Recipe, Error> {
    let mut table = toml::Table::new();
    let mut origin = "--set".to_owned();
    if let Some(path) = path {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.into(),
            source,
        })?;
        origin = path.display().to_string();
        let parse_error = |e: toml::de::Error| Error::Parse {
            origin: origin.clone(),
            message: plain_words(&e.to_string()),
        };
        // Checked before the settings are laid over it, so that the parser can point at the line.
        toml::from_str::<Recipe>(&text).map_err(parse_error)?;
        table = toml::from_str(&text).map_err(parse_error)?;
    }
    for (id, dir) in teachers {
        // As a table, so that settings can say more about the teacher.
        let entry = toml::Table::from_iter([("path".to_owned(), dir.clone().into())]);
        let all = table
            .entry("teachers")
            .or_insert_with(|| toml::Table::new().into());
        if let Some(all) = all.as_table_mut() {
            all.insert(id.clone(), entry.into());
        }
    }
    let mut given = BTreeSet::new();
    for setting in settings {
        let key = setting.split('=').next().unwrap_or_default().trim();
        let within = |other: &&str| other.strip_prefix(key).is_some_and(|k| k.starts_with('.'));
        if given.iter().any(within) || !given.insert(key) {
            return Err(Error::Form {
                option: "--set",
                given: setting.clone(),
                problem: format!("{key} is given twice; give it once"),
            });
        }
        apply(&mut table, setting)?;
        let checked = Recipe::deserialize(toml::Value::Table(table.clone()));
        checked.map_err(|e| Error::Parse {
            origin: format!("--set {setting}"),
            message: plain_words(e.to_string().trim()),
        })?;
    }
    Recipe::deserialize(toml::Value::Table(table)).map_err(|e| Error::Parse {
        origin,
        message: plain_words(&e.to_string()),
    })
}

/// Whether a text is an integer beyond TOML's, which have 64 bits with the sign: it is meant as a number and not as a word.
fn is_beyond_toml(text: &str) -> bool {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    let parsed = text.trim().parse::<i64>();
    parsed.is_err_and(|e| matches!(e.kind(), PosOverflow | NegOverflow))
}

/// Sets `section.key` of `table` to a TOML value, or to a bare string when it is not one (`features.codec=f32`).
fn apply(table: &mut toml::Table, setting: &str) -> Result<(), Error> {
    let bad = |problem: &str| Error::Form {
        option: "--set",
        given: setting.to_owned(),
        problem: format!(
            "{problem}; write it as section.key=value, for example features.batch_size=32"
        ),
    };
    let (key, text) = setting.split_once('=').ok_or_else(|| bad("has no '='"))?;
    let value = match toml::from_str::<toml::Table>(&format!("value = {text}")) {
        // A text with line breaks could bring further keys with it; only the one asked for is taken.
        Ok(mut parsed) if parsed.len() == 1 => parsed.remove("value").expect("the only key"),
        _ if is_beyond_toml(text) => return Err(bad("is a number beyond 2^63 - 1")),
        _ => toml::Value::String(text.trim().to_owned()),
    };
    // Whole, it would replace what the recipe and other settings say of the section, and hide its keys from the check of what is given twice.
    if let toml::Value::Table(values) = &value {
        let one = values.keys().next().map_or("name", String::as_str);
        return Err(bad(&format!(
            "is a table; set its keys one by one, as --set {}.{one}=VALUE",
            key.trim()
        )));
    }
    let mut path: Vec<&str> = key.trim().split('.').collect();
    let last = path
        .pop()
        .filter(|key| !key.is_empty())
        .ok_or_else(|| bad("names no key"))?;
    let mut section = table;
    for name in path {
        section = section
            .entry(name)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| bad("goes through a key that is not a section"))?;
    }
    section.insert(last.to_owned(), value);
    Ok(())
}

/// Lays the flags over the recipe, which has the teachers already.
fn overlay_flags(recipe: &mut Recipe, args: &BuildCacheArgs) {
    set(&mut recipe.data.images, &args.images);
    set(&mut recipe.data.limit, &args.limit);
    set(&mut recipe.data.depth_window, &args.depth_window);
    set(&mut recipe.view.policy, &args.view_policy);
    set(&mut recipe.view.views, &args.views);
    set(&mut recipe.view.seed, &args.seed);
    set(&mut recipe.features.grid, &args.grid);
    set(&mut recipe.cache.pack, &args.pack);
    set(&mut recipe.cache.out, &args.out);
    set(&mut recipe.cache.part_samples, &args.part_samples);
    overlay_features(recipe, &args.features);
}

/// A flag, if it was given, in the place of what was said before.
fn set<T: Clone>(slot: &mut Option<T>, flag: &Option<T>) {
    if flag.is_some() {
        slot.clone_from(flag);
    }
}

/// The flags that a build and an added teacher share. The teachers are in the recipe already.
fn overlay_features(recipe: &mut Recipe, args: &FeatureArgs) {
    let FeatureArgs {
        layer,
        activation,
        mean,
        std,
        eps,
        heads,
        codec,
        calibration_images,
        precision,
        batch_size,
        threads,
        device,
    } = args;
    set(&mut recipe.features.codec, codec);
    set(&mut recipe.features.calibration_images, calibration_images);
    set(&mut recipe.features.precision, precision);
    set(&mut recipe.features.batch_size, batch_size);
    set(&mut recipe.run.device, device);
    set(&mut recipe.run.threads, threads);
    // What they say holds for every teacher that the recipe does not say it of.
    for entry in recipe.teachers.values_mut() {
        let mut table = entry.clone().into_table();
        table.layer = table.layer.or_else(|| layer.clone());
        table.activation = table.activation.or_else(|| activation.clone());
        // A mean belongs to its std.
        if table.mean.is_none() && table.std.is_none() {
            (table.mean, table.std) = (*mean, *std);
        }
        table.eps = table.eps.or(*eps);
        table.heads = table.heads.or(*heads);
        *entry = TeacherEntry::Table(table);
    }
}

/// What each `--teacher` says, as (id, path). It adds to the recipe's teachers, or replaces the one of the same id.
fn teacher_paths(teachers: &[String]) -> Result<Vec<(String, String)>, Error> {
    let mut typed = BTreeSet::new();
    let mut pairs = Vec::new();
    for teacher in teachers {
        let bad = |problem: &str| Error::Form {
            option: "--teacher",
            given: teacher.clone(),
            problem: format!(
                "{problem}; write it as id=folder, for example clip=/models/clip-vit-base-patch16"
            ),
        };
        let (id, dir) = teacher.split_once('=').ok_or_else(|| bad("has no '='"))?;
        if dir.is_empty() {
            return Err(bad("names no folder"));
        }
        if !typed.insert(id) {
            return Err(bad("gives the same id twice"));
        }
        pairs.push((id.to_owned(), dir.to_owned()));
    }
    Ok(pairs)
}

/// Fills in the defaults and checks every value.
fn check(recipe: Recipe, dry_run: bool) -> Result<BuildConfig, Error> {
    if recipe.data.images.is_none() {
        return Err(Error::Missing {
            field: "data.images",
            flag: "--images SRC",
        });
    }
    if recipe.cache.out.is_none() {
        return Err(Error::Missing {
            field: "cache.out",
            flag: "--out CACHE",
        });
    }
    let pack = pack(recipe.cache.pack.as_deref().unwrap_or("none"))?;
    let views = check_view(&recipe.view)?;
    complete(recipe, views, pack, dry_run)
}

/// The rest, which a build and an added teacher share.
fn complete(
    recipe: Recipe,
    views: ViewIdentity,
    pack: Pack,
    dry_run: bool,
) -> Result<BuildConfig, Error> {
    let Recipe {
        data,
        view: _,
        teachers,
        features,
        cache,
        run,
    } = recipe;
    let out = cache.out.ok_or(Error::Missing {
        field: "cache.out",
        flag: "--out CACHE",
    })?;
    if teachers.is_empty() {
        return Err(Error::Missing {
            field: "teachers",
            flag: "--teacher ID=DIR",
        });
    }
    let teachers = teachers
        .into_iter()
        .map(|(id, entry)| entry.check(&id))
        .collect::<Result<_, Error>>()?;

    at_least_one("data.limit", data.limit)?;
    at_least_one("features.grid", features.grid)?;
    at_least_one("features.batch_size", features.batch_size)?;
    at_least_one("features.calibration_images", features.calibration_images)?;
    at_least_one("cache.part_samples", cache.part_samples)?;
    at_least_one("run.threads", run.threads)?;
    if let Some(threads) = run.threads {
        require(
            threads <= MAX_THREADS,
            "run.threads",
            threads,
            "must be at most 4096",
        )?;
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
        precision: word(
            "features.precision",
            features.precision.as_deref().unwrap_or(PRECISION),
        )?,
        batch_size: features.batch_size,
        part_samples: cache.part_samples,
        views,
        device: run.device.unwrap_or_else(|| "auto".into()),
        threads: run
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get())),
        dry_run,
    })
}

fn depth_window(text: Option<&str>) -> Result<DepthWindow, Error> {
    let window = text.map_or(Ok(DepthWindow::default()), str::parse);
    window.map_err(|error: schemas::BadDepthWindow| {
        invalid(
            "data.depth_window",
            format!("{:?}", text.unwrap_or_default()),
            error,
        )
    })
}

/// `none`, `original` or `jpeg:SHORT_SIDE:QUALITY`.
fn pack(text: &str) -> Result<Pack, Error> {
    let jpeg = |rest: &str| {
        let (short_side, quality) = rest.split_once(':')?;
        let (short_side, quality) = (short_side.parse().ok()?, quality.parse().ok()?);
        let good = (1..=1 << 15).contains(&short_side) && (1..=100).contains(&quality);
        good.then_some(Pack::Jpeg {
            short_side,
            quality,
        })
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
    require(
        i64::try_from(seed).is_ok(),
        "view.seed",
        seed,
        "must be less than 2^63",
    )?;
    let policy = match view.policy.as_deref().unwrap_or("rrc") {
        "rrc" => {
            let (scale, ratio, flip) = (
                view.scale.unwrap_or(SCALE),
                view.ratio.unwrap_or(RATIO),
                view.flip.unwrap_or(FLIP),
            );
            let ordered = |[low, high]: [f64; 2]| low > 0.0 && low <= high && high.is_finite();
            require(
                ordered(scale) && scale[1] <= 1.0,
                "view.scale",
                format!("{scale:?}"),
                "must be [low, high] with 0 < low <= high <= 1",
            )?;
            require(
                ordered(ratio),
                "view.ratio",
                format!("{ratio:?}"),
                "must be [low, high] with 0 < low <= high",
            )?;
            require(
                (0.0..=1.0).contains(&flip),
                "view.flip",
                flip,
                "must be a probability, 0 to 1",
            )?;
            ViewPolicy::Rrc { scale, ratio, flip }
        }
        name @ ("center" | "full") => {
            let set = [
                ("view.scale", view.scale.is_some()),
                ("view.ratio", view.ratio.is_some()),
                ("view.flip", view.flip.is_some()),
            ];
            for (field, set) in set {
                require(
                    !set,
                    field,
                    "set",
                    "has a meaning only with view.policy = \"rrc\"",
                )?;
            }
            require(
                views == 1,
                "view.views",
                views,
                &format!("view.policy = {name:?} has one view per image; use \"rrc\" for more"),
            )?;
            if name == "center" {
                ViewPolicy::Center
            } else {
                ViewPolicy::Full
            }
        }
        other => {
            return Err(invalid(
                "view.policy",
                format!("{other:?}"),
                "must be \"rrc\", \"center\" or \"full\"",
            ));
        }
    };
    Ok(ViewIdentity {
        policy,
        views,
        seed,
        filter: "bicubic".into(),
    })
}

pub(super) fn invalid(field: &str, value: impl Display, problem: impl Display) -> Error {
    Error::Invalid {
        field: field.into(),
        value: value.to_string(),
        problem: problem.to_string(),
    }
}

pub(super) fn require(
    ok: bool,
    field: &str,
    value: impl Display,
    problem: &str,
) -> Result<(), Error> {
    if ok {
        Ok(())
    } else {
        Err(invalid(field, value, problem))
    }
}

fn at_least_one<T: Display + PartialEq + From<u8>>(
    field: &str,
    value: Option<T>,
) -> Result<(), Error> {
    match value {
        Some(value) if value == T::from(0) => Err(invalid(field, value, "must be at least 1")),
        _ => Ok(()),
    }
}

pub(super) fn word<T: FromStr<Err: Display>>(field: &str, name: &str) -> Result<T, Error> {
    name.parse()
        .map_err(|e| invalid(field, format!("{name:?}"), e))
}
