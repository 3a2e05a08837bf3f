//! The cache's identity: everything that decides its bytes, except the teachers.

use std::collections::BTreeSet;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Batches, Codec, DepthWindow, Error, FieldDifference, Generation, Plan, Result, Scalar, TeacherIdentity, json,
};

/// The version of the format that this crate reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// The contents of `cache.json`. Two builds with equal identities write equal bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CacheIdentity {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The images.
    pub dataset: DatasetIdentity,
    /// Name and version of the code that turns an image file into the pixels a teacher sees.
    pub image_code: String,
    /// The views.
    pub views: ViewIdentity,
    /// The parts.
    pub plan: Plan,
    /// Whether and how images are packed into the samples files.
    pub pack: Pack,
    /// How samples of more than 8 bits become 8 bits. A record without it means `high-byte`.
    #[serde(default, skip_serializing_if = "DepthWindow::is_high_byte")]
    #[schemars(extend("default" = "high-byte"))]
    pub depth_window: DepthWindow,
    /// Whether samples with the bytes of an earlier one are rejected, so that each content is stored once. A record without it means that they are not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(extend("default" = false))]
    pub dedup: bool,
    /// Names of the classes; label `i` is `label_names[i]`. Empty if the data set names none.
    pub label_names: Vec<String>,
    /// What was appended since; in records of their own, and not part of this one or its fingerprint.
    #[serde(skip)]
    pub generations: Vec<Generation>,
}

/// The images a cache is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatasetIdentity {
    /// Layout of the source: `folder`, `tar` or `parquet`.
    pub kind: String,
    /// Number of samples.
    pub samples: u64,
    /// SHA-256, lower-case hexadecimal, over key, length and label of every sample in order.
    pub digest: String,
}

/// How views are drawn and rendered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ViewIdentity {
    /// The rule.
    #[serde(flatten)]
    pub policy: ViewPolicy,
    /// Views per image, at least 1.
    pub views: u16,
    /// Seed of the random ones.
    pub seed: u64,
    /// Resampling filter: `bicubic`.
    pub filter: String,
}

/// The rule that draws a view's crop box and flip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "policy", rename_all = "lowercase")]
pub enum ViewPolicy {
    /// RandomResizedCrop.
    Rrc {
        /// Share of the image's area: least, greatest; in 0..1.
        scale: [f64; 2],
        /// Width over height: least, greatest.
        ratio: [f64; 2],
        /// Probability of mirroring.
        flip: f64,
    },
    /// The largest centered square.
    Center,
    /// The whole image, whatever its shape.
    Full,
}

impl ViewPolicy {
    /// RandomResizedCrop as MAE and MR-MAE pretrain with it: area 0.2 to 1, ratio 3/4 to 4/3, mirrored half of the time.
    pub fn rrc() -> ViewPolicy {
        ViewPolicy::Rrc { scale: [0.2, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0], flip: 0.5 }
    }
}

/// Whether samples files carry the images themselves: `"none"`, `"original"` or `{"jpeg": {...}}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Pack {
    /// They do not: the trainer reads the data set.
    #[default]
    None,
    /// The bytes of the image files as they are.
    Original,
    /// Upright RGB JPEGs, made from the images before anything else looked at them: teachers and student see their pixels, and
    /// the crop boxes are in them.
    Jpeg {
        /// Images with a longer short side are scaled down to it, in pixels.
        short_side: u32,
        /// libjpeg's quality, 1 to 100.
        quality: u8,
    },
}

/// The most bytes a row's features may take. Parquet counts the bytes of a page in 31 bits.
const MAX_ROW_BYTES: u64 = 1 << 30;

impl CacheIdentity {
    /// SHA-256 of the identity in canonical JSON. Commit records carry it, so that parts of different caches cannot be mixed.
    pub fn fingerprint(&self) -> String {
        json::sha256_hex(json::canonical(&self.compared()).as_bytes())
    }

    /// The fields that decide bytes: all.
    pub(crate) fn compared(&self) -> Value {
        json::to_value(self)
    }

    /// Refuses a request that differs from what the cache at `path` (its `cache.json`) holds.
    ///
    /// # Errors
    /// [`Error::IdentityChanged`] names every field that differs.
    pub fn check_same(&self, path: &Path, requested: &CacheIdentity) -> Result<()> {
        let spelled_out = |identity: &CacheIdentity| {
            let mut fields = identity.compared();
            fields["depth_window"] = identity.depth_window.to_string().into();
            fields["dedup"] = identity.dedup.into();
            fields
        };
        check_same(path, &spelled_out(self), &spelled_out(requested))
    }

