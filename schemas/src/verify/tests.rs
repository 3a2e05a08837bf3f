use std::fs;

use proptest::prelude::*;

use super::*;
use crate::columns::{samples_columns, teacher_columns};
use crate::part_file::{Expected, PartFile};
use crate::testing::{Tiny, files, overwrite};
use crate::{Affine, Cache, Codec, Pack, json};

fn check(dir: &Path) -> Report {
    verify(dir, &mut |_| {}).unwrap()
}

#[test]
fn a_sound_cache_has_no_problems() {
    let (dir, tiny) = (tempfile::tempdir().unwrap(), Tiny::usual());
    tiny.build(dir.path());
    let mut last = None;
    let report = verify(dir.path(), &mut |progress| last = Some(progress)).unwrap();
    assert!(report.problems.is_empty() && report.missing.is_empty() && report.notes.is_empty(), "{report:?}");
    let parquet: Vec<_> =
        files(dir.path()).into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "parquet")).collect();
    assert_eq!((report.files, report.rows), (9, 3 * 16));
    assert_eq!(report.bytes, parquet.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
    assert_eq!(last.unwrap().total_bytes, report.bytes);
}

/// What the place of a damaged byte lets `verify` say.
enum Place {
    /// The row (or line) that holds it.
    Row(usize),
    /// One of these rows: a byte that many rows share.
    Rows(std::ops::Range<usize>),
    /// No row.
    File,
}

/// Which row holds which byte of a Parquet file of ours, from the page index as it was written.
fn places(cache: &Cache, path: &Path, length: usize) -> Vec<Place> {
    let mut places: Vec<Place> = (0..length).map(|_| Place::File).collect();
    let state = cache.part_state(0).unwrap();
    let (stamp, teacher) = match cache.teachers().values().next() {
        Some(teacher) if path.parent().unwrap().ends_with(teacher.id.as_str()) => {
            (state.teachers[&teacher.id].file.clone(), Some(teacher))
        }
        _ => (state.samples.unwrap().file, None),
    };
    let columns = teacher.map_or(samples_columns().to_vec(), |teacher| teacher_columns(teacher).to_vec());
    let expected = Expected {
        part: 0,
        stamp: &stamp,
        columns: &columns,
        cache_fingerprint: cache.identity().fingerprint(),
        teacher_fingerprint: teacher.map(TeacherIdentity::fingerprint),
    };
    let file = PartFile::open(path, &expected).unwrap();
    for group in &file.groups {
        for chunk in &group.chunks {
            for i in 0..chunk.n_pages() {
                let (offset, length) = chunk.page(i);
                let rows = group.first_row + chunk.page_rows(i).start..group.first_row + chunk.page_rows(i).end;
                for place in &mut places[offset as usize..][..length] {
                    *place = if rows.len() == 1 { Place::Row(rows.start) } else { Place::Rows(rows.clone()) };
                }
            }
        }
    }
    places
}

fn path_of(problem: &Error) -> &Path {
    match problem {
        Error::RecordDigest { path }
        | Error::Footer { path }
        | Error::FileHash { path }
        | Error::RowUnreadable { path, .. }
        | Error::RowChecksum { path, .. }
        | Error::ImageHash { path, .. }
        | Error::RowValue { path, .. }
        | Error::RejectLine { path, .. } => path,
        other => panic!("a flipped byte is not reported as: {other}"),
    }
}

fn row_of(problem: &Error) -> Option<usize> {
    match problem {
        Error::RowUnreadable { row, .. }
        | Error::RowChecksum { row, .. }
        | Error::ImageHash { row, .. }
        | Error::RejectLine { line: row, .. } => Some(*row),
        _ => None,
    }
}

