//! Every variant is produced by the cache that it describes.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use super::*;
use crate::testing::{Tiny, encoded, image, overwrite, sample_row, teacher_row};
use crate::{
    Cache, EncodedRow, FeatureCodec, RowFeatures, RowKey, SamplesWriter, Scalar, TeacherIdentity, TeacherWriter,
    atomic, create_cache, layout, verify,
};

/// `name` of each variant, and all the names. A new variant does not compile until it is listed here, and once it is listed, the
/// test below fails until something produces it.
macro_rules! variants {
    ($($name:ident),* $(,)?) => {
        fn name(error: &Error) -> &'static str {
            match error { $(Error::$name { .. } => stringify!($name),)* }
        }
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}
variants!(
    Io,
    DiskFull,
    AlreadyExists,
    NotACache,
    TeacherName,
    IdentityValue,
    IdentityChanged,
    GenerationChanged,
    NoSuchTeacher,
    NoSuchPart,
    NoSuchRow,
    NotBuilt,
    RecordSize,
    RecordDigest,
    Record,
    Version,
    Misplaced,
    FileMissing,
    FileSize,
    Footer,
    FileHash,
    Parquet,
    Column,
    RowCount,
    RowUnreadable,
    RowChecksum,
    ImageHash,
    RowValue,
    RowOrder,
    Join,
    JoinCount,
    Coverage,
    RejectLine,
    ChannelSums,
    Unstorable,
    Feature,
    CodecLength,
);

/// A built cache, and ways to spoil it.
struct Spoiled {
    dir: tempfile::TempDir,
    tiny: Tiny,
}

impl Spoiled {
    fn new() -> Spoiled {
        Spoiled::build(Tiny::usual())
    }

    fn packed() -> Spoiled {
        Spoiled::build(Tiny::packed())
    }

