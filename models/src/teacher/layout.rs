//! The layouts in which towers are published: which one a file has, and what it says about the tower.
//!
//! `layout/names.rs` lists each layout's names, `layout/convert.rs` makes the tower's tensors from the file's.

use tch::Tensor;

use crate::error::{Error, Mismatch, Misshaped, Result};
use crate::vit::Pooling;
use crate::weights::Weights;

mod convert;
mod names;

pub(super) use names::Family;
use names::{AVERAGES, BESIDE, LAYOUTS, Names, OTHERS, PREFIXES, ProjectionName, SAVED, TRAINING};

/// A tower somewhere in a file, while its layout is looked for.
pub(super) struct Found<'a> {
    weights: &'a Weights,
    /// What comes before all of the tower's names.
    prefix: &'a str,
    /// What comes before a block's number, prefix included.
    blocks: String,
}

impl Found<'_> {
    fn has(&self, name: &str) -> bool {
        self.weights.get(&format!("{}{name}", self.prefix)).is_some()
    }

    /// Whether any block has the tensor `name`.
    fn in_a_block(&self, name: &str) -> bool {
        self.weights.names().any(|full| {
            let in_block = full.strip_prefix(&self.blocks).and_then(|rest| rest.split_once('.'));
            in_block.is_some_and(|(_, rest)| rest == name)
        })
    }
}

/// A layout as found in one file.
pub(super) struct Layout {
    names: &'static Names,
    prefix: String,
    /// What comes before a block's number, prefix included.
    blocks: String,
    /// The kind of tower in the file.
    pub(super) family: Family,
    /// Whether the patch projection has a bias.
    pub(super) patch_bias: bool,
    /// Whether the blocks' branches are scaled.
    pub(super) layer_scale: bool,
    /// Whether the MLPs are gated.
    pub(super) gated_mlp: bool,
    /// Whether the only norm behind the blocks is that of the patches' mean.
    mean_pooled: bool,
    /// Whether the position table has a row for CLS.
    cls_position: bool,
    /// What precedes the names of the file's other networks of this layout.
    others: Vec<String>,
}

/// Sizes as the shapes in a file tell them; what cannot be read off is `None`.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    pub(super) width: Option<i64>,
    pub(super) depth: Option<i64>,
    pub(super) mlp_dim: Option<i64>,
    pub(super) patch_size: Option<i64>,
    /// Side of the grid of positions.
    pub(super) grid: Option<i64>,
    /// Register tokens.
    pub(super) registers: i64,
}

impl Layout {
    /// Finds the layout whose CLS token (or pooling query), blocks and marks the file has.
    pub(super) fn recognize(weights: &Weights) -> Result<Layout> {
        for names in LAYOUTS.iter().copied() {
            let mut networks = Vec::new();
            for prefix in prefixes(weights, names.anchor) {
                let with_blocks = |blocks: &&str| Found { weights, prefix, blocks: format!("{prefix}{blocks}") };
                networks.extend(names.blocks.iter().map(with_blocks).find(|found| {
                    let has_blocks = weights.names().any(|name| name.starts_with(&found.blocks));
                    has_blocks && (names.marks)(found)
                }));
            }
            let Some((first, rest)) = networks.split_first() else {
                continue;
            };
            // Two of one rank may be one network under two names.
            let rival =
                |other: &&Found| rank(other.prefix) == rank(first.prefix) && !same_network(weights, first, other);
            if rest.iter().any(|other| rival(&other)) {
                return Err(Error::SeveralNetworks {
                    path: weights.path().to_path_buf(),
                    prefixes: networks.iter().map(|n| n.prefix.to_owned()).collect(),
                });
            }
            let mut layout = Layout::of(names, first);
            layout.others = rest.iter().map(|n| n.prefix.to_owned()).collect();
            return Ok(layout);
        }
        // The tensors that mark a layout may be among those that were not read.
        weights.require_read(|_| true)?;
        Err(Error::UnknownLayout {
            path: weights.path().to_path_buf(),
            count: weights.len(),
            first: weights.names().take(4).map(str::to_owned).collect(),
        })
    }

