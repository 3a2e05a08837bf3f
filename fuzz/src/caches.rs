//! Tiny caches, and everything that the programs ask of a cache.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemas::{
    Affine, Batches, Cache, CacheIdentity, ChannelSums, Codec, CodecError, ContentHash, CropBox, DatasetIdentity,
    DepthWindow, EncodedRow, Pack, Plan, Reject, RowFeatures, RowKey, SampleRow, SamplesWriter, Scalar, Skipped,
    TeacherId, TeacherIdentity, TeacherWriter, View, ViewIdentity, ViewPolicy,
};

/// Four samples in one part, with one or two views; the samples 0 and 2 are rejects.
pub fn identity(views: u16, pack: Pack) -> CacheIdentity {
    CacheIdentity {
        format_version: 1,
        dataset: DatasetIdentity { kind: "folder".to_owned(), samples: 4, digest: "ab".repeat(32) },
        image_code: "test 1".to_owned(),
        views: ViewIdentity { policy: ViewPolicy::rrc(), views, seed: 7, filter: "bicubic".to_owned() },
        plan: Plan { samples: 4, part_samples: 4 },
        pack,
        depth_window: DepthWindow::HighByte,
        label_names: vec!["ant".to_owned(), "bee".to_owned()],
    }
}

/// One token of two channels.
pub fn teacher(codec: Codec) -> TeacherIdentity {
    TeacherIdentity {
        format_version: 1,
        id: TeacherId::new("clip").expect("a name"),
        arch: "clip-vit".to_owned(),
        source: "/somewhere".to_owned(),
        assumed: Vec::new(),
        weights_sha256: "0f".repeat(32),
        layer: "last".to_owned(),
        activation: "gelu".to_owned(),
        norm_eps: 1e-5,
        input_size: 16,
        patch_size: 16,
        mean: [0.5; 3],
        std: [0.25; 3],
        grid: 1,
        width: 2,
        codec,
        precision: "f32".to_owned(),
        batch_size: 4,
        batches: Batches::Samples,
        device: "cpu".to_owned(),
        device_name: None,
        runtime: "test".to_owned(),
    }
}

pub fn affine() -> Codec {
    Codec::I8(Affine { scale: vec![0.0625; 2], offset: vec![0.0; 2], outliers: vec![1], images: 1 })
}

fn image(sample_id: u64) -> Vec<u8> {
    (0..20 + sample_id as u8).collect()
}

pub fn sample_row(identity: &CacheIdentity, sample_id: u64, view: u16) -> SampleRow {
    let packed = identity.pack != Pack::None && view == 0;
    SampleRow {
        sample_id,
        view: View { index: view, crop: CropBox { x: 1, y: 2, w: 30, h: 40 }, flip: view == 1 },
        key: format!("a/{sample_id}.png"),
        content_hash: ContentHash::of(&sample_id.to_le_bytes()),
        label: (sample_id != 1).then_some(1),
        width: 64,
        height: 48,
        image_hash: packed.then(|| ContentHash::of(&image(sample_id))),
    }
}

pub fn rejects() -> Vec<Reject> {
    let reject = |sample_id: u64| Reject {
        sample_id,
        key: format!("a/{sample_id}.png"),
        reason: "truncated".to_owned(),
        content_hash: (sample_id > 0).then(|| ContentHash::of(b"x")),
    };
    vec![reject(0), reject(2)]
}

/// Builds a sound cache.
pub fn build(dir: &Path, identity: &CacheIdentity, teacher: &TeacherIdentity) {
    schemas::create_cache(dir, identity).expect("a cache");
    schemas::add_teacher(dir, teacher).expect("a teacher");
    let mut samples = SamplesWriter::create(dir, 0, identity).expect("a part");
    let mut features = TeacherWriter::create(dir, 0, identity, teacher).expect("a part");
    for sample_id in [1, 3] {
        for view in 0..identity.views.views {
            let row = sample_row(identity, sample_id, view);
            let packed = row.image_hash.map(|_| image(sample_id));
            samples.push_packed(&row, packed.as_deref()).expect("a row");
            let tokens = vec![sample_id as f32 / 4.0; teacher.n_tokens() * teacher.width as usize];
            let (cls, cls_attn) = (vec![0.5; teacher.width as usize], vec![0.25; teacher.n_tokens()]);
            let values = RowFeatures { tokens: &tokens[..], cls: &cls[..], cls_attn: &cls_attn[..] };
            features.push(EncodedRow::encode(teacher, row.row_key(), values).expect("values")).expect("a row");
        }
    }
    samples.finish(&rejects()).expect("a part");
    features.finish().expect("a part");
    schemas::write_skipped(dir, &[Skipped::new("b.heic", "HEIC is not supported", 1)]).expect("a file");
}

