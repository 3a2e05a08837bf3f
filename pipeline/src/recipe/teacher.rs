//! `[teachers]`: where each teacher is, and what is said about it that its files do not say.

use std::fmt;

use models::layers::Activation;
use models::teacher::{Layer, TeacherOptions, mean_problem, std_problem};
use program::range::at_least_one;
use program::recipe::{Error, invalid, require};
use schemas::{TeacherId, TeacherIdentity};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::channels::Channels;

/// A teacher: in a recipe its path, or the table `[teachers.<id>]` where more is said about it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct TeacherSource {
    /// Folder or weights file, or a model's id on the Hugging Face hub. Relative paths start at the current directory.
    pub path: String,
    /// Which features; default [`Layer::Last`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<Layer>,
    /// The MLPs' activation, where the teacher's own files do not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
    /// Mean of each channel of pixels in 0..1, likewise: one number, or a list of three (R, G, B).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<Channels>,
    /// Standard deviation of each channel, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub std: Option<Channels>,
    /// Epsilon of the layer norms, likewise, between 0 and 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
    /// Attention heads of each block, likewise, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<u32>,
}

impl Serialize for TeacherSource {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let only_path = TeacherSource { path: self.path.clone(), ..TeacherSource::default() };
        if *self == only_path { out.serialize_str(&self.path) } else { TeacherSource::serialize(self, out) }
    }
}

impl<'de> Deserialize<'de> for TeacherSource {
    /// By hand, since serde's untagged enums do not say which key is wrong.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<TeacherSource, D::Error> {
        struct PathOrTable;
        impl<'de> Visitor<'de> for PathOrTable {
            type Value = TeacherSource;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a teacher's path, or a table with its path")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<TeacherSource, E> {
                Ok(TeacherSource { path: path.to_owned(), ..TeacherSource::default() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TeacherSource, A::Error> {
                TeacherSource::deserialize(MapAccessDeserializer::new(map))
            }
        }
        from.deserialize_any(PathOrTable)
    }
}

impl TeacherSource {
    /// The teacher of a cache, which is at `path` now, with all that decided its features.
    ///
    /// # Errors
    /// A layer or activation that this version does not have.
    pub(super) fn as_built(teacher: &TeacherIdentity, path: &str) -> Result<TeacherSource, Error> {
        let field = |name: &str| format!("teachers.{}.{name}", teacher.id);
        let layer = teacher.layer.parse().map_err(|e| invalid(field("layer"), &teacher.layer, e))?;
        let activation = teacher.activation.parse();
        Ok(TeacherSource {
            path: path.to_owned(),
            layer: Some(layer),
            activation: Some(activation.map_err(|e| invalid(field("activation"), &teacher.activation, e))?),
            mean: Some(Channels(teacher.mean)),
            std: Some(Channels(teacher.std)),
            eps: Some(teacher.norm_eps),
            heads: teacher.heads(),
        })
    }

    /// What was said about the network.
    pub fn options(&self) -> TeacherOptions {
        TeacherOptions {
            layer: self.layer.unwrap_or_default(),
            activation: self.activation,
            mean: self.mean.map(|Channels(values)| values),
            std: self.std.map(|Channels(values)| values),
            norm_eps: self.eps,
            num_heads: self.heads,
        }
    }

    pub(super) fn check(&self, id: &TeacherId) -> Result<(), Error> {
        let field = |name: &str| format!("teachers.{id}{name}");
        type Problem = fn([f64; 3]) -> Option<&'static str>;
        let pixels: [(_, _, Problem); 2] = [(".mean", self.mean, mean_problem), (".std", self.std, std_problem)];
        for (name, values, problem) in pixels {
            if let Some(Channels(values)) = values
                && let Some(problem) = problem(values)
            {
                return Err(invalid(field(name), format!("{values:?}"), problem));
            }
        }
        require(
            self.mean.is_some() == self.std.is_some(),
            &field(""),
            "mean without std or std without mean",
            "give both (--mean and --std), for one means nothing without the other",
        )?;
        if let Some(eps) = self.eps {
            require(eps > 0.0 && eps < 1.0, &field(".eps"), eps, "must be between 0 and 1")?;
        }
        at_least_one(&field(".heads"), self.heads.map(u64::from))
    }
}