    fn of(names: &'static Names, found: &Found) -> Layout {
        let module = |internal: &str| {
            let mut modules = names.modules.iter().filter(|(name, _)| *name == internal);
            modules.any(|(_, file)| found.has(&format!("{file}.weight")) || found.has(&format!("{file}.bias")))
        };
        let family = names.family.unwrap_or(if module("norm_pre") { Family::Clip } else { Family::Vit });
        let bias = format!("{}.bias", names.modules[0].1);
        let mut layout = Layout {
            names,
            prefix: found.prefix.to_owned(),
            blocks: found.blocks.clone(),
            family,
            // Every family but CLIP has the bias: that it is missing is then reported as such.
            patch_bias: found.has(&bias) || family != Family::Clip,
            layer_scale: match names.layer_scale {
                Some(scales) => {
                    // DINOv2 and DINOv3 always have them.
                    matches!(names.family, Some(Family::Dinov2 | Family::Dinov3))
                        || scales.iter().any(|scale| found.in_a_block(scale))
                }
                None => false,
            },
            gated_mlp: false,
            // timm's own names alone.
            mean_pooled: names.family.is_none() && !module("norm") && found.has(&format!("{MEAN_NORM}.weight")),
            cls_position: false,
            others: Vec::new(),
        };
        layout.gated_mlp = layout.finds_gated_mlp(found);
        layout.cls_position = layout.finds_cls_position(found.weights);
        layout
    }

    fn finds_gated_mlp(&self, found: &Found) -> bool {
        if let Some((fc1, _)) = self.names.gated {
            // Not the last part alone: DINOv3's plain MLP has a tensor of that name too.
            return found.in_a_block(&format!("{}.weight", fc1[0]));
        }
        let shape = |internal: &str| self.shape(found.weights, internal);
        let (fc1, fc2) = (shape("blocks.0.mlp.fc1.weight"), shape("blocks.0.mlp.fc2.weight"));
        match (fc1.as_deref(), fc2.as_deref()) {
            (Some([rows, _]), Some([_, columns])) => columns.checked_mul(2) == Some(*rows),
            _ => false,
        }
    }

    fn finds_cls_position(&self, weights: &Weights) -> bool {
        if self.family == Family::Siglip || self.names.pos_embed.is_none() {
            return false;
        }
        // timm has tables with a row for CLS and without. One of the two numbers is not a square, unless the file is broken.
        let square = |n: i64| n > 0 && n.isqrt() * n.isqrt() == n;
        match self.positions(weights) {
            Some(n) if self.names.family.is_none() => !square(n),
            _ => true,
        }
    }

    fn positions(&self, weights: &Weights) -> Option<i64> {
        self.names.pos_embed?;
        let shape = self.shape(weights, "pos_embed")?;
        shape.len().checked_sub(2).map(|axis| shape[axis])
    }

    /// The shape of the first of the file's tensors that make the tower's `internal`.
    fn shape(&self, weights: &Weights, internal: &str) -> Option<Vec<i64>> {
        let name = self.sources(internal).into_iter().next()?;
        weights.get(&name).map(Tensor::size)
    }