/// The files of a folder by their paths below it.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![dir.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).expect("below the folder").to_path_buf();
                found.insert(name, std::fs::read(&path).expect("a file"));
            }
        }
    }
    found
}

/// What reading a samples file and a teacher's gave, where all rows are sound.
#[derive(Default)]
pub struct Contents {
    pub samples: Option<Vec<SampleRow>>,
    pub features: Option<Vec<(RowKey, [Vec<u8>; 3])>>,
}

/// Asks everything of a cache that the programs ask. `input` decides whether it is verified, too, one time in four: the threads of that take
/// longer than all the rest.
pub fn read(dir: &Path, input: &[u8]) -> Contents {
    let mut contents = Contents::default();
    let said = |error: &schemas::Error| assert!(!error.to_string().is_empty());
    let _ = schemas::read_skipped(dir).inspect_err(said);
    let Ok((cache, unreadable)) = Cache::open_readable(dir).inspect_err(said) else {
        return contents;
    };
    unreadable.values().for_each(said);
    // Every part of a plan costs a look at a few files.
    if cache.identity().plan.parts() > 16 {
        return contents;
    }
    let _ = cache.lost_files().inspect_err(said);
    let teachers: Vec<&TeacherIdentity> = cache.teachers().values().collect();
    let _ = schemas::parts_are_of(dir, cache.identity(), &teachers).inspect_err(said);
    let mut features_opened = false;
    let mut sums: BTreeMap<&TeacherId, (ChannelSums, CodecError)> = BTreeMap::new();
    for part in 0..cache.identity().plan.parts() {
        let _ = cache.rejects(part).inspect_err(said);
        let _ = cache.samples_column_bytes(part).inspect_err(said);
        let samples = cache.samples_part(part).inspect_err(said).ok();
        if let Some(samples) = &samples {
            for row in 0..=samples.rows().len() {
                let _ = samples.read_image(row).inspect_err(said);
            }
            contents.samples = Some(samples.rows().to_vec());
        }
        let state = cache.part_state(part).inspect_err(said).unwrap_or_default();
        for commit in state.teachers.values() {
            // As statistics do, over all parts.
            let (channels, lost) = sums.entry(&teachers[0].id).or_default();
            for _ in 0..2 {
                channels.add(&commit.channels);
                commit.codec_error.iter().for_each(|error| lost.add(error));
            }
            let _ = (channels.mean(), channels.variance(), lost.relative_l2(), lost.mean_cos(), lost.worst_channel());
        }
        for teacher in &teachers {
            let Ok(features) = cache.teacher_part(&teacher.id, part).inspect_err(said) else {
                continue;
            };
            features_opened = true;
            let (mut rows, mut values) = (Vec::new(), Vec::new());
            let mut all_read = true;
            for row in 0..features.rows() {
                match features.read_row(row).inspect_err(said) {
                    Ok(read) => {
                        teacher.decode_tokens(&read.tokens, &mut values).expect("a row that was read has its length");
                        teacher.decode_cls(&read.cls, &mut values).expect("a row that was read has its length");
                        teacher
                            .decode_cls_attn(&read.cls_attn, &mut values)
                            .expect("a row that was read has its length");
                        if let Some(sample) = samples.as_ref().and_then(|samples| samples.rows().get(row)) {
                            let _ = features.check_join(row, &read.key, &sample.row_key()).inspect_err(said);
                        }
                        rows.push((read.key, [read.tokens, read.cls, read.cls_attn]));
                    }
                    Err(_) => all_read = false,
                }
            }
            let _ = features.column_bytes();
            contents.features = all_read.then_some(rows);
        }
    }
    // Where a file cannot be opened, it says what was said above.
    if features_opened
        && contents.samples.is_some()
        && input.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) % 4 == 0
    {
        match schemas::verify(dir, &mut |_| {}) {
            Ok(report) => report.problems.iter().for_each(said),
            Err(error) => said(&error),
        }
    }
    contents
}

/// A scalar codec by number.
pub fn codec(number: u8) -> Codec {
    match number % 4 {
        0 => Codec::F16,
        1 => Codec::F32,
        2 => Codec::Bf16,
        _ => affine(),
    }
}

/// Bytes of the three features.
pub fn widths(teacher: &TeacherIdentity) -> [usize; 3] {
    let cls = teacher.width as usize * teacher.codec.cls().bytes_per_value();
    let tokens = teacher.codec.tokens().bytes(teacher.n_tokens(), teacher.width as usize);
    [tokens, cls, teacher.n_tokens() * Scalar::F16.bytes_per_value()]
}