    /// Refuses values that no builder can have meant, before anything relies on them. `path` is named in the error.
    pub(crate) fn validate(&self, path: &Path) -> Result<()> {
        let rules = Rules { path };
        rules.version(self.format_version)?;
        rules.filled("dataset.kind", &self.dataset.kind)?;
        rules.sha256("dataset.digest", &self.dataset.digest)?;
        rules.filled("image_code", &self.image_code)?;
        rules.filled("views.filter", &self.views.filter)?;
        rules.check("views.views", self.views.views, self.views.views > 0, "at least 1")?;
        if let ViewPolicy::Rrc { scale: [least, most], ratio: [narrow, wide], flip } = self.views.policy {
            rules.check(
                "views.scale",
                format!("[{least}, {most}]"),
                0.0 < least && least <= most && most <= 1.0,
                "an ascending pair in (0, 1]",
            )?;
            let good = 0.0 < narrow && narrow <= wide && wide.is_finite();
            rules.check("views.ratio", format!("[{narrow}, {wide}]"), good, "an ascending pair above 0")?;
            rules.check("views.flip", flip, (0.0..=1.0).contains(&flip), "a probability")?;
        }
        if let Pack::Jpeg { short_side, quality } = self.pack {
            rules.check(
                "pack.jpeg.short_side",
                short_side,
                (1..=1 << 15).contains(&short_side),
                "between 1 and 32768",
            )?;
            rules.check("pack.jpeg.quality", quality, (1..=100).contains(&quality), "between 1 and 100")?;
        }
        let Plan { samples, part_samples } = self.plan;
        rules.check("plan.samples", samples, samples == self.dataset.samples, "equal to dataset.samples")?;
        rules.check("plan.part_samples", part_samples, part_samples > 0, "at least 1")?;
        let few = samples.div_ceil(part_samples) <= Plan::MAX_PARTS;
        rules.check(
            "plan.part_samples",
            part_samples,
            few,
            &format!("large enough for at most {} parts", Plan::MAX_PARTS),
        )
    }
}

impl TeacherIdentity {
    /// SHA-256 of the identity, but for `source`, `assumed` and `device_name`, in canonical JSON.
    pub fn fingerprint(&self) -> String {
        json::sha256_hex(json::canonical(&self.compared()).as_bytes())
    }

    /// The fields that decide bytes: all but `source`, `assumed` and `device_name`.
    pub(crate) fn compared(&self) -> Value {
        let mut value = json::to_value(self);
        if let Some(fields) = value.as_object_mut() {
            fields.remove("source");
            fields.remove("assumed");
            fields.remove("device_name");
        }
        value
    }

    /// Refuses a request that differs from what the cache at `path` (its `teacher.json`) holds.
    ///
    /// # Errors
    /// [`Error::IdentityChanged`] names every field that differs.
    pub fn check_same(&self, path: &Path, requested: &TeacherIdentity) -> Result<()> {
        let spelled_out = |teacher: &TeacherIdentity| {
            let mut fields = teacher.compared();
            fields["batches"] = teacher.batches.name().into();
            fields
        };
        let (mut cached, mut asked) = (spelled_out(self), spelled_out(requested));
        if self.codec.name() != requested.codec.name() {
            // The parameters of one of them, thousands of numbers, tell nobody more than the names do.
            cached["codec"] = self.codec.name().into();
            asked["codec"] = requested.codec.name().into();
        }
        check_same(path, &cached, &asked)
    }

    /// [`Self::validate`], and refuses what this version reads and does not write.
    pub(crate) fn validate_for_writing(&self, path: &Path) -> Result<()> {
        self.validate(path)?;
        let good = self.batches == Batches::Samples;
        Rules { path }.check("batches", self.batches.name(), good, "samples, since this version writes no other")
    }

    /// Refuses values that no builder can have meant, before anything relies on them. `path` is named in the error.
    pub(crate) fn validate(&self, path: &Path) -> Result<()> {
        let rules = Rules { path };
        rules.version(self.format_version)?;
        for (field, value) in [
            ("arch", &self.arch),
            ("layer", &self.layer),
            ("activation", &self.activation),
            ("device", &self.device),
            ("runtime", &self.runtime),
        ] {
            rules.filled(field, value)?;
        }
        rules.sha256("weights_sha256", &self.weights_sha256)?;
        rules.check(
            "precision",
            &self.precision,
            matches!(&*self.precision, "f32" | "bf16" | "tf32"),
            "f32 or bf16",
        )?;
        rules.check("norm_eps", self.norm_eps, self.norm_eps > 0.0 && self.norm_eps < 1.0, "between 0 and 1")?;
        for (field, values, least) in [("mean", self.mean, f64::MIN), ("std", self.std, f64::MIN_POSITIVE)] {
            let good = values.iter().all(|value| (least..=f64::MAX).contains(value));
            rules.check(field, format!("{values:?}"), good, "finite, and above 0 for std")?;
        }
        for (field, value) in [
            ("grid", self.grid),
            ("width", self.width),
            ("patch_size", self.patch_size),
            ("batch_size", self.batch_size),
        ] {
            rules.check(field, value, (1..=1 << 20).contains(&value), "between 1 and 1048576")?;
        }
        let side = u64::from(self.grid) * u64::from(self.patch_size);
        rules.check("input_size", self.input_size, u64::from(self.input_size) == side, "equal to grid * patch_size")?;
        let values = u128::from(self.grid) * u128::from(self.grid) * u128::from(self.width);
        let bytes = values * Scalar::F32.bytes_per_value() as u128;
        rules.check(
            "grid",
            format!("{} with {} channels a token", self.grid, self.width),
            bytes <= u128::from(MAX_ROW_BYTES),
            "small enough for a row below 1 GiB",
        )?;
        let Codec::I8(affine) = &self.codec else {
            return Ok(());
        };
        let problem = affine.problem(self.width as usize);
        rules.check(
            "codec.i8",
            problem.clone().unwrap_or_default(),
            problem.is_none(),
            &format!("parameters of {} channels", self.width),
        )
    }
}