    /// The layout's name, for people.
    pub(super) fn title(&self) -> &'static str {
        self.names.title
    }

    /// Whether the file is in one of Hugging Face's layouts, whose facts are in `config.json`.
    pub(super) fn is_hugging_face(&self) -> bool {
        self.names.hugging_face
    }

    /// Whether the file is in OpenAI's layout, whose facts are in `open_clip_config.json`.
    pub(super) fn is_openai(&self) -> bool {
        matches!(self.names.projection, ProjectionName::Transposed(_))
    }

    /// Whether the file has a masked autoencoder's decoder.
    pub(super) fn is_mae(&self) -> bool {
        self.names.title == names::MAE.title
    }

    /// Whether a linear classifier sits on the tower: a matrix, and not the layers of a self-supervised head.
    pub(super) fn is_classifier(&self, weights: &Weights) -> bool {
        let head = weights.get(&format!("{}head.weight", self.prefix));
        head.is_some_and(|head| head.dim() == 2 && head.is_floating_point())
    }

    /// Whether the file has `name` beside the tower, at any level.
    pub(super) fn has_beside(&self, weights: &Weights, name: &str) -> bool {
        self.levels().any(|outer| weights.get(&format!("{outer}{name}")).is_some())
    }

    /// What precedes the names at each level around the tower, from the file's root to the tower itself.
    fn levels(&self) -> impl Iterator<Item = &str> {
        let inner = self.prefix.match_indices('.').map(|(i, _)| i + 1);
        [0].into_iter().chain(inner).map(|end| &self.prefix[..end])
    }

    /// Whether positions are rotary instead of a table.
    pub(super) fn is_rotary(&self) -> bool {
        self.names.pos_embed.is_none()
    }

    /// Whether the layout has a name for register tokens.
    pub(super) fn has_registers(&self) -> bool {
        self.names.registers.is_some()
    }

    /// How the tower pools.
    pub(super) fn pooling(&self) -> Pooling {
        match self.family {
            Family::Siglip => Pooling::Attention,
            _ if self.mean_pooled => Pooling::Mean,
            _ => Pooling::Cls,
        }
    }

    /// Reads the sizes off the shapes.
    pub(super) fn sizes(&self, weights: &Weights) -> Sizes {
        let shape = |internal: &str| self.shape(weights, internal);
        let number = |name: &str| name.strip_prefix(&self.blocks)?.split_once('.')?.0.parse::<i64>().ok();
        // A file cannot hold more blocks than tensors: larger numbers are damage and must not allocate a long list.
        let depth = weights.names().filter_map(number).filter(|&n| n < weights.len() as i64).max();
        let fc1_parts = self.sources("blocks.0.mlp.fc1.weight").len() as i64;
        let hidden = |rows: i64| {
            let rows = rows.saturating_mul(fc1_parts);
            if self.gated_mlp { rows / 2 } else { rows }
        };
        let registers = self.has_registers().then(|| shape("reg_token")).flatten();
        Sizes {
            width: shape(self.anchor()).and_then(|shape| shape.last().copied()),
            depth: depth.map(|last| last + 1),
            mlp_dim: shape("blocks.0.mlp.fc1.weight").and_then(|shape| shape.first().copied()).map(hidden),
            patch_size: shape("patch_embed.proj.weight").and_then(
                |shape| {
                    if shape.len() == 4 { Some(shape[2]) } else { None }
                },
            ),
            grid: self.positions(weights).map(|n| (n - i64::from(self.cls_position)).max(0).isqrt()),
            registers: registers.map_or(0, |shape| {
                let axis = shape.len().checked_sub(2);
                axis.map_or(0, |axis| shape[axis])
            }),
        }
    }

    /// The tower's name of the tensor that every file of this layout has.
    fn anchor(&self) -> &'static str {
        match self.pooling() {
            Pooling::Cls | Pooling::Mean => "cls_token",
            Pooling::Attention => "pool.probe",
        }
    }

    /// The width of the visual projection, and whether it has a bias.
    ///
    /// # Errors
    /// [`Error::NoProjection`], with the reason why there is none.
    pub(super) fn projection(&self, weights: &Weights) -> Result<(i64, bool)> {
        let absent = |reason: String| Error::NoProjection { path: weights.path().to_path_buf(), reason };
        if self.family != Family::Clip {
            return Err(absent(format!("the {} layout has no visual projection", self.names.title)));
        }
        let source = self.sources("head.weight").remove(0);
        let Some(tensor) = weights.get(&source) else {
            return Err(absent(format!("the file has no tensor {source}")));
        };
        let shape = tensor.size();
        let rows = match (self.names.projection, &shape[..]) {
            (ProjectionName::Transposed(_), [_, columns]) => *columns,
            (_, [rows, _]) => *rows,
            // Not a matrix: reported with its shape when the tensors are compared.
            _ => 1,
        };
        if CLASSES.contains(&rows) {
            return Err(absent(format!("{source} {shape:?} is a classifier of {rows} classes")));
        }
        let bias = matches!(self.names.projection, ProjectionName::Module(_))
            && weights.get(&self.sources("head.bias").remove(0)).is_some();
        Ok((rows, bias))
    }

    /// The file's name of the tower's `internal`, the first of them where there are several.
    fn file_name(&self, internal: &str) -> String {
        self.sources(internal).remove(0)
    }

    /// Whether `name` is a known part of such files that the tower does not use.
    fn ignores(&self, name: &str) -> bool {
        let listed = |bare: &str, patterns: &[&str]| {
            patterns.iter().any(
                |pattern| {
                    if pattern.ends_with('.') { bare.starts_with(pattern) } else { bare == *pattern }
                },
            )
        };
        let mut levels = self.levels().filter_map(|outer| name.strip_prefix(outer));
        if levels.any(|bare| listed(bare, TRAINING)) || self.is_in_another(name) {
            return true;
        }
        if let Some(bare) = name.strip_prefix(&self.prefix) {
            return listed(bare, self.names.ignored);
        }
        // Beside a key under which a network was saved lies what else was saved.
        let outside = self.levels().any(|outer| {
            let part = self.prefix[outer.len()..].split('.').next();
            let is_saved = part.is_some_and(|p| SAVED.contains(&p) || AVERAGES.contains(&p) || OTHERS.contains(&p));
            is_saved && name.starts_with(outer) && !name.starts_with(&format!("{outer}{}.", part.unwrap_or_default()))
        });
        if outside {
            return true;
        }
        // A head or a text tower may lie beside the tower (`module.head.` beside `module.backbone.`) or further out.
        let mut bare = self.levels().filter_map(|outer| name.strip_prefix(outer));
        bare.any(|bare| listed(bare, BESIDE) || listed(bare, self.names.ignored))
    }

    /// Whether `name` belongs to another of the file's networks, or lies beside that.
    fn is_in_another(&self, name: &str) -> bool {
        self.others.iter().any(|other| {
            let common = common_parts(other, &self.prefix);
            let rest = other[common..].split_inclusive('.').next();
            let container = &other[..common + rest.map_or(0, str::len)];
            let is_own = self.prefix.starts_with(container) && name.starts_with(&self.prefix);
            name.starts_with(container) && !is_own
        })
    }

    /// The choice among several networks in the file, for people.
    pub(super) fn choice(&self) -> Option<String> {
        let bare = |prefix: &str| match prefix.strip_suffix('.') {
            Some(name) => name.to_owned(),
            None => "the one without a prefix".to_owned(),
        };
        if self.others.is_empty() {
            return None;
        }
        let others: Vec<String> = self.others.iter().map(|other| bare(other)).collect();
        Some(format!(
            "network {} and not {}: a teacher or an average is what is evaluated",
            bare(&self.prefix),
            others.join(", ")
        ))
    }

    /// The error for sizes that neither a config nor the shapes tell: tensors that everything else is measured by are broken.
    pub(super) fn broken(&self, weights: &Weights) -> Error {
        let mut mismatch = Mismatch::default();
        let mut key_tensors = vec![(self.anchor(), 1), ("patch_embed.proj.weight", 4), ("blocks.0.mlp.fc1.weight", 2)];
        if self.names.pos_embed.is_some() {
            key_tensors.push(("pos_embed", 2));
        }
        for (internal, axes) in key_tensors {
            for name in self.sources(internal) {
                match weights.get(&name).map(Tensor::size) {
                    None => mismatch.missing.push((name, vec![-1; axes])),
                    Some(found) if found.len() < axes => {
                        mismatch.misshaped.push(Misshaped { name, found, expected: vec![-1; axes] })
                    }
                    Some(_) => {}
                }
            }
        }
        let is_missing = |name: &str| mismatch.missing.iter().any(|(n, _)| n == name);
        if let Err(unread) = weights.require_read(is_missing) {
            return unread;
        }
        Error::WeightsMismatch { origin: weights.path().display().to_string(), mismatch }
    }
}

