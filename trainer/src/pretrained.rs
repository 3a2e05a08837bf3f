//! The one door to networks that exist: what a run, a file, or a model's id on the command line or in a recipe stands for.
//!
//! Our own checkpoints are read with their recipe and compared with the digests beside them ([`Trained`]); files of other packages are read
//! by [`models::pretrained`]. Everything that takes a network opens it here: `knn`, `linprobe`, `finetune`, `plan`, `export`, `reconstruct`
//! and `model.init`.

use anyhow::{Context, ensure};
use hub::HubSettings;
use models::mae::Mae;
use models::params::ParamStore;
use models::pretrained::Wanted;
use program::fetch::resolve;
use sha2::{Digest, Sha256};
use tch::Device;

use crate::recipe::spec::Spec;
use crate::recipe::{Experiment, Recipe};
use trained::Trained;

pub(crate) mod depth_window;
pub(crate) mod finetune_init;
pub(crate) mod init;
pub(crate) mod student;
pub(crate) mod trained;

/// A network that exists.
#[derive(Debug)]
pub(crate) enum Pretrained {
    /// A run's, or a file of its checkpoint, with the recipe.
    Trained(Box<Trained>),
    /// A file of another package.
    Foreign {
        found: Box<models::pretrained::Pretrained>,
        /// Where it is from, for people: the path, or the id with its commit.
        source: String,
    },
}

/// Who asks for a network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Door<'a> {
    /// The option, for messages.
    pub option: &'a str,
    /// What the option takes, for messages.
    pub takes: &'a str,
    /// How a file of another package is read, unless the spec says `teacher:`.
    pub wanted: Wanted,
    /// Where models are looked for by id.
    pub hub: &'a HubSettings,
}

impl Door<'_> {
    /// Opens the newest whole checkpoint of a run folder, a file of a checkpoint, or any file that [`models::pretrained`] reads.
    ///
    /// # Errors
    /// Those of reading, and a prefix that the network cannot have, naming what can.
    pub(crate) fn open(&self, spec: &Spec) -> anyhow::Result<Pretrained> {
        let (option, given, path) = (self.option, spec.given, spec.path());
        ensure!(!spec.name.is_empty(), "{option} {given:?}: nothing is named; give {}", self.takes);
        ensure!(
            !(spec.ema && spec.untrained),
            "{option} {given}: a student before its first step has no moving average; leave out one of the prefixes"
        );
        ensure!(
            !(spec.teacher && (spec.ema || spec.untrained)),
            "{option} {given}: a teacher's tower has no untrained form and no moving average; leave out one of the prefixes"
        );
        if spec.untrained && trained::is_run(path) {
            return self.untrained(spec, trained::pretraining(&trained::recipe_of(path)?, option, spec)?);
        }
        if !spec.teacher
            && let Some(found) = Trained::read(path, spec.ema)?
        {
            return match spec.untrained {
                true => self.untrained(spec, trained::pretraining(&found.recipe, option, spec)?),
                false => Ok(Pretrained::Trained(Box::new(found))),
            };
        }
        ensure!(!spec.untrained, "{option} {given}: {}", trained::not_untrained(path));
        let resolved =
            resolve(spec.name, self.hub).with_context(|| format!("{option} {given}: give {}", self.takes))?;
        let wanted = if spec.teacher { Wanted::Tower } else { self.wanted };
        let found = models::pretrained::Pretrained::open(&resolved.path, wanted)?;
        Ok(Pretrained::Foreign { found: Box::new(found), source: resolved.source })
    }

    /// The student of a recipe before its first step: as its seed makes it, or as what it starts from.
    fn untrained(&self, spec: &Spec, recipe: Recipe) -> anyhow::Result<Pretrained> {
        let params = ParamStore::new(Device::Cpu, recipe.run.seed);
        let _mae = Mae::new(&params.root(), &recipe.mae_config())?;
        if let Some(begin) = init::open(&recipe, self.hub)? {
            begin.load(&params, &recipe)?;
        }
        let digest = schemas::hex(&Sha256::digest(recipe.to_toml()));
        Ok(Pretrained::Trained(Box::new(Trained::untrained(recipe, params.tensors(), spec.name, &digest))))
    }
}
