//! Checking a whole cache: every record, hash, checksum, value, join and count.
//!
//! Rows are read by the same code as in training, so damage is told in the same words. Parts are checked on all processors; the
//! report does not depend on how many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use storage::Entry;

use crate::cache::{commits_in, read_identity, read_teacher, teacher_folders};
use crate::files::{exists, list};
use crate::reader::AHEAD;
use crate::rules::check_coverage;
use crate::samples_file::SamplesFile;
use crate::{
    Batches, CacheIdentity, ChannelSums, ContentHash, Error, Result, SampleRow, SamplesCommit, TeacherCommit,
    TeacherId, TeacherIdentity, TeacherPart, TeacherRow, atomic, layout, reject,
};

/// How far a verification has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of part files checked so far.
    pub bytes: u64,
    /// Bytes to check in all, as the commit records declare them.
    pub total_bytes: u64,
}

/// Equal content hashes in different parts. A data set may hold copies, so they are not wrong; but they are also what a build leaves
/// that went on after the images of its source had changed places. Each row has the place, the key and the content hash of its image,
/// so the source tells which of the two it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeats {
    /// Different images of which there are copies in more than one part.
    pub images: u64,
    /// Samples that hold them.
    pub samples: u64,
    /// Two samples of different parts with the same image: those of the first image, by `sample_id`, that is repeated.
    pub example: (u64, u64),
}

/// What a verification found.
#[derive(Debug, Default)]
pub struct Report {
    /// Everything wrong, in a fixed order; empty for a sound cache.
    pub problems: Vec<Error>,
    /// Commit records that are not there (yet): the cache is incomplete, which is not wrong.
    pub missing: Vec<PathBuf>,
    /// What was seen and does not matter: temporary files, files without commit record, files the format does not know.
    pub notes: Vec<String>,
    /// Images that are in more than one part.
    pub repeats: Option<Repeats>,
    /// Parquet files checked.
    pub files: u64,
    /// Rows of these found sound.
    pub rows: u64,
    /// Bytes of these.
    pub bytes: u64,
}

impl Report {
    fn add(&mut self, other: Report) {
        self.problems.extend(other.problems);
        self.missing.extend(other.missing);
        self.notes.extend(other.notes);
        self.files += other.files;
        self.rows += other.rows;
        self.bytes += other.bytes;
    }

    /// Keeps what is wrong with the data and passes on what prevents looking at it.
    fn keep<T>(&mut self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_io() => Err(error),
            Err(problem) => {
                self.problems.push(problem);
                Ok(None)
            }
        }
    }
}

/// What of a cache is checked.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Only these parts; all if there are none.
    pub parts: BTreeSet<u32>,
    /// Only the features of these teachers, beside the samples; those of all if there are none.
    pub teachers: BTreeSet<TeacherId>,
    /// Only records, sizes and footers, and no row: seconds for any cache, and blind for damage inside of files.
    pub quick: bool,
}

/// Checks everything in a cache. `progress` is called now and then from the calling thread.
///
/// # Errors
/// Only what prevents looking at all: the folder is not a cache, or the operating system refuses. Everything wrong with the data is
/// in the report.
pub fn verify(dir: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    verify_within(dir, &Scope::default(), progress)
}

