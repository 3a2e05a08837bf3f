//! The network that a recipe of pretraining asks for.

use std::collections::BTreeMap;

use models::cls_target::ClsStats;
use models::mr_mae::{MimicConfig, MimicTokens, MrMaeConfig};
use models::targets::TargetStats;

use super::{Mimicked, Recipe};

/// Statistics of a teacher's features, as far as its normalizations and losses need them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TeacherStats {
    /// Statistics of patch tokens.
    pub patches: Option<TargetStats>,
    /// Statistics of CLS tokens.
    pub cls: Option<ClsStats>,
}

impl Recipe {
    /// The network that the recipe asks for, with a head for each teacher of `widths`. A normalization or loss that needs statistics but has
    /// none in `stats` starts with those of uncorrelated channels: either a checkpoint supplies the values later, or they do not matter.
    pub(crate) fn mr_mae_config(
        &self,
        widths: &BTreeMap<String, i64>,
        stats: &BTreeMap<String, TeacherStats>,
    ) -> MrMaeConfig {
        let teacher = |(id, &width): (&String, &i64)| {
            let Mimicked { share, head, patches: (target_norm, loss), cls: (cls_norm, cls_loss) } = self.mimic_of(id);
            let standard = usize::try_from(width).unwrap_or_default();
            let TeacherStats { patches, cls } = stats.get(id).cloned().unwrap_or_default();
            let config = MimicConfig {
                width,
                weight: share * self.loss.w_mimic,
                cls_weight: share * self.loss.w_cls,
                head,
                target_norm,
                loss,
                stats: patches.or_else(|| target_norm.needs_stats().then(|| TargetStats::standard(standard))),
                cls_norm,
                cls_loss,
                cls_stats: Some(cls.unwrap_or_else(|| ClsStats::standard(standard))),
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
            teacher_drop: self.mimic.drop,
            teachers: widths.iter().map(teacher).collect(),
        }
    }
}
