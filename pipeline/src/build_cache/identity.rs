//! What the cache and its teachers are: everything that bytes depend on, as the format wants it written down.

use std::path::Path;

use anyhow::Context;
use images::{Decoder, ImageSource};
use models::precision::Precision;
use models::teacher::TeacherInfo;
use schemas::{Batches, Cache, CacheIdentity, Codec, FORMAT_VERSION, Plan, TeacherId, TeacherIdentity, layout};
use tch::Device;

use crate::recipe::Recipe;

/// The identity of the cache that `recipe` asks for over `source` (already limited).
pub(crate) fn cache_identity(recipe: &Recipe, source: &ImageSource, existing: &Existing) -> CacheIdentity {
    let dataset = source.identity();
    CacheIdentity {
        format_version: FORMAT_VERSION,
        plan: Plan {
            samples: dataset.samples,
            part_samples: (recipe.cache.part_samples).or(existing.part_samples).unwrap_or(recipe.usual_part_samples()),
        },
        dataset,
        image_code: existing.image_code().to_owned(),
        views: recipe.view.identity(),
        pack: recipe.cache.pack,
        depth_window: recipe.data.depth_window,
        label_names: source.label_names().to_vec(),
        dedup: recipe.data.dedup,
        generations: Vec::new(),
    }
}

/// What a cache that is there already says about the build.
#[derive(Debug, Default)]
pub(crate) struct Existing {
    /// The grid that all its teachers share, and one of them.
    pub grid: Option<(TeacherId, u32)>,
    /// How many samples its parts have.
    part_samples: Option<u64>,
    /// How its images were decoded, if by earlier rules that are known here.
    earlier_code: Option<&'static str>,
}

impl Existing {
    /// Looks at the cache in `out`, if there is one. One without a finished part binds nothing.
    pub(crate) fn look(out: &Path) -> anyhow::Result<Existing> {
        if !storage::exists(&layout::cache_json(out))? || !schemas::has_parts(out)? {
            return Ok(Existing::default());
        }
        Ok(Existing::of_cache(&Cache::open(out)?))
    }

    /// The image code to go on with: that of the cache, if it is an earlier one, so that all its rows are of one kind.
    pub(crate) fn image_code(&self) -> &'static str {
        self.earlier_code.unwrap_or(images::IMAGE_CODE)
    }

    /// What a cache says.
    pub(crate) fn of_cache(cache: &Cache) -> Existing {
        let mut teachers = cache.teachers().values();
        let identity = cache.identity();
        let decoder = Decoder::of_cache(&identity.image_code, identity.depth_window);
        Existing {
            part_samples: Some(identity.plan.part_samples),
            earlier_code: decoder
                .filter(|decoder| decoder.earlier_rules().is_some())
                .map(|decoder| decoder.image_code()),
            grid: teachers.next().map(|teacher| (teacher.id.clone(), teacher.grid)),
        }
    }
}

/// The grid to build with: as asked, else that of the cache, else the smallest native grid of the teachers.
///
/// The smallest, because it does not depend on their order, and because a position embedding is better shrunk than stretched.
pub(crate) fn choose_grid<'a>(
    asked: Option<u32>,
    existing: &Existing,
    teachers: impl Iterator<Item = &'a TeacherInfo>,
) -> anyhow::Result<u32> {
    let cached = existing.grid.as_ref().map(|(_, grid)| *grid);
    match asked.or(cached) {
        Some(grid) => Ok(grid),
        None => teachers.map(|info| info.input_size / info.patch_size).min().context("a build has teachers"),
    }
}

/// How forward passes are cut and where they run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ForwardPass {
    pub grid: u32,
    pub batch_size: u32,
    pub device: Device,
    pub precision: Precision,
}

/// Side of the square that a teacher is shown, in pixels.
pub(crate) fn input_size(id: &TeacherId, info: &TeacherInfo, grid: u32) -> anyhow::Result<u32> {
    grid.checked_mul(info.patch_size).with_context(|| format!("grid {grid} is too large for teacher {id}"))
}

/// The identity of one teacher.
pub(crate) fn teacher_identity(
    id: &TeacherId,
    source: &str,
    info: &TeacherInfo,
    codec: Codec,
    pass: ForwardPass,
) -> anyhow::Result<TeacherIdentity> {
    let ForwardPass { grid, batch_size, device, precision } = pass;
    Ok(TeacherIdentity {
        format_version: FORMAT_VERSION,
        id: id.clone(),
        arch: info.arch.clone(),
        source: source.to_owned(),
        assumed: info.assumed.iter().map(ToString::to_string).collect(),
        weights_sha256: info.weights_sha256.clone(),
        layer: info.layer.name().to_owned(),
        activation: info.activation.name().to_owned(),
        norm_eps: info.norm_eps,
        input_size: input_size(id, info, grid)?,
        patch_size: info.patch_size,
        mean: info.mean,
        std: info.std,
        grid,
        width: info.width,
        codec,
        precision: precision.name().to_owned(),
        batch_size,
        batches: Batches::Samples,
        device: if device == Device::Cpu { "cpu" } else { "cuda" }.to_owned(),
        device_name: torch_ext::device_name(device),
        runtime: torch_ext::RUNTIME.to_owned(),
    })
}
