//! A tiny cache for the tests: 10 samples in 3 parts, 2 views each, two teachers, two rejects.

use std::path::Path;

use crate::{
    CacheIdentity, Codec, ContentHash, CropBox, DatasetIdentity, FORMAT_VERSION, Pack, Plan,
    Reject, SampleRow, SamplesWriter, TeacherId, TeacherIdentity, TeacherRow, TeacherWriter, View,
    ViewIdentity, ViewPolicy, add_teacher, create_cache,
};

pub(crate) fn identity() -> CacheIdentity {
    CacheIdentity {
        format_version: FORMAT_VERSION,
        dataset: DatasetIdentity {
            kind: "folder".to_string(),
            samples: 10,
            digest: "ab".repeat(32),
        },
        image_code: "test 1".to_string(),
        views: ViewIdentity {
            policy: ViewPolicy::rrc(),
            views: 2,
            seed: 7,
            filter: "bicubic".to_string(),
        },
        plan: Plan {
            samples: 10,
            part_samples: 4,
        },
        pack: Pack::None,
        label_names: vec!["ant".to_string(), "bee".to_string(), "cat".to_string()],
    }
}

/// A teacher with 9 tokens of 8 channels.
pub(crate) fn teacher(id: &str, codec: Codec) -> TeacherIdentity {
    TeacherIdentity {
        format_version: FORMAT_VERSION,
        id: TeacherId::new(id).unwrap(),
        arch: "clip-vit".to_string(),
        source: "/somewhere/clip".to_string(),
        weights_sha256: "0f".repeat(32),
        layer: "last".to_string(),
        activation: "quick_gelu".to_string(),
        norm_eps: 1e-5,
        input_size: 48,
        patch_size: 16,
        mean: [0.481, 0.457, 0.408],
        std: [0.268, 0.261, 0.275],
        grid: 3,
        width: 8,
        codec,
        precision: "f32".to_string(),
        batch_size: 4,
        device: "cpu".to_string(),
        runtime: "libtorch 2.11.0".to_string(),
    }
}

pub(crate) fn teachers() -> [TeacherIdentity; 2] {
    [teacher("clip", Codec::F16), teacher("dino", Codec::F32)]
}

pub(crate) fn content_hash(sample_id: u64) -> ContentHash {
    ContentHash::of(&sample_id.to_le_bytes())
}

pub(crate) fn sample_row(sample_id: u64, view: u16) -> SampleRow {
    let n = sample_id as u32;
    SampleRow {
        sample_id,
        view: View {
            index: view,
            crop: CropBox {
                x: n,
                y: 1,
                w: 30 + u32::from(view),
                h: 40,
            },
            flip: (n + u32::from(view)) % 2 == 1,
        },
        key: format!("class {}/image-{sample_id}.png", n % 3),
        content_hash: content_hash(sample_id),
        label: (sample_id != 5).then_some(n.cast_signed() % 3),
        width: 64,
        height: 48,
        image: None,
    }
}

/// Values that differ in every place, row and teacher, with some of the codec's extremes.
pub(crate) fn values(
    sample_id: u64,
    view: u16,
    teacher: &TeacherIdentity,
    count: usize,
) -> Vec<f32> {
    let start =
        sample_id * 31 + u64::from(view) * 17 + u64::from(teacher.id.as_str().as_bytes()[0]);
    let mut values: Vec<f32> = (0..count)
        .map(|i| ((start + i as u64 * 7) % 257) as f32 / 16.0 - 8.0)
        .collect();
    values[0] = 65504.0;
    values[1] = -0.0;
    values
}

pub(crate) fn teacher_row(sample_id: u64, view: u16, teacher: &TeacherIdentity) -> TeacherRow {
    let encode = |codec: Codec, count| {
        let mut bytes = Vec::new();
        codec
            .encode(&values(sample_id, view, teacher, count), &mut bytes)
            .unwrap();
        bytes
    };
    TeacherRow {
        sample_id,
        view,
        content_hash: content_hash(sample_id),
        tokens: encode(teacher.codec, 9 * 8),
        cls: encode(teacher.codec, 8),
        cls_attn: encode(Codec::F16, 9),
    }
}

/// Samples 2 and 3 cannot be used.
pub(crate) fn rejects(part: u32) -> Vec<Reject> {
    let reject = |sample_id, content_hash| Reject {
        sample_id,
        key: format!("class {}/image-{sample_id}.png", sample_id % 3),
        reason: "truncated: 3 of 80 rows".to_string(),
        content_hash,
    };
    if part == 0 {
        vec![reject(2, Some(content_hash(2))), reject(3, None)]
    } else {
        Vec::new()
    }
}

/// (sample, view) of the rows of a part.
pub(crate) fn places(part: u32) -> Vec<(u64, u16)> {
    let rejected: Vec<u64> = rejects(part)
        .iter()
        .map(|reject| reject.sample_id)
        .collect();
    identity()
        .plan
        .range(part)
        .filter(|id| !rejected.contains(id))
        .flat_map(|id| [(id, 0), (id, 1)])
        .collect()
}

pub(crate) fn write_samples(dir: &Path, part: u32) {
    let mut samples = SamplesWriter::create(dir, part, &identity()).unwrap();
    places(part)
        .into_iter()
        .for_each(|(id, view)| samples.push(&sample_row(id, view)).unwrap());
    samples.finish(&rejects(part)).unwrap();
}

pub(crate) fn write_teacher(dir: &Path, part: u32, teacher: &TeacherIdentity) {
    let mut features = TeacherWriter::create(dir, part, &identity(), teacher).unwrap();
    places(part)
        .into_iter()
        .for_each(|(id, view)| features.push(&teacher_row(id, view, teacher)).unwrap());
    features.finish().unwrap();
}

/// Builds the whole cache.
pub(crate) fn build(dir: &Path) {
    create_cache(dir, &identity()).unwrap();
    for teacher in &teachers() {
        add_teacher(dir, teacher).unwrap();
    }
    for part in 0..identity().plan.parts() {
        write_samples(dir, part);
        teachers()
            .iter()
            .for_each(|teacher| write_teacher(dir, part, teacher));
    }
}
