//! One door to pretrained networks on disk: a folder, a weights file in any layout that is read, a checkpoint's file.
//!
//! [`interop`] reads students, [`teacher`](crate::teacher) the towers of teachers. Some files are both: MAE's ViT
//! has the names of timm's. The caller says which is looked for first.

use std::path::{Path, PathBuf};

use crate::encoder::EncoderConfig;
use crate::error::{Error, Result};
use crate::interop::{self, Imported};
use crate::params::Tensors;
use crate::teacher::{TeacherOptions, TowerWeights};
use crate::weights::Weights;

#[cfg(test)]
mod tests;

/// What a file is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A student alone.
    Student,
    /// The tower of a teacher alone, exactly as it gives features.
    Tower,
    /// A student, or what no student is.
    StudentFirst,
    /// A tower, or what no tower is.
    TowerFirst,
}

/// A pretrained network with its tensors, which are finite, and where they are from.
#[derive(Debug)]
pub struct Pretrained {
    /// The network.
    pub network: Network,
    /// The file that was read (never the folder); the index of a sharded set.
    pub path: PathBuf,
    /// SHA-256 of the file; for a sharded set see [`Weights::sha256`].
    pub sha256: String,
    /// The free-text entries of a safetensors header: a checkpoint's recipe stands there.
    pub metadata: std::collections::BTreeMap<String, String>,
}

/// What was found in a file.
#[derive(Debug)]
pub enum Network {
    /// A student, with its decoder where the file has one.
    Student(Imported),
    /// A tower.
    Tower(Box<TowerWeights>),
}

impl Pretrained {
    /// Reads the network in `path`: a weights file, or a folder with one, and the configuration beside it.
    ///
    /// # Errors
    /// Unreadable and damaged files; those of [`interop::import`] and [`TowerWeights::read`];
    /// [`Error::NeitherStudentNorTower`] with the reasons of both.
    pub fn open(path: &Path, wanted: Wanted) -> Result<Pretrained> {
        let weights = Weights::read(path)?;
        let student = || interop::import(&weights).map(Network::Student);
        let tower = || {
            let tower = TowerWeights::of(&weights, &TeacherOptions::default());
            tower.map(|tower| Network::Tower(Box::new(tower)))
        };
        let network = match wanted {
            Wanted::Student => student()?,
            Wanted::Tower => tower()?,
            Wanted::StudentFirst => {
                let or_tower = |student| tower().map_err(|tower| neither(student, tower));
                student().or_else(or_tower)?
            }
            Wanted::TowerFirst => match tower() {
                Err(unknown @ Error::UnknownLayout { .. }) => student().map_err(|student| neither(student, unknown))?,
                found => found?,
            },
        };
        Ok(Pretrained {
            network,
            path: weights.path().to_path_buf(),
            sha256: weights.sha256().to_owned(),
            metadata: weights.metadata().clone(),
        })
    }

    /// The encoder that the tensors are of, at its native image size and without fusion.
    ///
    /// # Errors
    /// For a student, those of [`Imported::encoder_config`].
    pub fn encoder_config(&self) -> Result<EncoderConfig> {
        match &self.network {
            Network::Student(student) => student.encoder_config(&self.path),
            Network::Tower(tower) => Ok(EncoderConfig::Vit(tower.config.clone())),
        }
    }

    /// The tensors of the encoder alone, under the names of [`Encoder`](crate::encoder::Encoder).
    pub fn encoder_tensors(&self) -> Tensors {
        match &self.network {
            Network::Student(student) => student.encoder_tensors(),
            Network::Tower(tower) => {
                let named = |(name, tensor): (&String, &tch::Tensor)| (name.clone(), tensor.shallow_clone());
                tower.tensors.iter().map(named).collect()
            }
        }
    }

    /// Whose names the file has, for people.
    pub fn layout(&self) -> &'static str {
        match &self.network {
            Network::Student(student) => student.layout,
            Network::Tower(tower) => tower.layout,
        }
    }
}

fn neither(student: Error, tower: Error) -> Error {
    Error::NeitherStudentNorTower { student: Box::new(student), tower: Box::new(tower) }
}
