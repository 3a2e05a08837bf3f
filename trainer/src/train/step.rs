//! The scalars of an optimization step, on their way from the device. Only [`StepValues::read`] waits for the device.

use std::collections::BTreeMap;

use models::mr_mae::Losses;
use tch::{Kind, Tensor};
use torch_ext::HostCopy;

use crate::dist::RankFacts;

#[cfg(test)]
mod tests;

/// The scalars of a step, on their way from the device.
#[derive(Debug)]
pub(crate) struct StepValues {
    names: Vec<String>,
    /// `[names + 1 + R]` f32: the scalars, 1 if everything was finite and the update was done, and the numbers of all ranks.
    values: HostCopy,
}

/// What a step gave.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StepRead {
    /// Whether everything was finite and the update was done.
    pub finite: bool,
    /// Every scalar by name: `loss` (the weighted total), its unweighted terms (`rec`, `mimic.<teacher>`, `mimic_cls.<teacher>`), the shares of
    /// images for which teachers count where some are dropped (`mimic_kept.<teacher>`), and `grad_norm` before clipping.
    pub scalars: BTreeMap<String, f64>,
    /// What each process of the group said of itself; none if this one is alone.
    pub ranks: Vec<RankFacts>,
}

impl StepValues {
    /// Begins the copy of `values [names + 1 + R]` to the host.
    pub(crate) fn queue(names: Vec<String>, values: &Tensor) -> anyhow::Result<StepValues> {
        Ok(StepValues { names, values: HostCopy::start(&values.to_kind(Kind::Float))? })
    }

    /// Waits for this step, but not for what has been queued since, and reads its values. `check` is called now and then while it waits, and its
    /// error ends the wait.
    pub(crate) fn read(&mut self, check: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<StepRead> {
        let values = Vec::<f32>::try_from(&*self.values.wait_with(check)?)?;
        let (scalars, rest) = values.split_at(self.names.len());
        let scalars = self.names.iter().cloned().zip(scalars.iter().map(|&v| f64::from(v))).collect();
        let ranks = rest[1..].chunks_exact(RankFacts::LEN).map(RankFacts::from_numbers).collect();
        Ok(StepRead { finite: rest[0] == 1.0, scalars, ranks })
    }
}

/// The losses without their graphs.
pub(crate) fn detach(losses: &Losses) -> Losses {
    let detached =
        |losses: &BTreeMap<String, Tensor>| losses.iter().map(|(id, loss)| (id.clone(), loss.detach())).collect();
    Losses {
        total: losses.total.detach(),
        rec: losses.rec.as_ref().map(Tensor::detach),
        mimic: detached(&losses.mimic),
        mimic_cls: detached(&losses.mimic_cls),
        mimic_kept: detached(&losses.mimic_kept),
    }
}

/// The mean of each loss over the parts of a step, by name: `loss` (the weighted total), `rec`, `mimic.<teacher>`, `mimic_cls.<teacher>`, and
/// `mimic_kept.<teacher>`.
pub(crate) fn mean_losses(parts: &[Losses]) -> Vec<(String, Tensor)> {
    let mut means = Vec::new();
    let mut add = |name: String, term: &dyn Fn(&Losses) -> Option<Tensor>| {
        let terms: Vec<Tensor> = parts.iter().filter_map(term).collect();
        if !terms.is_empty() {
            means.push((name, Tensor::stack(&terms, 0).to_kind(Kind::Float).mean(None)));
        }
    };
    add("loss".into(), &|l| Some(l.total.shallow_clone()));
    add("rec".into(), &|l| l.rec.as_ref().map(Tensor::shallow_clone));
    let Some(first) = parts.first() else {
        return means;
    };
    for id in first.mimic.keys() {
        add(format!("mimic.{id}"), &|l| l.mimic.get(id).map(Tensor::shallow_clone));
    }
    for id in first.mimic_cls.keys() {
        add(format!("mimic_cls.{id}"), &|l| l.mimic_cls.get(id).map(Tensor::shallow_clone));
    }
    for id in first.mimic_kept.keys() {
        add(format!("mimic_kept.{id}"), &|l| l.mimic_kept.get(id).map(Tensor::shallow_clone));
    }
    means
}
