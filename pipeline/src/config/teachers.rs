//! `[teachers]`: where each teacher is, and what is said about it that its files do not say.

use std::fmt;

use models::teacher::{Layer, TeacherOptions, mean_problem, std_problem};
use program::recipe::{Error, invalid, require};
use schemas::TeacherId;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::resolve::word;
use crate::channels::Channels;

/// An entry of `[teachers]`: a path, or a table with more about it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum TeacherEntry {
    /// `clip = "/models/clip"`
    Path(String),
    /// `[teachers.clip]`
    Table(TeacherTable),
}

impl<'de> Deserialize<'de> for TeacherEntry {
    /// By hand, since serde's untagged enums do not say which key is wrong.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<TeacherEntry, D::Error> {
        struct Entry;
        impl<'de> Visitor<'de> for Entry {
            type Value = TeacherEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a teacher's path, or a table with its path")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<TeacherEntry, E> {
                Ok(TeacherEntry::Path(path.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TeacherEntry, A::Error> {
                TeacherTable::deserialize(MapAccessDeserializer::new(map)).map(TeacherEntry::Table)
            }
        }
        from.deserialize_any(Entry)
    }
}

/// `[teachers.<id>]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherTable {
    /// Folder or weights file, or a model's id on the Hugging Face hub. Relative paths start at the current directory.
    pub path: String,
    /// Which features: `last`, `last_norm` or `proj`; default `last`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// The MLPs' activation, where the teacher's own files do not say: `gelu`, `quick_gelu`, `gelu_tanh`, `silu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<String>,
    /// Mean of each channel of pixels in 0..1, likewise: one number, or a list of three (R, G, B).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<Channels>,
    /// Standard deviation of each channel, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<Channels>,
    /// Epsilon of the layer norms, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
    /// Attention heads of each block, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<u32>,
}

/// A teacher of a build, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct TeacherSource {
    /// Folder, weights file or id on a hub.
    pub path: String,
    /// Which features, and what was said about the network.
    pub options: TeacherOptions,
}

impl TeacherEntry {
    /// As a table.
    pub(super) fn into_table(self) -> TeacherTable {
        match self {
            TeacherEntry::Path(path) => TeacherTable { path, ..TeacherTable::default() },
            TeacherEntry::Table(table) => table,
        }
    }

    /// Checks every value.
    pub(super) fn check(self, id: &str) -> Result<(TeacherId, TeacherSource), Error> {
        let table = self.into_table();
        let field = |name: &str| format!("teachers.{id}{name}");
        let id = TeacherId::new(id).map_err(|e| invalid(field(""), &table.path, e))?;
        let layer = table.layer.as_deref();
        let layer = layer.map_or(Ok(Layer::Last), |layer| word(&field(".layer"), layer))?;
        let activation = table.activation.as_deref();
        let activation = activation.map(|activation| word(&field(".activation"), activation));
        type Problem = fn([f64; 3]) -> Option<&'static str>;
        let pixels: [(_, _, Problem); 2] = [(".mean", table.mean, mean_problem), (".std", table.std, std_problem)];
        for (name, values, problem) in pixels {
            if let Some(Channels(values)) = values
                && let Some(problem) = problem(values)
            {
                return Err(invalid(field(name), format!("{values:?}"), problem));
            }
        }
        require(
            table.mean.is_some() == table.std.is_some(),
            &field(""),
            "mean without std or std without mean",
            "give both (--mean and --std), for one means nothing without the other",
        )?;
        if let Some(eps) = table.eps {
            let good = eps > 0.0 && eps < 1.0;
            require(good, &field(".eps"), eps, "must be between 0 and 1")?;
        }
        if let Some(heads) = table.heads {
            require(heads > 0, &field(".heads"), heads, "must be at least 1")?;
        }
        let options = TeacherOptions {
            layer,
            activation: activation.transpose()?,
            mean: table.mean.map(|Channels(values)| values),
            std: table.std.map(|Channels(values)| values),
            norm_eps: table.eps,
            num_heads: table.heads,
        };
        let path = table.path;
        Ok((id, TeacherSource { path, options }))
    }
}

impl TeacherSource {
    /// As a recipe says it.
    pub(super) fn entry(&self) -> TeacherEntry {
        let TeacherOptions { layer, activation, mean, std, norm_eps, num_heads } = self.options.clone();
        if self.options == TeacherOptions::default() {
            return TeacherEntry::Path(self.path.clone());
        }
        TeacherEntry::Table(TeacherTable {
            path: self.path.clone(),
            layer: Some(layer.name().into()),
            activation: activation.map(|activation| activation.name().into()),
            mean: mean.map(Channels),
            std: std.map(Channels),
            eps: norm_eps,
            heads: num_heads,
        })
    }
}
