//! A teacher's tower as the start of a network that is trained.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::config::Config;
use super::layout::Layout;
use super::options::TeacherOptions;
use super::tower::{Pooling, Positions, TowerConfig, VitTower};
use crate::error::{Error, Result};
use crate::params::Scope;
use crate::weights::Weights;

/// A tower's architecture with its pixels' normalisation: what makes the network that a [`Teacher`](super::Teacher) is.
///
/// As with the frozen tower, what a file keeps apart without need is one parameter here: the position of CLS is part of the CLS
/// token, and LayerScale is multiplied into the last matrices of its branches. The function at the start is the file's; a step of
/// training treats each of these as one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tower {
    network: TowerConfig,
    mean: [f64; 3],
    std: [f64; 3],
}

/// A tower from a file.
#[derive(Debug)]
pub struct TowerWeights {
    /// What it is, at its native image size.
    pub tower: Tower,
    /// Its tensors under the names of the network, f32, on the CPU.
    pub tensors: BTreeMap<String, Tensor>,
    /// The layout of the file, for people.
    pub layout: &'static str,
    /// SHA-256 of the weights file or sharded set.
    pub sha256: String,
}

impl TowerWeights {
    /// Reads what [`Teacher::load`](super::Teacher::load) reads.
    ///
    /// # Errors
    /// As there.
    pub fn read(path: &Path) -> Result<TowerWeights> {
        let weights = Weights::read(path)?;
        let layout = Layout::recognise(&weights)?;
        let resolved = Config::read_beside(weights.path())?.resolve(&weights, &layout, &TeacherOptions::default())?;
        let tensors = layout.convert(&weights, &resolved.tower)?;
        let (mean, std) = resolved.normalisation;
        Ok(TowerWeights {
            tower: Tower { network: resolved.tower, mean, std },
            tensors: tensors.into_iter().collect(),
            layout: layout.title(),
            sha256: weights.sha256().to_owned(),
        })
    }
}

impl Tower {
    /// Family and sizes; see [`TeacherInfo::arch`](super::TeacherInfo::arch).
    pub fn arch(&self) -> String {
        self.network.arch()
    }

    /// Side of the square image, in pixels.
    pub fn img_size(&self) -> i64 {
        self.network.grid * self.network.patch_size
    }

    /// # Errors
    /// [`Error::Config`] unless patches fill it.
    pub(crate) fn set_img_size(&mut self, img_size: i64) -> Result<()> {
        let patch = self.network.patch_size;
        if img_size < patch || img_size % patch != 0 {
            return Err(Error::Config {
                field: "img_size",
                value: img_size.to_string(),
                reason: format!("must be a multiple of the tower's patch_size = {patch}"),
            });
        }
        self.network.grid = img_size / patch;
        Ok(())
    }

    /// Patches along a side.
    pub(crate) fn grid(&self) -> i64 {
        self.network.grid
    }

    /// Width `D` of its tokens.
    pub(crate) fn embed_dim(&self) -> i64 {
        self.network.width
    }

    /// Blocks.
    pub(crate) fn num_blocks(&self) -> i64 {
        self.network.depth
    }

    /// Hidden width of an MLP with as many products: of a gated one, which has three matrices where another has two, half as much
    /// again.
    pub(crate) fn mlp_dim(&self) -> i64 {
        match self.network.gated_mlp {
            true => self.network.mlp_dim * 3 / 2,
            false => self.network.mlp_dim,
        }
    }

    /// Side of a patch in pixels.
    pub(crate) fn patch_size(&self) -> i64 {
        self.network.patch_size
    }

    /// Whether its first token is CLS.
    pub(crate) fn cls_token(&self) -> bool {
        self.network.pooling == Pooling::Cls
    }

    /// Tokens before the patches.
    pub(crate) fn prefix(&self) -> i64 {
        self.network.prefix()
    }

    pub(crate) fn antialias(&self) -> bool {
        self.network.antialias()
    }

    pub(crate) fn norm_eps(&self) -> f64 {
        self.network.norm_eps
    }

    /// Mean and deviation of each channel of pixels in 0..1.
    pub(crate) fn normalisation(&self) -> ([f64; 3], [f64; 3]) {
        (self.mean, self.std)
    }

    /// # Errors
    /// [`Error::Config`] for the first field that no network can have.
    pub(crate) fn validate(&self) -> Result<()> {
        const MAX_SIZE: i64 = 65_536;
        let n = &self.network;
        for (field, value, least) in [
            ("width", n.width, 1),
            ("depth", n.depth, 1),
            ("num_heads", n.num_heads, 1),
            ("mlp_dim", n.mlp_dim, 1),
            ("patch_size", n.patch_size, 1),
            ("grid", n.grid, 1),
            ("registers", n.registers, 0),
        ] {
            if !(least..=MAX_SIZE).contains(&value) {
                return Err(Error::Config {
                    field,
                    value: value.to_string(),
                    reason: format!("must be in {least}..={MAX_SIZE}"),
                });
            }
        }
        let heads_of = match n.positions {
            Positions::Learned => 1,
            Positions::Rotary { .. } => 4,
        };
        if n.width % n.num_heads != 0 || n.width / n.num_heads % heads_of != 0 {
            return Err(Error::Config {
                field: "num_heads",
                value: n.num_heads.to_string(),
                reason: format!("must divide the width {} into heads whose width {heads_of} divides", n.width),
            });
        }
        Ok(())
    }

    /// Tensors that show its sizes, with their shapes.
    pub(crate) fn landmarks(&self) -> Vec<(String, Vec<i64>)> {
        let first = |name: &str| {
            matches!(name, "patch_embed.proj.weight" | "pos_embed" | "reg_token") || name.starts_with("blocks.0.mlp")
        };
        let one_block = TowerConfig { depth: 1, ..self.network.clone() };
        let specs = one_block.tensors().into_iter();
        specs.filter(|spec| first(&spec.name)).map(|spec| (spec.name, spec.shape)).collect()
    }

    /// The network under `scope`.
    pub(crate) fn network(&self, scope: &Scope) -> VitTower {
        VitTower::new(scope, &self.network)
    }
}
