//! Which activation the MLPs have, from everything that may say it.

use std::path::Path;

use super::Config;
use crate::error::{Error, Result};
use crate::layers::Activation;
use crate::teacher::layout::{Family, Layout};
use crate::teacher::options::Assumed;

/// One thing that says what the activation is.
struct Statement<'a> {
    path: &'a Path,
    /// The words, for people.
    words: String,
    activation: Activation,
}

impl Config {
    /// What the files say, else `explicit`, else the family's only answer.
    ///
    /// # Errors
    /// If two of them say different things, or nothing says which of CLIP's two it is.
    pub(super) fn activation(
        &self,
        layout: &Layout,
        explicit: Option<Activation>,
        assumed: &mut Vec<Assumed>,
    ) -> Result<Activation> {
        let stated = self.statements(layout)?;
        if let [first, rest @ ..] = &stated[..] {
            let other = rest.iter().find(|s| s.activation != first.activation);
            let against = match (other, explicit) {
                (Some(other), _) => Some(format!("{:?} {}", other.path, other.words)),
                (None, Some(asked)) if asked != first.activation => {
                    Some(format!("the activation asked for is {asked}"))
                }
                _ => None,
            };
            return match against {
                None => Ok(first.activation),
                Some(against) => Err(Error::ConfigJson {
                    path: first.path.to_path_buf(),
                    reason: format!("{}, but {against}. Correct the one that is wrong", first.words),
                }),
            };
        }
        if let Some(activation) = explicit {
            return Ok(activation);
        }
        match layout.family {
            Family::Vit | Family::Dinov2 | Family::Dinov3 => {
                assumed.push(Assumed {
                    settings: "activation",
                    text: "activation gelu, as every published tower of this family has".to_owned(),
                    doubtful: false,
                });
                Ok(Activation::Gelu)
            }
            Family::Siglip => Err(self.config.missing(
                "the activation of this SigLIP tower",
                "Put a config.json beside the weights that says {\"hidden_act\": \"gelu_pytorch_tanh\"} (as big_vision trained them and \
                 transformers runs them), or timm's {\"architecture\": ...} (timm runs most of them with the exact GELU), or name it with \
                 the teacher (in pipeline: --activation gelu_tanh or gelu)",
            )),
            Family::Clip => Err(self.config.missing(
                "the activation of this CLIP tower (hidden_act)",
                "Put a config.json with {\"hidden_act\": \"quick_gelu\"} (OpenAI, MetaCLIP and DFN weights) or \"gelu\" (LAION and \
                 DataComp weights) beside the weights, or name it with the teacher (in pipeline: --activation quick_gelu or gelu): both \
                 run, and the wrong one gives plausible, wrong features",
            )),
        }
    }

    fn statements(&self, layout: &Layout) -> Result<Vec<Statement<'_>>> {
        let mut stated = Vec::new();
        let config = &self.config;
        if layout.gated_mlp {
            // DINOv2's giant says gelu in its config and computes silu: its gate has no other.
            if layout.family != Family::Dinov3 || config.text("hidden_act")?.is_none() {
                stated.push(Statement {
                    path: &config.path,
                    words: "belongs to weights with a gated MLP, whose gate is silu".to_owned(),
                    activation: Activation::Silu,
                });
                return Ok(stated);
            }
        }
        if let Some(name) = config.text("hidden_act")? {
            let activation = match name {
                "gelu" => Activation::Gelu,
                "quick_gelu" => Activation::QuickGelu,
                "gelu_pytorch_tanh" => Activation::GeluTanh,
                "silu" => Activation::Silu,
                other => {
                    return Err(config.wrong(format!(
                        "hidden_act {other:?} is not known here; gelu, quick_gelu, gelu_pytorch_tanh and silu are"
                    )));
                }
            };
            stated.push(Statement { path: &config.path, words: format!("says hidden_act {name}"), activation });
        } else if self.by_transformers(layout) {
            // The default of each configuration class.
            let activation = match layout.family {
                Family::Clip => Activation::QuickGelu,
                Family::Siglip => Activation::GeluTanh,
                Family::Vit | Family::Dinov2 | Family::Dinov3 => Activation::Gelu,
            };
            stated.push(Statement {
                path: &config.path,
                words: format!("is transformers' and leaves hidden_act at its default, {activation}"),
                activation,
            });
        }
        if let Some(name) = config.text("architecture")?
            && layout.family == Family::Siglip
        {
            let activation = timm_siglip(name);
            stated.push(Statement {
                path: &config.path,
                words: format!("says architecture {name}, which timm builds with {activation}"),
                activation,
            });
        }
        // timm's way of saying it.
        if let Some(name) = config.text("architecture")?
            && name.contains("quickgelu")
        {
            stated.push(Statement {
                path: &config.path,
                words: format!("says architecture {name}"),
                activation: Activation::QuickGelu,
            });
        }
        if layout.family == Family::Clip
            && let Some((activation, words)) = self.open_clip.activation()?
        {
            stated.push(Statement { path: &self.open_clip.path, words, activation });
        }
        Ok(stated)
    }
}

/// The activation that timm 1.0 gives its entry `architecture` of SigLIP: the tanh approximation for B/32, L/16 at 512 pixels and every
/// /16 of so400m and giantopt, the exact one for all others.
fn timm_siglip(architecture: &str) -> Activation {
    let name = architecture.split('.').next().unwrap_or_default();
    let large_512 = name.contains("large_patch16_siglip") && name.ends_with("_512");
    let tanh = ["patch32_siglip", "so400m_patch16_siglip", "giantopt_patch16_siglip"];
    if large_512 || tanh.iter().any(|entry| name.contains(entry)) { Activation::GeluTanh } else { Activation::Gelu }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `act_layer` each entry of timm 1.0.31 has.
    #[test]
    fn timms_entries_of_siglip_have_two_activations() {
        for (architecture, tanh) in [
            ("vit_base_patch16_siglip_224.webli", false),
            ("vit_base_patch32_siglip_256", true),
            ("vit_large_patch16_siglip_384", false),
            ("vit_large_patch16_siglip_512.v2_webli", true),
            ("vit_large_patch16_siglip_gap_512", true),
            ("vit_so400m_patch14_siglip_384", false),
            ("vit_so400m_patch16_siglip_256", true),
            ("vit_giantopt_patch16_siglip_gap_384", true),
        ] {
            let expected = if tanh { Activation::GeluTanh } else { Activation::Gelu };
            assert_eq!(timm_siglip(architecture), expected, "{architecture}");
        }
    }
}