/// Checks what `scope` says of a cache, and its identity records always.
///
/// # Errors
/// As [`verify()`]; also [`Error::NoSuchPart`] and [`Error::NoSuchTeacher`] for what the cache does not have.
pub fn verify_within(dir: &Path, scope: &Scope, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    let mut report = Report::default();
    if !exists(&layout::cache_json(dir))? {
        return Err(Error::NotACache { path: dir.to_path_buf() });
    }
    // Without its identity, nothing in a cache can be judged.
    let Some(identity) = report.keep(read_identity(dir))? else {
        return Ok(report);
    };
    let mut teachers = BTreeMap::new();
    for id in teacher_folders(dir)? {
        match report.keep(read_teacher(dir, &id))? {
            Some(Some(teacher)) => drop(teachers.insert(id, teacher)),
            // A builder writes the identity before anything else, so parts without it have lost it.
            Some(None) if holds_parts(dir, &id)? => {
                report.problems.push(Error::FileMissing { path: layout::teacher_json(dir, &id) });
            }
            Some(None) => report.notes.push(format!(
                "{} is not there: the teacher was never added",
                layout::teacher_json(dir, &id).display()
            )),
            None => {}
        }
    }
    let all_parts = identity.parts();
    if let Some(&part) = scope.parts.last().filter(|part| **part >= all_parts) {
        return Err(Error::NoSuchPart { path: dir.to_path_buf(), part, parts: all_parts });
    }
    if let Some(id) = scope.teachers.iter().find(|id| !teachers.contains_key(*id)) {
        let known = teachers.into_keys().collect();
        return Err(Error::NoSuchTeacher { path: dir.to_path_buf(), id: id.clone(), known });
    }
    if !scope.teachers.is_empty() {
        teachers.retain(|id, _| scope.teachers.contains(id));
    }
    // Parts beyond the last generation have lost its record.
    if commits_in(&layout::samples_commit(dir, 0))?.last().is_some_and(|&part| part >= all_parts) {
        let next = identity.generations.len() as u32 + 1;
        report.problems.push(Error::FileMissing { path: layout::generation_json(dir, next) });
    }
    let parts: Vec<u32> = match scope.parts.is_empty() {
        true => (0..all_parts).collect(),
        false => scope.parts.iter().copied().collect(),
    };
    let verifier = Verifier { dir, identity, teachers, parts, quick: scope.quick, seen: AtomicU64::new(0) };
    let mut contents = Vec::new();
    for (part, of_part) in verifier.in_parallel(progress)? {
        report.add(part);
        contents.extend(of_part);
    }
    report.repeats = repeats(contents, &verifier.identity);
    report.notes.extend(verifier.strangers()?);
    Ok(report)
}

/// An image, and the sample that holds it.
type Content = (ContentHash, u64);

/// The images that more than one part holds.
fn repeats(mut contents: Vec<Content>, identity: &CacheIdentity) -> Option<Repeats> {
    contents.sort_unstable();
    let part = |sample_id: u64| identity.part_of(sample_id);
    let mut found: Option<Repeats> = None;
    for copies in contents.chunk_by(|a, b| a.0 == b.0) {
        let (_, first) = copies[0];
        // In order of their samples, so those of the first part come first.
        let other = copies.iter().find(|(_, other)| part(*other) != part(first));
        let Some(&(_, other)) = other else { continue };
        let repeats = found.get_or_insert(Repeats { images: 0, samples: 0, example: (first, other) });
        repeats.images += 1;
        repeats.samples += copies.len() as u64;
        repeats.example = repeats.example.min((first, other));
    }
    found
}

struct Verifier<'a> {
    dir: &'a Path,
    identity: CacheIdentity,
    teachers: BTreeMap<TeacherId, TeacherIdentity>,
    /// The parts to check, ascending.
    parts: Vec<u32>,
    quick: bool,
    seen: AtomicU64,
}