/// The first error that reading everything in the cache meets.
fn read_all(dir: &Path) -> Result<()> {
    let cache = Cache::open(dir)?;
    for part in 0..cache.identity().plan.parts() {
        cache.rejects(part)?;
        let samples = cache.samples_part(part)?;
        for row in 0..samples.rows().len() {
            samples.read_image(row)?;
        }
        for id in cache.teachers().keys() {
            cache.teacher_part(id, part)?.iter().try_for_each(|row| row.map(|_| ()))?;
        }
    }
    Ok(())
}

/// Flips every byte of every file, and looks whether `verify` names the file and the row, and readers say the same.
#[test]
fn any_flipped_byte_is_reported_by_file_and_row() {
    flip_every_byte(&Tiny::least());
}

#[test]
fn any_flipped_byte_is_reported_with_packed_images_and_i8() {
    let mut tiny = Tiny::least();
    tiny.identity.pack = Pack::Original;
    tiny.teachers[0].codec =
        Codec::I8(Affine { scale: vec![0.0625; 2], offset: vec![0.0; 2], outliers: vec![1], images: 1 });
    flip_every_byte(&tiny);
}

fn flip_every_byte(tiny: &Tiny) {
    let dir = tempfile::tempdir().unwrap();
    tiny.build(dir.path());
    let cache = Cache::open(dir.path()).unwrap();
    let (mut in_rows, mut without_effect) = (0, Vec::new());
    for (path, bytes) in files(dir.path()) {
        let places = if path.extension().is_some_and(|e| e == "parquet") {
            places(&cache, &path, bytes.len())
        } else {
            let by_line = path.extension().is_some_and(|e| e == "jsonl");
            let line = |at: usize| bytes[..at].iter().filter(|byte| **byte == b'\n').count();
            (0..bytes.len()).map(|at| if by_line { Place::Row(line(at)) } else { Place::File }).collect()
        };
        for (at, place) in places.iter().enumerate() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            overwrite(&path, &damaged);
            let report = check(dir.path());
            let context = || format!("{} byte {at}: {:?}", path.display(), report.problems);
            assert!(!report.problems.is_empty(), "{}", context());
            assert!(report.problems.iter().all(|problem| path_of(problem) == path), "{}", context());
            assert!(report.notes.is_empty() && report.missing.is_empty(), "{}", context());
            let first = &report.problems[0];
            match (place, row_of(first)) {
                (Place::Row(row), Some(named)) => assert_eq!(named, *row, "{}", context()),
                (Place::Rows(rows), Some(named)) => assert!(rows.contains(&named), "{}", context()),
                (Place::Row(_) | Place::Rows(_), None) => {
                    assert!(matches!(first, Error::FileHash { .. }), "{}", context());
                    without_effect.push((path.clone(), at));
                }
                (Place::File, named) => assert_eq!(named, None, "{}", context()),
            }
            in_rows += usize::from(!matches!(place, Place::File));
            match read_all(dir.path()) {
                Err(error) => assert_eq!(error.to_string(), first.to_string()),
                // Readers do not hash whole files; what they returned is what was written, by the rows' own checksums.
                Ok(()) => assert!(matches!(first, Error::FileHash { .. }), "{}", context()),
            }
        }
        overwrite(&path, &bytes);
    }
    assert!(check(dir.path()).problems.is_empty());
    // What is left over: a flag of the zstd frame that its reader does not need.
    assert!(in_rows > 1_000 && without_effect.len() <= 2, "{in_rows} bytes in rows; not named: {without_effect:?}");
}

