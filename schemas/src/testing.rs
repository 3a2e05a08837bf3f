//! Tiny caches for the tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{
    Affine, CacheIdentity, Codec, ContentHash, CropBox, DatasetIdentity, EncodedRow, FORMAT_VERSION, FeatureCodec,
    Pack, Plan, Reject, RowKey, SampleRow, SamplesWriter, Scalar, TeacherId, TeacherIdentity, TeacherRow,
    TeacherWriter, View, ViewIdentity, ViewPolicy, add_teacher, create_cache,
};

pub(crate) fn identity() -> CacheIdentity {
    CacheIdentity {
        format_version: FORMAT_VERSION,
        dataset: DatasetIdentity { kind: "folder".to_string(), samples: 10, digest: "ab".repeat(32) },
        image_code: "test 1".to_string(),
        views: ViewIdentity { policy: ViewPolicy::rrc(), views: 2, seed: 7, filter: "bicubic".to_string() },
        plan: Plan { samples: 10, part_samples: 4 },
        pack: Pack::None,
        depth_window: crate::DepthWindow::HighByte,
        label_names: vec!["ant".to_string(), "bee".to_string(), "cat".to_string()],
        dedup: false,
        generations: Vec::new(),
    }
}

/// Steps of 1/16 over the values of [`teacher_row`], and two outlier channels for its extremes.
pub(crate) fn affine(width: usize) -> Codec {
    Codec::I8(Affine { scale: vec![0.0625; width], offset: vec![0.5; width], outliers: vec![1, 2], images: 3 })
}

/// A teacher with 9 tokens of 8 channels.
pub(crate) fn teacher(id: &str, codec: Codec) -> TeacherIdentity {
    TeacherIdentity {
        format_version: FORMAT_VERSION,
        id: TeacherId::new(id).unwrap(),
        arch: "clip-vit".to_string(),
        source: "/somewhere/clip".to_string(),
        assumed: Vec::new(),
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
        batches: crate::Batches::Samples,
        device: "cpu".to_string(),
        device_name: None,
        runtime: "libtorch 2.11.0".to_string(),
    }
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
            crop: CropBox { x: n, y: 1, w: 30 + u32::from(view), h: 40 },
            flip: (n + u32::from(view)) % 2 == 1,
        },
        key: format!("class {}/image-{sample_id}.png", n % 3),
        content_hash: content_hash(sample_id),
        label: (sample_id != 5).then_some(n.cast_signed() % 3),
        width: 64,
        height: 48,
        image_hash: None,
    }
}

/// Stands for the image file of a sample.
pub(crate) fn image(sample_id: u64) -> Vec<u8> {
    (0..20 + sample_id as u8).map(|i| i ^ sample_id as u8).collect()
}

/// Values that differ in every place, row and teacher, with some of the codec's extremes.
fn values(sample_id: u64, view: u16, teacher: &TeacherIdentity, count: usize) -> Vec<f32> {
    let start = sample_id * 31 + u64::from(view) * 17 + u64::from(teacher.id.as_str().as_bytes()[0]);
    let mut values: Vec<f32> = (0..count).map(|i| ((start + i as u64 * 7) % 257) as f32 / 16.0 - 8.0).collect();
    if let [_, extremes @ .., _] = &mut values[..] {
        extremes.iter_mut().zip([65504.0, -0.0]).for_each(|(value, extreme)| *value = extreme);
    }
    values
}

pub(crate) fn teacher_row(sample_id: u64, view: u16, teacher: &TeacherIdentity) -> TeacherRow {
    let width = teacher.width as usize;
    let encode = |codec: &dyn FeatureCodec, count| {
        let mut bytes = Vec::new();
        codec.encode(&values(sample_id, view, teacher, count), width, &mut bytes).unwrap();
        bytes
    };
    TeacherRow {
        key: RowKey { sample_id, view, content_hash: content_hash(sample_id) },
        tokens: encode(teacher.codec.tokens(), teacher.n_tokens() * width),
        cls: encode(&teacher.codec.cls(), width),
        cls_attn: encode(&Scalar::F16, teacher.n_tokens()),
    }
}

/// The row as its part file holds it.
pub(crate) fn encoded(row: &TeacherRow, teacher: &TeacherIdentity) -> EncodedRow {
    EncodedRow::from_stored(teacher, row.key, row.features(), None).unwrap()
}

