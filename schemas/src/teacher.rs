//! A teacher's identity and rows.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Codec, Error, FeatureCodec, Result, RowFeatures, RowKey, Scalar};

/// A teacher's name in a cache: 1 to 64 of `a-z 0-9 . _ -`, a letter or digit first. It is a folder name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^[a-z0-9][a-z0-9._-]{0,63}$"))]
pub struct TeacherId(String);

impl TeacherId {
    /// Checks the name.
    pub fn new(id: impl Into<String>) -> Result<TeacherId> {
        let id = id.into();
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let good = matches!(id.as_bytes(), [first, rest @ ..] if plain(*first) && rest.len() < 64
            && rest.iter().all(|&b| plain(b) || matches!(b, b'.' | b'_' | b'-')));
        if good { Ok(TeacherId(id)) } else { Err(Error::TeacherName { id }) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TeacherId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TeacherId {
    type Err = Error;
    fn from_str(id: &str) -> Result<TeacherId> {
        TeacherId::new(id)
    }
}

impl TryFrom<String> for TeacherId {
    type Error = Error;
    fn try_from(id: String) -> Result<TeacherId> {
        TeacherId::new(id)
    }
}

impl From<TeacherId> for String {
    fn from(id: TeacherId) -> String {
        id.0
    }
}

/// Everything about a teacher that decides the bytes of its features: the contents of `teacher.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TeacherIdentity {
    /// [`FORMAT_VERSION`](crate::FORMAT_VERSION).
    pub format_version: u32,
    /// Its name in this cache, equal to its folder's.
    pub id: TeacherId,
    /// Network, for example `clip-vit` or `dino-vit`.
    pub arch: String,
    /// Where the weights came from. For people: it is never compared, since a copy elsewhere gives the same features.
    pub source: String,
    /// Facts about the network that no file or setting stated, each with its value and the reason it was taken. For people and never
    /// compared: the values are in the other fields. Absent where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("default" = []))]
    pub assumed: Vec<String>,
    /// SHA-256 of the weights file, lower-case hexadecimal.
    pub weights_sha256: String,
    /// Which features: `last` is the residual stream after the last block, before the final norm; `last_norm` is after that norm;
    /// `proj` after the norm and the visual projection.
    pub layer: String,
    /// Activation of the MLPs: `gelu`, `gelu_tanh`, `quick_gelu` or `silu`.
    pub activation: String,
    /// Epsilon of the layer norms.
    pub norm_eps: f64,
    /// Side in pixels of the square input: `grid * patch_size`.
    pub input_size: u32,
    /// Side in pixels of a patch.
    pub patch_size: u32,
    /// Per-channel mean subtracted from pixels in 0..1, RGB.
    pub mean: [f64; 3],
    /// Per-channel standard deviation that pixels are then divided by, RGB.
    pub std: [f64; 3],
    /// Patches per side: a row has `L = grid * grid` tokens, row-major.
    pub grid: u32,
    /// Channels `D` of a token.
    pub width: u32,
    /// How `tokens` and `cls` are stored.
    pub codec: Codec,
    /// Arithmetic of the forward pass: `f32`, `bf16` or `tf32`.
    pub precision: String,
    /// Views per forward pass; the last bits of a result depend on it.
    pub batch_size: u32,
    /// How a part's rows are cut into forward passes. A record without it means `rows`.
    #[serde(default, skip_serializing_if = "Batches::are_rows")]
    #[schemars(extend("default" = "rows"))]
    pub batches: Batches,
    /// Kind of device: `cpu` or `cuda`.
    pub device: String,
    /// The GPU of the build that began with this teacher, as its driver names it. For people and never compared: parts may come from
    /// several. Absent for a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = null))]
    pub device_name: Option<String>,
    /// Library and version that computed the features.
    pub runtime: String,
}

impl TeacherIdentity {
    /// Attention heads of each block, as [`Self::arch`] has them (`-h12`), if it does.
    pub fn heads(&self) -> Option<u32> {
        let mut parts = self.arch.split('-');
        parts.find_map(|part| part.strip_prefix('h')?.parse().ok())
    }

    /// Tokens of a row, `L`.
    pub fn n_tokens(&self) -> usize {
        self.grid as usize * self.grid as usize
    }

    /// Bytes of a row's `tokens`: `[L, D]` values of [`Self::codec`].
    pub fn tokens_bytes(&self) -> usize {
        self.codec.tokens().bytes(self.n_tokens(), self.width as usize)
    }

    /// Bytes of a row's `cls`: `[D]` values of [`Codec::cls`].
    pub fn cls_bytes(&self) -> usize {
        self.width as usize * self.codec.cls().bytes_per_value()
    }

    /// Bytes of a row's `cls_attn`: `[L]` values, always f16.
    pub fn cls_attn_bytes(&self) -> usize {
        self.n_tokens() * Scalar::F16.bytes_per_value()
    }

    /// Replaces `values` by a row's decoded `tokens`, `[L, D]`.
    ///
    /// # Errors
    /// [`Error::CodecLength`] if the bytes are not those of a row.
    pub fn decode_tokens(&self, bytes: &[u8], values: &mut Vec<f32>) -> Result<()> {
        let width = self.width as usize;
        values.resize(self.n_tokens() * width, 0.0);
        self.codec.tokens().decode_into(bytes, width, values)
    }

    /// Replaces `values` by a row's decoded `cls`, `[D]`.
    ///
    /// # Errors
    /// As [`Self::decode_tokens`].
    pub fn decode_cls(&self, bytes: &[u8], values: &mut Vec<f32>) -> Result<()> {
        let width = self.width as usize;
        values.resize(width, 0.0);
        self.codec.cls().decode_into(bytes, width, values)
    }

    /// Replaces `values` by a row's decoded `cls_attn`, `[L]`.
    ///
    /// # Errors
    /// As [`Self::decode_tokens`].
    pub fn decode_cls_attn(&self, bytes: &[u8], values: &mut Vec<f32>) -> Result<()> {
        values.resize(self.n_tokens(), 0.0);
        Scalar::F16.decode_into(bytes, 1, values)
    }
}

/// How the rows of a part are cut into forward passes, which decides the last bits of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Batches {
    /// `batch_size` usable rows each: the batches behind an image that cannot be used depend on it. This version reads such features and
    /// writes none. The channel sums of a part are added token by token.
    #[default]
    Rows,
    /// The rows of `max(1, batch_size / views)` consecutive samples: an image that cannot be used makes its own batch shorter. The channel
    /// sums of a part are those of its rows, added row by row.
    Samples,
}

impl Batches {
    pub(crate) fn are_rows(&self) -> bool {
        *self == Batches::Rows
    }

    /// The word in a record.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Batches::Rows => "rows",
            Batches::Samples => "samples",
        }
    }
}

/// One row of a teacher's file. The three features are encoded bytes, little-endian.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TeacherRow {
    /// As in the samples row.
    pub key: RowKey,
    /// Patch tokens `[L, D]`, row-major over the grid.
    pub tokens: Vec<u8>,
    /// CLS token `[D]`.
    pub cls: Vec<u8>,
    /// Attention of the last block's CLS query to each patch, mean over heads, `[L]` f16; sums to at most 1 (the rest went to
    /// CLS itself and to registers).
    pub cls_attn: Vec<u8>,
}

impl TeacherRow {
    /// The features alone.
    pub fn features(&self) -> RowFeatures<'_, u8> {
        RowFeatures { tokens: &self.tokens, cls: &self.cls, cls_attn: &self.cls_attn }
    }
}