#[test]
fn every_damaged_row_is_reported_and_the_others_are_read() {
    let (dir, tiny) = (tempfile::tempdir().unwrap(), Tiny::usual());
    tiny.build(dir.path());
    let cache = Cache::open(dir.path()).unwrap();
    let path = layout::teacher_file(dir.path(), &tiny.teachers[1].id, 1);
    let features = cache.teacher_part(&tiny.teachers[1].id, 1).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    for row in [1, 6] {
        let (offset, length) = features.file().groups[0].chunks[3].page(row);
        bytes[offset as usize + length / 2] ^= 0x10;
    }
    overwrite(&path, &bytes);
    let report = check(dir.path());
    let found: Vec<_> =
        report.problems.iter().map(|problem| (path_of(problem).to_path_buf(), row_of(problem))).collect();
    assert_eq!(found, [(path.clone(), Some(1)), (path, Some(6))]);
    let features = Cache::open(dir.path()).unwrap().teacher_part(&tiny.teachers[1].id, 1).unwrap();
    let sound: Vec<_> = (0..8).filter(|row| features.read_row(*row).is_ok()).collect();
    assert_eq!(sound, [0, 2, 3, 4, 5, 7]);
    assert_eq!(features.read_row(6).unwrap_err().to_string(), report.problems[1].to_string());
}

#[test]
fn what_is_missing_or_left_over_is_told_apart() {
    let (dir, tiny) = (tempfile::tempdir().unwrap(), Tiny::usual());
    tiny.build(dir.path());
    let [clip, dino] = [&tiny.teachers[0].id, &tiny.teachers[1].id];
    let commits = [layout::samples_commit(dir.path(), 2), layout::teacher_commit(dir.path(), dino, 0)];
    commits.iter().for_each(|commit| fs::remove_file(commit).unwrap());
    fs::remove_file(layout::rejects_file(dir.path(), 2)).unwrap();
    let temp = layout::teacher_file(dir.path(), clip, 1).with_file_name(".part-00001.parquet.0123456789abcdef.tmp");
    overwrite(&temp, b"half");
    overwrite(&dir.path().join("notes.txt"), b"x");
    overwrite(&dir.path().join("samples/part-00009.parquet"), b"x");
    fs::create_dir(layout::teachers_dir(dir.path()).join("soon")).unwrap();
    // Files whose names would do for teachers.
    overwrite(&layout::teachers_dir(dir.path()).join("readme.txt"), b"x");
    overwrite(&layout::teachers_dir(dir.path()).join("notes"), b"x");
    let report = check(dir.path());
    assert!(report.problems.is_empty(), "{report:?}");
    assert_eq!(report.missing, [commits[1].clone(), commits[0].clone()]);
    let noted = |words: &str| report.notes.iter().filter(|note| note.contains(words)).count();
    assert_eq!(
        (noted("no commit record"), noted("temporary"), noted("not part of the format"), noted("never added")),
        (2, 1, 4, 1)
    );
    assert_eq!(report.notes.len(), 8);
    let cache = Cache::open(dir.path()).unwrap();
    let lacks_something = |part: &u32| {
        let state = cache.part_state(*part).unwrap();
        state.samples.is_none() || state.teachers.len() < cache.teachers().len()
    };
    assert_eq!((0..3).filter(lacks_something).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(crate::remove_stale(dir.path(), 1).unwrap(), 1);
    assert!(!temp.exists());
}

/// Writes a commit record that vouches for the file as it is now, as a builder that meant harm could.
fn vouch(commit_path: &Path, file: &Path, footer_bytes: u64) {
    let text = fs::read_to_string(commit_path).unwrap();
    let bytes = fs::read(file).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let footer = &bytes[bytes.len() - footer_bytes as usize..];
    value["file"]["bytes"] = bytes.len().into();
    value["file"]["sha256"] = json::sha256_hex(&bytes).into();
    value["file"]["footer_bytes"] = footer_bytes.into();
    value["file"]["footer_sha256"] = json::sha256_hex(footer).into();
    value.as_object_mut().unwrap().remove("digest");
    overwrite(commit_path, json::seal(&value).as_bytes());
}

fn damage() -> impl Strategy<Value = (Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>)> {
    (
        proptest::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..6),
        proptest::option::weighted(0.2, any::<prop::sample::Index>()),
    )
}

