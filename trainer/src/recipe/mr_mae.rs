//! The network that a recipe of pretraining asks for.

use std::collections::BTreeMap;

use models::mr_mae::{MimicConfig, MimicTokens, MrMaeConfig};
use models::targets::TargetStats;

use super::Recipe;

impl Recipe {
    /// The network that the recipe asks for, with a head for each teacher of `widths`. A normalization that needs statistics but has none
    /// in `stats` starts with those of uncorrelated channels: either a checkpoint supplies the values later, or they do not matter.
    pub(crate) fn mr_mae_config(
        &self,
        widths: &BTreeMap<String, i64>,
        stats: &BTreeMap<String, TargetStats>,
    ) -> MrMaeConfig {
        let teacher = |(id, &width): (&String, &i64)| {
            let (share, target_norm, loss) = self.mimic_of(id);
            let standard = || TargetStats::standard(usize::try_from(width).unwrap_or_default());
            let stats = stats.get(id).cloned();
            let config = MimicConfig {
                width,
                weight: share * self.loss.w_mimic,
                cls_weight: share * self.loss.w_cls,
                target_norm,
                loss,
                stats: stats.or_else(|| target_norm.needs_stats().then(standard)),
            };
            (id.clone(), config)
        };
        MrMaeConfig {
            mae: self.mae_config(),
            rec_weight: self.loss.w_rec,
            mimic_tokens: match self.mimic.tokens {
                super::MimicTokens::Visible => MimicTokens::Encoder,
                super::MimicTokens::DecoderRemoved => MimicTokens::DecoderRemoved,
                super::MimicTokens::DecoderVisible => MimicTokens::DecoderVisible,
                super::MimicTokens::DecoderAll => MimicTokens::DecoderAll,
            },
            teachers: widths.iter().map(teacher).collect(),
        }
    }
}