/// Checks of an identity record's values.
pub(crate) struct Rules<'a> {
    pub(crate) path: &'a Path,
}

impl Rules<'_> {
    pub(crate) fn version(&self, found: u32) -> Result<()> {
        if found == FORMAT_VERSION {
            return Ok(());
        }
        Err(Error::Version { path: self.path.to_path_buf(), found: found.into(), supported: FORMAT_VERSION })
    }

    pub(crate) fn check(&self, field: &str, found: impl ToString, good: bool, expected: &str) -> Result<()> {
        if good {
            return Ok(());
        }
        Err(Error::IdentityValue {
            path: self.path.to_path_buf(),
            field: field.to_string(),
            found: found.to_string(),
            expected: expected.to_string(),
        })
    }

    pub(crate) fn filled(&self, field: &str, value: &str) -> Result<()> {
        self.check(field, format!("{value:?}"), !value.is_empty(), "a name")
    }

    pub(crate) fn sha256(&self, field: &str, value: &str) -> Result<()> {
        let good = json::parse_hex(value, &mut [0; 32]).is_some();
        self.check(field, format!("{value:?}"), good, "a SHA-256 in 64 lower-case hexadecimal digits")
    }
}

/// How far a field follows from others, so that the one a user changed is named first: other weights bring other sizes and constants, and
/// the plan and the input's size follow from other settings where they are not given themselves.
fn follows(field: &str) -> u8 {
    match field {
        "weights_sha256" => 0,
        "input_size" | "dataset.digest" => 2,
        _ if field.starts_with("plan.") => 2,
        _ => 1,
    }
}

/// A value for a message, cut where nobody would read on.
fn short(value: &Value) -> String {
    const SHOWN: usize = 120;
    let text = json::canonical(value);
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}... ({} bytes)", &text[..at], text.len()),
        None => text,
    }
}

fn check_same(path: &Path, cached: &Value, requested: &Value) -> Result<()> {
    let mut differences = json::differences(cached, requested);
    differences.sort_by_key(|difference| follows(&difference.field));
    if differences.is_empty() {
        return Ok(());
    }
    // One word about all classes: which are gone and which are new says more than what stands at which number.
    let of_classes = |difference: &json::Difference| difference.field.starts_with("label_names");
    let classes = differences.iter().position(of_classes);
    differences.retain(|difference| !of_classes(difference));
    let show = |value: &Option<Value>| value.as_ref().map_or("nothing".to_string(), short);
    let field = |difference: json::Difference| FieldDifference {
        cached: show(&difference.left),
        requested: show(&difference.right),
        field: difference.field,
    };
    let mut differences: Vec<_> = differences.into_iter().map(field).collect();
    if let Some(at) = classes {
        let [cached, requested] = [cached, requested].map(|identity| names(&identity["label_names"]));
        let difference = FieldDifference {
            field: "label_names".to_string(),
            cached: classes_beside(&cached, &requested),
            requested: classes_beside(&requested, &cached),
        };
        differences.insert(at.min(differences.len()), difference);
    }
    Err(Error::IdentityChanged { path: path.to_path_buf(), differences })
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// How many classes there are, and which of them the others lack.
fn classes_beside(these: &[&str], others: &[&str]) -> String {
    const SHOWN: usize = 5;
    const LETTERS: usize = 24;
    let others: BTreeSet<_> = others.iter().collect();
    let only: Vec<_> = these.iter().filter(|name| !others.contains(name)).collect();
    let mut said = format!("{} classes", these.len());
    for (i, name) in only.iter().take(SHOWN).enumerate() {
        let mut shown: String = name.chars().take(LETTERS).collect();
        if shown.len() < name.len() {
            shown.push_str("...");
        }
        said += if i == 0 { ", alone there " } else { ", " };
        said += &format!("{shown:?}");
    }
    if only.len() > SHOWN {
        said += &format!(" and {} more", only.len() - SHOWN);
    }
    said
}

#[cfg(test)]
mod tests;
