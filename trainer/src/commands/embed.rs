//! `trainer embed`: a network's features of any images, as a file.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, ensure};
use arrow_array::{FixedSizeBinaryArray, Int32Array, RecordBatch};
use hub::HubSettings;
use images::ImageSource;
use program::ExitStatus;
use program::signals::Interrupted;
use program::words::{count, grouped};
use tch::Tensor;
use tracing::{info, warn};

use crate::cli::EmbedArgs;
use crate::dist::World;
use crate::eval::features::{self, Extraction, Images, Model, Views};
use crate::output::{Chunks, Format, strings, vectors};
use crate::pretrained::depth_window;

/// Images of a chunk: what a stopped command may have to compute again.
const CHUNK: usize = 2048;

/// Numbers of a chunk, if its images would have more: 256 MiB.
const CHUNK_VALUES: usize = 64 << 20;

/// `trainer embed`.
pub(crate) fn embed(args: &EmbedArgs, hub: &HubSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let format = Format::of(&args.out, &[Format::Parquet, Format::Npy])?;
    let device = torch_ext::resolve_device(&args.network.device.device)?;
    args.network.precision.prepare(device)?;
    let model = Model::load(&args.model, hub, device)?;
    for (i, kind) in args.features.iter().enumerate() {
        features::require_kinds(std::slice::from_ref(&model), std::slice::from_ref(kind))?;
        ensure!(!args.features[..i].contains(kind), "--features {kind}: is given twice");
    }
    let decoder = depth_window::decoder(args.network.depth_window, &[&args.model])?;
    let source = ImageSource::open(&args.images)?.decoded_by(decoder);
    let kinds = match args.features.is_empty() {
        true => model.kinds(),
        false => args.features.clone(),
    };
    ensure!(
        format != Format::Npy || kinds.len() == 1,
        "--out {}: a .npy file has one kind of features; choose it with --features, out of {}",
        args.out.display(),
        kinds.join(", ")
    );
    let values_per_image = model.widths(&kinds)?.values().sum::<i64>().max(1) as usize;
    let chunk = (CHUNK_VALUES / values_per_image).clamp(1, CHUNK);

    let dataset = source.identity();
    let about = BTreeMap::from([
        ("model".to_owned(), model.describe()),
        ("weights".to_owned(), model.digest().to_owned()),
        ("images".to_owned(), dataset.digest),
        ("features".to_owned(), kinds.join(",")),
        ("precision".to_owned(), args.network.precision.to_string()),
        ("depth window".to_owned(), decoder.window().to_string()),
        ("images per chunk".to_owned(), chunk.to_string()),
    ]);
    let chunks = Chunks::open(&args.out, &about)?;
    let total = source.len().div_ceil(chunk);
    let left: Vec<usize> = (0..total).filter(|&index| !chunks.has(index)).collect();
    info!("{}: {} of {}", model.describe(), kinds.join(", "), count(source.len() as u64, "image"));
    if left.len() < total {
        info!("{} of {} chunks of {chunk} images are there already", total - left.len(), total);
    }

    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.network.device.loader_threads(device, 1)).build()?;
    let extraction = Extraction {
        views: Views::CENTER,
        kinds: kinds.clone(),
        max_bytes: u64::MAX,
        batch_size: args.network.batch_size,
        precision: args.network.precision,
    };
    let mut told = 0;
    for &index in &left {
        let range = index * chunk..source.len().min((index + 1) * chunk);
        let last = range.end;
        let images = match features::extract_range(
            std::slice::from_ref(&model),
            &source,
            range,
            &extraction,
            &pool,
            &World::alone(),
            &mut |_| (),
        ) {
            Err(error) if error.is::<Interrupted>() => {
                warn!("interrupted; finished chunks are kept, and the same command goes on from there");
                return Ok(ExitStatus::Interrupted);
            }
            images => images?,
        };
        for skipped in &images.skipped {
            warn!("cannot be used: {skipped}");
        }
        chunks.write(index, &rows(&source, &images, &kinds)?)?;
        if last * 10 / source.len() > told {
            told = last * 10 / source.len();
            info!("{} of {} images", grouped(last as u64), grouped(source.len() as u64));
        }
    }
    let rows = chunks.finish(total, format)?;
    writeln!(out, "{}: {} of {}", args.out.display(), kinds.join(", "), count(rows, "image"))?;
    let unusable = source.len() as u64 - rows;
    if unusable > 0 {
        warn!(
            "{} could not be used and {} no row",
            count(unusable, "image"),
            if unusable == 1 { "has" } else { "have" }
        );
    }
    Ok(ExitStatus::Fine)
}

/// A row for each usable image: key, content hash, label, and a vector for each kind of feature.
fn rows(source: &ImageSource, images: &Images, kinds: &[String]) -> anyhow::Result<RecordBatch> {
    let label = |&i: &usize| source.label(i);
    let hashes = images.hashes.iter().map(|hash| Some(hash.0.as_slice()));
    let mut columns = vec![
        ("key".to_owned(), strings(images.idxs.iter().map(|&i| source.key(i))), false),
        (
            "content_hash".to_owned(),
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(hashes, 16)?) as _,
            false,
        ),
        ("label".to_owned(), Arc::new(Int32Array::from_iter(images.idxs.iter().map(label))) as _, true),
    ];
    if !source.label_names().is_empty() {
        let name = |i: &usize| source.label(*i).map_or("", |label| &source.label_names()[label as usize]);
        columns.push(("label_name".to_owned(), strings(images.idxs.iter().map(name)), false));
    }
    for kind in kinds {
        let features = images.features.first().and_then(|of_model| of_model.get(kind));
        // Without an image there is nothing to compute.
        let (values, width) = match features {
            None => (Vec::new(), 1),
            Some(features) => {
                let features: Tensor = features.get(0); // [N, D]
                (Vec::<f32>::try_from(features.contiguous().flatten(0, -1))?, features.size()[1] as usize)
            }
        };
        columns.push((kind.clone(), vectors(values, width)?, false));
    }
    RecordBatch::try_from_iter_with_nullable(columns).context("a column for each kind of feature")
}

#[cfg(test)]
mod tests;