fn apply(bytes: &mut Vec<u8>, start: usize, changes: &[(prop::sample::Index, u8)], cut: Option<prop::sample::Index>) {
    for (at, xor) in changes {
        let at = start + at.index(bytes.len() - start);
        bytes[at] ^= xor;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
}

/// A cache to damage again and again: built once, since making files durable takes longer than everything else.
struct Victim {
    dir: tempfile::TempDir,
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Victim {
    fn new() -> Victim {
        let dir = tempfile::tempdir().unwrap();
        Tiny::least().build(dir.path());
        let files = files(dir.path()).into_iter().collect();
        Victim { dir, files }
    }

    fn heal(&self) {
        self.files.iter().for_each(|(path, bytes)| overwrite(path, bytes));
    }
}

thread_local! {
    static VICTIM: Victim = Victim::new();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Damage of any extent to any file ends in a report, never in a panic, and never goes unnoticed.
    #[test]
    fn nothing_panics_on_damaged_files(which in any::<prop::sample::Index>(), (bytes, cut) in damage()) {
        VICTIM.with(|victim| {
            let (path, original) = &victim.files[which.index(victim.files.len())];
            let mut damaged = original.clone();
            apply(&mut damaged, 0, &bytes, cut);
            overwrite(path, &damaged);
            let problems = check(victim.dir.path()).problems;
            victim.heal();
            prop_assert_eq!(problems.is_empty(), damaged == *original);
            Ok(())
        })?;
    }

    /// The same where the commit record vouches for the damage, so that the footer's parser gets to see it.
    #[test]
    fn nothing_panics_on_hostile_files(samples in any::<bool>(), in_footer in any::<bool>(), (bytes, cut) in damage()) {
        VICTIM.with(|victim| {
            let (dir, id) = (victim.dir.path(), &Tiny::least().teachers[0].id);
            let state = Cache::open(dir).unwrap().part_state(0).unwrap();
            let (path, commit, stamp) = if samples {
                (layout::samples_file(dir, 0), layout::samples_commit(dir, 0), state.samples.unwrap().file)
            } else {
                (layout::teacher_file(dir, id, 0), layout::teacher_commit(dir, id, 0), state.teachers[id].file.clone())
            };
            let mut damaged = fs::read(&path).unwrap();
            let start = if in_footer { (stamp.bytes - stamp.footer_bytes) as usize } else { 0 };
            apply(&mut damaged, start, &bytes, cut);
            overwrite(&path, &damaged);
            vouch(&commit, &path, stamp.footer_bytes.min(damaged.len() as u64));
            let (sound, readable) = (check(dir).problems.is_empty(), read_all(dir).is_ok());
            victim.heal();
            prop_assert!(readable || !sound, "what verify accepts can be read");
            Ok(())
        })?;
    }
}

/// Features beyond a row's promise: a page that would unpack to more than the identity allows for.
#[test]
fn a_teacher_that_claims_other_shapes_is_refused() {
    let (dir, tiny) = (tempfile::tempdir().unwrap(), Tiny::least());
    tiny.build(dir.path());
    let wide = TeacherIdentity { width: 4, codec: Codec::F32, ..tiny.teachers[0].clone() };
    json::write(&layout::teacher_json(dir.path(), &wide.id), &wide).unwrap();
    let problems = check(dir.path()).problems;
    assert!(
        matches!(&problems[..], [Error::Misplaced { field, .. }] if field == "teacher fingerprint"),
        "{problems:?}"
    );
}

/// Parts without their teacher's identity can be neither read nor judged: the cache has lost something.
#[test]
fn a_teacher_that_lost_its_identity_is_reported() {
    let (dir, tiny) = (tempfile::tempdir().unwrap(), Tiny::usual());
    tiny.build(dir.path());
    let record = layout::teacher_json(dir.path(), &tiny.teachers[0].id);
    fs::remove_file(&record).unwrap();
    let problems = check(dir.path()).problems;
    assert!(matches!(&problems[..], [Error::FileMissing { path }] if *path == record), "{problems:?}");
}
