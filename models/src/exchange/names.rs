//! A student's names and transformers'.

use tch::Tensor;

use super::{Part, Tensors};
use crate::error::{Error, Mismatch, Result};
use crate::shapes::numbered;

/// Tensors and modules outside the blocks: ours, transformers'.
const ENCODER: [(&str, &str); 4] = [
    ("cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("norm", "layernorm"),
];
const DECODER: [(&str, &str); 5] = [
    ("decoder_embed", "decoder.decoder_embed"),
    ("mask_token", "decoder.mask_token"),
    ("decoder_pos_embed", "decoder.decoder_pos_embed"),
    ("decoder_norm", "decoder.decoder_norm"),
    ("decoder_pred", "decoder.decoder_pred"),
];
/// What comes before a block's number: ours, that of files, that in the memory of transformers 5.
const ENCODER_BLOCKS: (&str, [&str; 2]) = ("blocks.", ["encoder.layer.", "layers."]);
const DECODER_BLOCKS: (&str, [&str; 1]) = ("decoder_blocks.", ["decoder.decoder_layers."]);
/// Modules of a block: ours, that of files, that in the memory of transformers 5.
const BLOCK: [(&str, [&str; 2]); 5] = [
    ("norm1", ["layernorm_before"; 2]),
    ("attn.proj", ["attention.output.dense", "attention.o_proj"]),
    ("norm2", ["layernorm_after"; 2]),
    ("mlp.fc1", ["intermediate.dense", "mlp.fc1"]),
    ("mlp.fc2", ["output.dense", "mlp.fc2"]),
];
/// The three parts of `attn.qkv`, in the order of its rows.
const QKV: &str = "attn.qkv";
const QKV_PARTS: [[&str; 3]; 2] = [
    ["attention.attention.query", "attention.attention.key", "attention.attention.value"],
    ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
];

/// A module's name in place of another: `norm.weight` with (`norm`, `layernorm`) is `layernorm.weight`; a tensor's likewise.
fn renamed(name: &str, (from, to): (&str, &str)) -> Option<String> {
    let rest = name.strip_prefix(from)?;
    (rest.is_empty() || rest.starts_with('.')).then(|| format!("{to}{rest}"))
}

/// A student's tensors under the names of transformers' files. `nested`: with `vit.` before the encoder's, as models have it whose
/// encoder is not alone.
///
/// # Errors
/// [`Error::WeightsMismatch`] for a tensor that transformers' model has no place for.
pub(super) fn to_hugging_face(ours: &Tensors, nested: bool) -> Result<Tensors> {
    let mut theirs = Tensors::new();
    let mut unexpected = Vec::new();
    for (name, tensor) in ours {
        let prefix = match Part::of(name) {
            Part::Encoder if nested => "vit.",
            _ => "",
        };
        let plain = ENCODER.iter().chain(&DECODER);
        if let Some(renamed) = plain.copied().find_map(|pair| renamed(name, pair)) {
            theirs.insert(format!("{prefix}{renamed}"), tensor.shallow_clone());
            continue;
        }
        let encoder = numbered(name, ENCODER_BLOCKS.0).map(|of| (ENCODER_BLOCKS.1[0], of));
        let decoder = numbered(name, DECODER_BLOCKS.0).map(|of| (DECODER_BLOCKS.1[0], of));
        let Some((blocks, (number, rest))) = encoder.or(decoder) else {
            unexpected.push((name.clone(), tensor.size()));
            continue;
        };
        let block = format!("{prefix}{blocks}{number}");
        let module = BLOCK.iter().find_map(|(own, [file, _])| renamed(rest, (own, file)));
        if let Some(module) = module {
            theirs.insert(format!("{block}.{module}"), tensor.shallow_clone());
        } else if let Some(rest) = rest.strip_prefix(QKV)
            && rest.starts_with('.')
            && tensor.size().first().is_some_and(|rows| rows % 3 == 0)
        {
            for (part, rows) in QKV_PARTS[0].iter().zip(tensor.chunk(3, 0)) {
                theirs.insert(format!("{block}.{part}{rest}"), rows.contiguous());
            }
        } else {
            unexpected.push((name.clone(), tensor.size()));
        }
    }
    finish(theirs, unexpected, Vec::new())
}

/// The tensors of one of transformers' models under a student's names. What `skipped` is true for, and the third part of a q, k
/// and v that lacks another, are left out.
///
/// # Errors
/// [`Error::WeightsMismatch`] with the names that are not transformers', and with parts of q, k and v that are missing.
pub(super) fn from_hugging_face(theirs: &Tensors, skipped: impl Fn(&str) -> bool) -> Result<Tensors> {
    let mut ours = Tensors::new();
    let (mut unexpected, mut missing) = (Vec::new(), Vec::new());
    for (full, tensor) in theirs {
        if skipped(full) {
            continue;
        }
        let name = full.strip_prefix("vit.").unwrap_or(full);
        let plain = ENCODER.iter().chain(&DECODER);
        if let Some(renamed) = plain.copied().find_map(|(own, file)| renamed(name, (file, own))) {
            insert(&mut ours, &mut unexpected, full, renamed, tensor.shallow_clone());
            continue;
        }
        let of_blocks = |(own, files): (&'static str, &[&str])| {
            let block = files.iter().find_map(|file| numbered(name, file));
            block.map(|(number, rest)| (format!("{own}{number}"), rest))
        };
        let block = of_blocks((ENCODER_BLOCKS.0, &ENCODER_BLOCKS.1))
            .or_else(|| of_blocks((DECODER_BLOCKS.0, &DECODER_BLOCKS.1)));
        let Some((block, rest)) = block else {
            unexpected.push((full.clone(), tensor.size()));
            continue;
        };
        let module = BLOCK.iter().find_map(|(own, files)| files.iter().find_map(|file| renamed(rest, (file, own))));
        if let Some(module) = module {
            let module = format!("{block}.{module}");
            insert(&mut ours, &mut unexpected, full, module, tensor.shallow_clone());
            continue;
        }
        let part = QKV_PARTS.iter().find_map(|parts| {
            let at = parts.iter().position(|part| renamed(rest, (part, "")).is_some())?;
            Some((parts, at))
        });
        let Some((parts, at)) = part else {
            unexpected.push((full.clone(), tensor.size()));
            continue;
        };
        if at > 0 {
            // Taken with its query; without one it is of no use.
            let query = full.replacen(parts[at], parts[0], 1);
            if !theirs.contains_key(&query) {
                missing.push((query, tensor.size()));
            }
            continue;
        }
        let suffix = &rest[parts[0].len()..];
        let mut rows = Vec::with_capacity(3);
        for part in parts {
            let name = full.replacen(parts[0], part, 1);
            match theirs.get(&name) {
                Some(found) if found.size() == tensor.size() && found.kind() == tensor.kind() => {
                    rows.push(found.shallow_clone());
                }
                Some(found) => unexpected.push((name, found.size())),
                None => missing.push((name, tensor.size())),
            }
        }
        if tensor.size().is_empty() {
            unexpected.push((full.clone(), tensor.size()));
        } else if rows.len() == 3 {
            let ours_name = format!("{block}.{QKV}{suffix}");
            insert(&mut ours, &mut unexpected, full, ours_name, Tensor::cat(&rows, 0));
        }
    }
    missing.sort();
    missing.dedup();
    finish(ours, unexpected, missing)
}

/// Adds a tensor; a second one of the same meaning, in the other layout or on another level, is one too many.
fn insert(ours: &mut Tensors, unexpected: &mut Vec<(String, Vec<i64>)>, full: &str, name: String, tensor: Tensor) {
    let size = tensor.size();
    if ours.insert(name, tensor).is_some() {
        unexpected.push((full.to_owned(), size));
    }
}

fn finish(tensors: Tensors, unexpected: Vec<(String, Vec<i64>)>, missing: Vec<(String, Vec<i64>)>) -> Result<Tensors> {
    if unexpected.is_empty() && missing.is_empty() {
        return Ok(tensors);
    }
    Err(Error::WeightsMismatch {
        origin: "transformers' names".to_owned(),
        mismatch: Mismatch { missing, unexpected, ..Mismatch::default() },
    })
}