impl Verifier<'_> {
    /// Reports of all parts, in order.
    fn in_parallel(&self, progress: &mut dyn FnMut(Progress)) -> Result<Vec<(Report, Vec<Content>)>> {
        let parts = &self.parts[..];
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(parts.len());
        let total_bytes = parts.iter().map(|&part| self.declared_bytes(part)).sum();
        let next = AtomicUsize::new(0);
        let (send, receive) = mpsc::channel();
        let mut reports = BTreeMap::new();
        let mut failure = None;
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let (send, next) = (send.clone(), &next);
                scope.spawn(move || {
                    loop {
                        let Some(&part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) else {
                            return;
                        };
                        if send.send((part, self.part(part))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(send);
            loop {
                let received = receive.recv_timeout(Duration::from_millis(100));
                progress(Progress { bytes: self.seen.load(Ordering::Relaxed), total_bytes });
                match received {
                    Ok((part, Ok(report))) => drop(reports.insert(part, report)),
                    Ok((_, Err(error))) => {
                        // The other threads stop at their next part.
                        next.store(parts.len(), Ordering::Relaxed);
                        failure.get_or_insert(error);
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        failure.map_or(Ok(reports.into_values().collect()), Err)
    }

    /// Bytes that [`Self::part`] will count in `seen`, if nothing is wrong with the part.
    fn declared_bytes(&self, part: u32) -> u64 {
        let samples =
            SamplesCommit::read(self.dir, part, &self.identity).ok().flatten().map_or(0, |commit| commit.file.bytes);
        let features = |teacher| TeacherCommit::read(self.dir, part, &self.identity, teacher).ok().flatten();
        samples + self.teachers.values().filter_map(features).map(|commit| commit.file.bytes).sum::<u64>()
    }

    fn part(&self, part: u32) -> Result<(Report, Vec<Content>)> {
        let mut report = Report::default();
        let samples = self.samples(part, &mut report)?;
        let rows = samples.iter().flatten().flatten();
        let contents = rows.filter(|row| row.view.index == 0).map(|row| (row.content_hash, row.sample_id)).collect();
        for teacher in self.teachers.values() {
            self.features(part, teacher, samples.as_deref(), &mut report)?;
        }
        Ok((report, contents))
    }

    /// Checks the samples and rejects of a part. Gives the rows, `None` where damaged, if the file can be read at all.
    fn samples(&self, part: u32, report: &mut Report) -> Result<Option<Vec<Option<SampleRow>>>> {
        let commit_path = layout::samples_commit(self.dir, part);
        let file_path = layout::samples_file(self.dir, part);
        let commit = report.keep(SamplesCommit::read(self.dir, part, &self.identity))?;
        let Some(commit) =
            self.committed(commit, commit_path, &[file_path, layout::rejects_file(self.dir, part)], report)
        else {
            return Ok(None);
        };
        let mut sound = true;
        let mut rejected = Vec::new();
        match report.keep(reject::read(&layout::rejects_file(self.dir, part), &commit.rejects))? {
            Some((rejects, problems)) => {
                sound &= problems.is_empty();
                report.problems.extend(problems);
                rejected.extend(rejects.iter().map(|reject| reject.sample_id));
            }
            None => sound = false,
        }
        let opened = SamplesFile::open(self.dir, part, &self.identity, &commit);
        let Some(samples) = report.keep(opened)? else {
            return Ok(None);
        };
        report.files += 1;
        if self.quick {
            return Ok(None);
        }
        report.bytes += commit.file.bytes;
        let read = samples.read(part, &self.identity)?;
        report.rows += read.rows.iter().flatten().count() as u64;
        let mut images = Report::default();
        for (i, row) in read.rows.iter().enumerate() {
            if let Some(row) = row {
                images.keep(samples.image(i, row))?;
            }
        }
        if read.problems.is_empty() && images.problems.is_empty() {
            report.keep(samples.file.check_hash(&commit.file))?;
            if sound {
                let counts = count_rows(read.rows.iter().flatten());
                let range = self.identity.range(part);
                report.keep(check_coverage(
                    &samples.file.path,
                    range,
                    self.identity.views.views,
                    &counts,
                    &rejected,
                ))?;
            }
        }
        report.problems.extend(read.problems);
        report.add(images);
        self.seen.fetch_add(commit.file.bytes, Ordering::Relaxed);
        Ok(Some(read.rows))
    }

    /// Checks a teacher's features of a part, and that they belong to the samples.
    fn features(
        &self,
        part: u32,
        teacher: &TeacherIdentity,
        samples: Option<&[Option<SampleRow>]>,
        report: &mut Report,
    ) -> Result<()> {
        let commit_path = layout::teacher_commit(self.dir, &teacher.id, part);
        let commit = report.keep(TeacherCommit::read(self.dir, part, &self.identity, teacher))?;
        let file_path = layout::teacher_file(self.dir, &teacher.id, part);
        let Some(commit) = self.committed(commit, commit_path.clone(), &[file_path], report) else {
            return Ok(());
        };
        let stamp = commit.file.clone();
        let opened = TeacherPart::open(self.dir, part, &self.identity, teacher, commit);
        let Some(features) = report.keep(opened)? else {
            return Ok(());
        };
        report.files += 1;
        if self.quick {
            return Ok(());
        }
        report.bytes += stamp.bytes;
        let mut all_sound = true;
        let mut sums = ChannelSums::new(teacher.width as usize);
        let mut rules = features.rules(&self.identity);
        let (mut row, mut decoded) = (TeacherRow::default(), Vec::new());
        (0..AHEAD).for_each(|row| features.prefetch_row(row));
        for i in 0..features.rows() {
            features.prefetch_row(i + AHEAD);
            rules.skip_to(i);
            let sample = samples.and_then(|samples| samples.get(i)).and_then(Option::as_ref);
            let mut check = || {
                features.read_row_into(i, &mut row)?;
                sample.map_or(Ok(()), |sample| features.check_join(i, &row.key, &sample.row_key()))?;
                rules.check_features(&row, teacher)?;
                teacher.decode_tokens(&row.tokens, &mut decoded)?;
                match teacher.batches {
                    Batches::Rows => sums.add_row(&decoded),
                    Batches::Samples => {
                        let mut of_row = ChannelSums::new(teacher.width as usize);
                        of_row.add_row(&decoded);
                        sums.add(&of_row);
                    }
                }
                Ok(())
            };
            match report.keep(check())? {
                Some(()) => report.rows += 1,
                None => all_sound = false,
            }
            self.seen.fetch_add(stamp.bytes / features.rows() as u64, Ordering::Relaxed);
        }
        if let Some(samples) = samples.filter(|samples| samples.len() != features.rows()) {
            let (found, expected) = (features.rows() as u64, samples.len() as u64);
            report.problems.push(Error::JoinCount { path: features.path().to_path_buf(), found, expected });
            all_sound = false;
        }
        if all_sound {
            report.keep(check_sums(&commit_path, &features.commit().channels, &sums))?;
            report.keep(features.file().check_hash(&stamp))?;
        }
        Ok(())
    }

    /// The commit record, if there is one; a note about files that lack theirs.
    fn committed<T>(
        &self,
        commit: Option<Option<T>>,
        path: PathBuf,
        declared: &[PathBuf],
        report: &mut Report,
    ) -> Option<T> {
        // The outer `None` is a damaged record, which is reported already.
        let commit = commit?;
        if commit.is_none() {
            let stray = declared.iter().filter(|path| exists(path).unwrap_or(false));
            report.notes.extend(stray.map(|path| {
                format!("{} has no commit record: an interrupted build left it and will replace it", path.display())
            }));
            report.missing.push(path);
        }
        commit
    }

    /// Notes about files that no record declares.
    fn strangers(&self) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        // Damaged ones and those without an identity are told of elsewhere.
        let teachers = teacher_folders(self.dir)?;
        let teachers: Vec<&str> = teachers.iter().map(TeacherId::as_str).collect();
        let mut folders = vec![
            (
                self.dir.to_path_buf(),
                &[][..],
                &["cache.json", "generations", "samples", "teachers", "rejects", "work"][..],
            ),
            (self.dir.join("samples"), &[".parquet", ".commit.json"][..], &[][..]),
            (self.dir.join("rejects"), &[".jsonl"], &[layout::SKIPPED]),
            (layout::teachers_dir(self.dir), &[], &teachers),
        ];
        for id in self.teachers.keys() {
            folders.push((
                layout::teachers_dir(self.dir).join(id.as_str()),
                &[".parquet", ".commit.json"],
                &["teacher.json"],
            ));
        }
        for (folder, suffixes, names) in folders {
            for Entry { name, path, .. } in list(&folder)? {
                let part = suffixes.iter().find_map(|suffix| layout::part_number(&name, suffix));
                if names.contains(&&*name) || part.is_some_and(|part| part < self.identity.parts()) {
                    continue;
                }
                notes.push(match atomic::target_name(&name) {
                    Some(_) => {
                        format!("{} is a temporary file of a build that is running or was killed", path.display())
                    }
                    None => format!("{} is not part of the format", path.display()),
                });
            }
        }
        notes.sort();
        Ok(notes)
    }
}

/// Whether a teacher's folder holds commit records.
fn holds_parts(dir: &Path, id: &TeacherId) -> Result<bool> {
    let folder = layout::teachers_dir(dir).join(id.as_str());
    Ok(list(&folder)?.iter().any(|entry| layout::part_number(&entry.name, ".commit.json").is_some()))
}

/// (sample, rows of it), in order.
fn count_rows<'a>(rows: impl Iterator<Item = &'a SampleRow>) -> Vec<(u64, u64)> {
    let mut counts: Vec<(u64, u64)> = Vec::new();
    for row in rows {
        match counts.last_mut() {
            Some((id, count)) if *id == row.sample_id => *count += 1,
            _ => counts.push((row.sample_id, 1)),
        }
    }
    counts
}

/// The sums are exact: the same additions in the same order.
fn check_sums(commit: &Path, stated: &ChannelSums, found: &ChannelSums) -> Result<()> {
    let fail = |field: String, stated: &dyn ToString, found: &dyn ToString| {
        Err(Error::ChannelSums {
            path: commit.to_path_buf(),
            field,
            found: stated.to_string(),
            expected: found.to_string(),
        })
    };
    if stated.count != found.count {
        return fail("channels.count".to_string(), &stated.count, &found.count);
    }
    for (name, stated, found) in [("sum", &stated.sum, &found.sum), ("sum_sq", &stated.sum_sq, &found.sum_sq)] {
        for (i, (stated, found)) in stated.iter().zip(found).enumerate() {
            if stated != found {
                return fail(format!("channels.{name}[{i}]"), stated, found);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