/// A cache to be built: what it is, and which samples cannot be used.
pub(crate) struct Tiny {
    pub(crate) identity: CacheIdentity,
    pub(crate) teachers: Vec<TeacherIdentity>,
    pub(crate) rejected: Vec<u64>,
}

impl Tiny {
    /// 10 samples in 3 parts, 2 views each, two teachers, two rejects.
    pub(crate) fn usual() -> Tiny {
        let teachers = vec![teacher("clip", Codec::F16), teacher("dino", Codec::F32)];
        Tiny { identity: identity(), teachers, rejected: vec![2, 3] }
    }

    /// [`Tiny::usual`] with packed images and the other codecs.
    pub(crate) fn packed() -> Tiny {
        let mut tiny = Tiny::usual();
        tiny.identity.pack = Pack::Original;
        tiny.teachers = vec![teacher("clip", affine(8)), teacher("dino", Codec::Bf16)];
        tiny
    }

    /// 4 samples in one part, one view each, a teacher with one token of 2 channels: for tests that try every byte.
    pub(crate) fn least() -> Tiny {
        let mut identity = identity();
        identity.dataset.samples = 4;
        identity.plan = Plan { samples: 4, part_samples: 4 };
        identity.views.views = 1;
        let teacher = TeacherIdentity { grid: 1, input_size: 16, width: 2, ..teacher("clip", Codec::F16) };
        Tiny { identity, teachers: vec![teacher], rejected: vec![0, 2] }
    }

    /// The row of a view, with its packed image's hash where there is one.
    pub(crate) fn sample(&self, sample_id: u64, view: u16) -> SampleRow {
        let packed = self.identity.pack != Pack::None && view == 0;
        SampleRow { image_hash: packed.then(|| ContentHash::of(&image(sample_id))), ..sample_row(sample_id, view) }
    }

    /// (sample, view) of the rows of a part.
    pub(crate) fn places(&self, part: u32) -> Vec<(u64, u16)> {
        let used = self.identity.plan.range(part).filter(|id| !self.rejected.contains(id));
        used.flat_map(|id| (0..self.identity.views.views).map(move |view| (id, view))).collect()
    }

    pub(crate) fn rejects(&self, part: u32) -> Vec<Reject> {
        let range = self.identity.plan.range(part);
        let reject = |sample_id: u64| Reject {
            sample_id,
            key: format!("class {}/image-{sample_id}.png", sample_id % 3),
            reason: "truncated: 3 of 80 rows".to_string(),
            content_hash: (sample_id != 3).then(|| content_hash(sample_id)),
        };
        self.rejected.iter().filter(|id| range.contains(id)).map(|id| reject(*id)).collect()
    }

    pub(crate) fn write_samples(&self, dir: &Path, part: u32) {
        let mut samples = SamplesWriter::create(dir, part, &self.identity).unwrap();
        for (id, view) in self.places(part) {
            let row = self.sample(id, view);
            let image = row.image_hash.map(|_| image(id));
            samples.push_packed(&row, image.as_deref()).unwrap();
        }
        samples.finish(&self.rejects(part)).unwrap();
    }

    pub(crate) fn write_teacher(&self, dir: &Path, part: u32, teacher: &TeacherIdentity) {
        let mut features = TeacherWriter::create(dir, part, &self.identity, teacher).unwrap();
        for (id, view) in self.places(part) {
            features.push(encoded(&teacher_row(id, view, teacher), teacher)).unwrap();
        }
        features.finish().unwrap();
    }

    /// Builds the whole cache.
    pub(crate) fn build(&self, dir: &Path) {
        create_cache(dir, &self.identity).unwrap();
        self.teachers.iter().for_each(|teacher| add_teacher(dir, teacher).unwrap());
        for part in 0..self.identity.plan.parts() {
            self.write_samples(dir, part);
            self.teachers.iter().for_each(|teacher| self.write_teacher(dir, part, teacher));
        }
    }
}

/// Every file of a folder with its bytes.
pub(crate) fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    found
}

/// Replaces a file of a cache, as no builder would.
#[expect(clippy::disallowed_methods, reason = "damage is not published atomically")]
pub(crate) fn overwrite(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}