    fn build(tiny: Tiny) -> Spoiled {
        let spoiled = Spoiled { dir: tempfile::tempdir().unwrap(), tiny };
        spoiled.tiny.build(spoiled.path());
        spoiled
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn clip(&self) -> &TeacherIdentity {
        &self.tiny.teachers[0]
    }

    fn open(&self) -> Cache {
        Cache::open(self.path()).unwrap()
    }

    /// Changes a record and gives it a digest that holds.
    fn edit(&self, record: &Path, edit: impl FnOnce(&mut Value)) {
        let mut value: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
        value.as_object_mut().unwrap().remove("digest");
        edit(&mut value);
        crate::json::write(record, &value).unwrap();
    }

    /// Changes the bytes of a file.
    fn patch(&self, file: &Path, patch: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(file).unwrap();
        patch(&mut bytes);
        overwrite(file, &bytes);
    }

    /// Lets the commit record vouch for the Parquet file as it is.
    fn vouch(&self, commit: &Path, file: &Path) {
        let bytes = fs::read(file).unwrap();
        self.edit(commit, |value| {
            let stamp = &mut value["file"];
            let footer = bytes.len().saturating_sub(stamp["footer_bytes"].as_u64().unwrap() as usize);
            stamp["footer_bytes"] = (bytes.len() - footer).into();
            stamp["footer_sha256"] = crate::json::sha256_hex(&bytes[footer..]).into();
            stamp["bytes"] = bytes.len().into();
            stamp["sha256"] = crate::json::sha256_hex(&bytes).into();
        });
    }

    /// The only problem that `verify` finds.
    fn problem(&self) -> Error {
        let mut problems = verify(self.path(), &mut |_| {}).unwrap().problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.remove(0)
    }

    fn samples(&self) -> PathBuf {
        layout::samples_file(self.path(), 1)
    }

    fn samples_commit(&self) -> PathBuf {
        layout::samples_commit(self.path(), 1)
    }

    fn features(&self) -> PathBuf {
        layout::teacher_file(self.path(), &self.clip().id, 1)
    }

    fn features_commit(&self) -> PathBuf {
        layout::teacher_commit(self.path(), &self.clip().id, 1)
    }
}

/// One error of each variant, each from the code that users meet it in.
fn one_of_each() -> Vec<Error> {
    let mut errors = Vec::new();
    let mut add = |error: Error| errors.push(error);

    // The machine.
    let c = Spoiled::new();
    add(atomic::write(&c.samples().join("below a file"), b"x").unwrap_err());
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    add(Error::parquet("write", &c.samples(), full.into()));
    add(atomic::AtomicDir::create(&c.path().join("samples")).unwrap_err());

    // Identity.
    add(Cache::open(&c.path().join("nowhere")).unwrap_err());
    add(crate::TeacherId::new("Clip/..").unwrap_err());
    let mut identity = c.tiny.identity.clone();
    identity.views.views = 0;
    add(create_cache(c.path(), &identity).unwrap_err());
    identity.views.views = 3;
    add(create_cache(c.path(), &identity).unwrap_err());
    let appended = |samples| {
        let mut identity = c.tiny.identity.clone();
        let dataset = crate::DatasetIdentity { samples, ..identity.dataset.clone() };
        identity.generations.push(identity.next_generation(dataset, identity.label_names.clone()));
        identity
    };
    crate::add_generation(c.path(), &appended(3)).unwrap();
    atomic::write(&layout::samples_commit(c.path(), 3), b"{}").unwrap();
    add(crate::check_generation(c.path(), &appended(5)).unwrap_err());
    let c = Spoiled::new();
    add(c.open().teacher_part(&crate::TeacherId::new("mae").unwrap(), 0).unwrap_err());
    add(c.open().samples(3).unwrap_err());
    add(c.open().teacher_part(&c.clip().id, 1).unwrap().read_row(8).unwrap_err());
    fs::remove_file(c.samples_commit()).unwrap();
    add(c.open().samples(1).unwrap_err());

    // Records.
    let c = Spoiled::new();
    let file = fs::OpenOptions::new().write(true).open(c.samples_commit()).unwrap();
    file.set_len((64 << 20) + 1).unwrap();
    add(c.problem());
    let c = Spoiled::new();
    c.patch(&c.features_commit(), |bytes| bytes[20] ^= 1);
    add(c.problem());
    let c = Spoiled::new();
    c.edit(&c.samples_commit(), |value| drop(value.as_object_mut().unwrap().remove("part")));
    add(c.problem());
    let c = Spoiled::new();
    c.edit(&layout::teacher_json(c.path(), &c.clip().id), |value| value["format_version"] = 2.into());
    add(c.problem());
    let c = Spoiled::new();
    fs::copy(layout::samples_commit(c.path(), 0), c.samples_commit()).unwrap();
    add(c.problem());

    // Part files.
    let c = Spoiled::new();
    fs::remove_file(c.features()).unwrap();
    add(c.problem());
    let c = Spoiled::new();
    c.patch(&c.samples(), |bytes| bytes.push(0));
    add(c.problem());
    let c = Spoiled::new();
    c.patch(&c.features(), |bytes| *bytes.last_mut().unwrap() ^= 1);
    add(c.problem());
    let c = Spoiled::new();
    c.patch(&c.samples(), |bytes| bytes[0] ^= 1);
    add(c.problem());
    let c = Spoiled::new();
    c.patch(&c.features(), |bytes| bytes.fill(0));
    c.vouch(&c.features_commit(), &c.features());
    add(c.problem());
    let c = Spoiled::new();
    fs::copy(c.features(), c.samples()).unwrap();
    let footer = json!(c.open().part_state(1).unwrap().teachers[&c.clip().id].file.footer_bytes);
    c.edit(&c.samples_commit(), |value| value["file"]["footer_bytes"] = footer);
    c.vouch(&c.samples_commit(), &c.samples());
    add(c.problem());
    let c = Spoiled::new();
    c.edit(&c.samples_commit(), |value| value["file"]["rows"] = 9.into());
    add(c.problem());

    // Rows.
    let c = Spoiled::new();
    let (offset, length) = c.open().teacher_part(&c.clip().id, 1).unwrap().file().groups[0].chunks[3].page(2);
    c.patch(&c.features(), |bytes| bytes[offset as usize..][..length].fill(0xff));
    add(c.problem());
    let c = Spoiled::new();
    let key = b"image-6.png";
    c.patch(&c.samples(), |bytes| {
        let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
        bytes[at] = b'I';
    });
    add(c.problem());
    let c = Spoiled::packed();
    let image = image(6);
    c.patch(&c.samples(), |bytes| {
        let at = bytes.windows(image.len()).position(|window| window == image).unwrap();
        bytes[at] ^= 1;
    });
    add(c.problem());
    let c = Spoiled::new();
    let mut samples = SamplesWriter::create(c.path(), 1, &c.tiny.identity).unwrap();
    let mut row = sample_row(4, 0);
    row.view.crop.w = 65;
    add(samples.push(&row).unwrap_err());
    samples.push(&sample_row(4, 1)).unwrap();
    add(samples.push(&sample_row(4, 0)).unwrap_err());
    let mut features = TeacherWriter::create(c.path(), 1, &c.tiny.identity, c.clip()).unwrap();
    for (i, (id, view)) in c.tiny.places(1).into_iter().enumerate() {
        let mut row = teacher_row(id, view, c.clip());
        row.key.content_hash.0[0] ^= u8::from(i == 5);
        features.push(encoded(&row, c.clip())).unwrap();
    }
    features.finish().unwrap();
    add(c.problem());
    let mut features = TeacherWriter::create(c.path(), 1, &c.tiny.identity, c.clip()).unwrap();
    let places = c.tiny.places(1);
    places[..7]
        .iter()
        .for_each(|(id, view)| features.push(encoded(&teacher_row(*id, *view, c.clip()), c.clip())).unwrap());
    features.finish().unwrap();
    add(c.problem());
    add(samples.finish(&[]).unwrap_err());
    let c = Spoiled::new();
    c.patch(&layout::rejects_file(c.path(), 0), |bytes| bytes[200] ^= 1);
    add(c.problem());
    let c = Spoiled::new();
    c.edit(&c.features_commit(), |value| value["channels"]["sum"][3] = 0.5.into());
    add(c.problem());

    // Values.
    add(Scalar::F16.encode(&[1e6], 1, &mut Vec::new()).unwrap_err());
    let (infinite, zeros) = ([f32::INFINITY; 8], [0.0; 9 * 8]);
    let features = RowFeatures { tokens: &zeros, cls: &infinite, cls_attn: &zeros[..9] };
    add(EncodedRow::encode(c.clip(), RowKey::default(), features).unwrap_err());
    add(Scalar::F16.decode_into(&[0; 3], 1, &mut [0.0]).unwrap_err());
    errors
}

#[test]
fn every_variant_is_produced_and_says_where() {
    let errors = one_of_each();
    let produced: Vec<_> = errors.iter().map(name).collect();
    assert_eq!(produced, NAMES, "in the order of the list, each once");
    assert_eq!(NAMES.iter().collect::<BTreeSet<_>>().len(), NAMES.len());
    for error in &errors {
        let text = error.to_string();
        let has_place = !matches!(
            error,
            Error::TeacherName { .. } | Error::Unstorable { .. } | Error::Feature { .. } | Error::CodecLength { .. }
        );
        assert!(!has_place || text.starts_with('/') || text.contains(" /"), "{text}");
        assert!(!text.contains("  ") && !text.ends_with(['.', ' ', ';']), "{text}");
        assert_eq!(error.is_io(), matches!(error, Error::Io { .. } | Error::DiskFull { .. }), "{text}");
    }
}

#[test]
fn messages_read_like_this() {
    let (dir, tiny) = (tempfile::tempdir().unwrap(), Tiny::usual());
    tiny.build(dir.path());
    let show = |error: Error| error.to_string().replace(&dir.path().display().to_string(), "CACHE");
    let mut identity = tiny.identity.clone();
    identity.views.seed = 8;
    assert_eq!(
        show(create_cache(dir.path(), &identity).unwrap_err()),
        "CACHE/cache.json: this cache was built with views.seed = 7, but views.seed = 8 is asked for; build into another folder, or ask \
         for the cached value"
    );
    let earlier = TeacherIdentity { batches: crate::Batches::Rows, ..tiny.teachers[0].clone() };
    let path = layout::teacher_json(dir.path(), &earlier.id);
    assert_eq!(
        show(earlier.check_same(&path, &tiny.teachers[0]).unwrap_err()),
        "CACHE/teachers/clip/teacher.json: this cache was built with batches = \"rows\", but batches = \"samples\" is asked for; build into \
         another folder, or finish it with the version of the program that began it, which cut forward passes by usable rows: this one cuts \
         them by samples, and the features would differ in their last bits"
    );
    let path = layout::teacher_file(dir.path(), &tiny.teachers[1].id, 2);
    assert_eq!(
        show(Error::RowChecksum { path, row: 3, found: 1, expected: 0xfedc_ba98_7654_3210 }),
        "CACHE/teachers/dino/part-00002.parquet, row 3: the values have checksum 0000000000000001, the row says fedcba9876543210: the file \
         is damaged here; restore it from a copy, or give the `pipeline build-cache` that built the cache --repair, unless the teacher was \
         recoded; or delete CACHE/teachers/dino/part-00002.commit.json and run the command that built this part again (`pipeline \
         build-cache`; `add-images` for images and `add-teacher` for a teacher added later; `recode` for a recoded teacher)"
    );
    // Samples belong to no teacher, whatever teachers are called.
    let path = layout::samples_commit(dir.path(), 1);
    assert!(
        show(Error::NotBuilt { path }).ends_with("(`pipeline build-cache`, or `add-images` for images added later)")
    );
    let path = layout::teacher_commit(dir.path(), &"samples".parse().unwrap(), 1);
    assert!(show(Error::NotBuilt { path }).ends_with("`recode` for a recoded teacher)"));
    let path = layout::rejects_file(dir.path(), 0);
    assert!(show(Error::FileMissing { path }).contains("delete CACHE/samples/part-00000.commit.json and run"));
    assert!(show(Error::RecordDigest { path: layout::cache_json(dir.path()) }).ends_with("or rebuild the cache"));
    let path = layout::teacher_json(dir.path(), &tiny.teachers[1].id);
    let text = show(Error::RecordDigest { path });
    assert!(
        text.contains("delete it and run the command that built this teacher")
            && text.ends_with("`add-teacher` for a teacher added later, `recode` for a recoded one)"),
        "{text}"
    );
}