/// timm's name for the norm of the patches' mean, which takes the place of `norm`.
const MEAN_NORM: &str = "fc_norm";

/// Class counts of ImageNet-1k, -12k, -21k and its pruned form: a timm head with that many rows is a classifier and not a projection.
const CLASSES: [i64; 4] = [1000, 11_821, 21_841, 21_843];

/// The length of the parts, dots included, that two prefixes begin with.
fn common_parts(a: &str, b: &str) -> usize {
    let pairs = a.split_inclusive('.').zip(b.split_inclusive('.'));
    pairs.take_while(|(a, b)| a == b).map(|(part, _)| part.len()).sum()
}

/// Which of several networks is meant: an average or a teacher before any other, what training moves beside it last.
fn rank(prefix: &str) -> u8 {
    let has = |list: &[&str]| prefix.split('.').any(|part| list.contains(&part));
    match (has(AVERAGES), has(OTHERS)) {
        (true, _) => 0,
        (false, false) => 1,
        (false, true) => 2,
    }
}

/// Whether two prefixes lead to the same values.
fn same_network(weights: &Weights, a: &Found, b: &Found) -> bool {
    weights.names().all(|name| match name.strip_prefix(&a.blocks) {
        Some(rest) => {
            let other = weights.get(&format!("{}{rest}", b.blocks));
            other.zip(weights.get(name)).is_some_and(|(other, own)| {
                other.size() == own.size() && other.kind() == own.kind() && other.equal(own)
            })
        }
        None => true,
    })
}

/// What stands before `anchor` in the file's names, where it consists of known wrappers: by rank, then the shortest.
fn prefixes<'a>(weights: &'a Weights, anchor: &str) -> Vec<&'a str> {
    let is_known = |part: &str| {
        let lists = [PREFIXES, SAVED, AVERAGES, OTHERS];
        lists.iter().any(|list| list.contains(&part))
    };
    let mut found: Vec<&str> = weights
        .names()
        .filter_map(|name| name.strip_suffix(anchor))
        .filter(|prefix| {
            let bare = prefix.strip_suffix('.');
            prefix.is_empty() || bare.is_some_and(|p| p.split('.').all(is_known))
        })
        .collect();
    found.sort_by_key(|prefix| (rank(prefix), prefix.len()));
    found
}
