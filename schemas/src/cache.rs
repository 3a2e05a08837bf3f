//! A cache as a whole: making it, extending it, opening it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::columns::samples_columns;
use crate::commit::check_place;
use crate::files::{exists, list, remove};
use crate::generation::read_generations;
use crate::samples_file::SamplesFile;
use crate::{
    CacheIdentity, Error, Reject, Result, SampleRow, SamplesCommit, SamplesPart, TeacherCommit, TeacherId,
    TeacherIdentity, TeacherPart, atomic, json, layout, reject,
};

/// Makes the cache's folder and writes `cache.json`; where there is one already, checks that it says the same. Any number of
/// builders may do so at once.
///
/// # Errors
/// [`Error::IdentityChanged`] names the fields in which an existing cache differs, [`Error::IdentityValue`] a value that
/// no cache can have.
pub fn create_cache(dir: &Path, identity: &CacheIdentity) -> Result<()> {
    let path = layout::cache_json(dir);
    identity.validate(&path)?;
    if check_cache(dir, identity)? || json::write_new(&path, identity)? {
        return Ok(());
    }
    // Another builder was quicker.
    check_cache(dir, identity).map(|_| ())
}

/// Writes the teacher's `teacher.json`; where there is one already, checks that it says the same, `source` apart. One that says
/// otherwise and has not a single committed part is what a failed attempt left, and is replaced.
///
/// # Errors
/// As [`create_cache`].
pub fn add_teacher(dir: &Path, teacher: &TeacherIdentity) -> Result<()> {
    let path = layout::teacher_json(dir, &teacher.id);
    teacher.validate(&path)?;
    if check_teacher(dir, teacher)? || json::write_new(&path, teacher)? {
        return Ok(());
    }
    // Another builder was quicker, or an attempt without parts is in the way.
    if !check_teacher(dir, teacher)? {
        json::write(&path, teacher)?;
    }
    Ok(())
}

/// What [`create_cache`] would refuse, without writing. True if the cache exists, false if it would be made.
pub fn check_cache(dir: &Path, identity: &CacheIdentity) -> Result<bool> {
    let path = layout::cache_json(dir);
    identity.validate(&path)?;
    match json::read::<CacheIdentity>(&path)? {
        Some(cached) => cached.check_same(&path, identity).map(|()| true),
        None => Ok(false),
    }
}

/// What [`add_teacher`] would refuse, without writing. True if the teacher exists, false if it would be added or replaced.
pub fn check_teacher(dir: &Path, teacher: &TeacherIdentity) -> Result<bool> {
    let path = layout::teacher_json(dir, &teacher.id);
    teacher.validate(&path)?;
    let Some(cached) = json::read::<TeacherIdentity>(&path)? else {
        return Ok(false);
    };
    match cached.check_same(&path, teacher) {
        Ok(()) => Ok(true),
        Err(_) if !has_committed_part(&path)? => Ok(false),
        Err(changed) => Err(changed),
    }
}

/// Whether any part of a cache's samples or of a teacher is declared complete, readable or not. Without one, the identity records bind
/// nothing: they are what an interrupted build left that had not finished a part.
///
/// # Errors
/// [`Error::NotACache`] if there is no `cache.json`.
pub fn has_parts(dir: &Path) -> Result<bool> {
    let path = layout::cache_json(dir);
    if !exists(&path)? {
        return Err(Error::NotACache { path: dir.to_path_buf() });
    }
    if has_committed_part(&layout::samples_commit(dir, 0))? {
        return Ok(true);
    }
    for id in teacher_folders(dir)? {
        if has_committed_part(&layout::teacher_json(dir, &id))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a folder holds committed samples, with or without its `cache.json`.
pub fn holds_parts(dir: &Path) -> Result<bool> {
    has_committed_part(&layout::samples_commit(dir, 0))
}

/// The same of one teacher alone.
pub fn teacher_has_parts(dir: &Path, id: &TeacherId) -> Result<bool> {
    has_committed_part(&layout::teacher_json(dir, id))
}

/// Makes a cache without a part ([`has_parts`]) one of another identity: its teachers' records and files that no commit record declares are
/// removed, and `cache.json` is replaced. Only for a builder that has the cache to itself.
///
/// # Errors
/// [`Error::IdentityValue`] as [`create_cache`]; [`Error::AlreadyExists`] if there is a part.
pub fn start_over(dir: &Path, identity: &CacheIdentity) -> Result<()> {
    let path = layout::cache_json(dir);
    identity.validate(&path)?;
    if has_parts(dir)? {
        return Err(Error::AlreadyExists { path: dir.to_path_buf() });
    }
    let mut folders: Vec<PathBuf> = vec![dir.join("samples"), dir.join("rejects")];
    for id in teacher_folders(dir)? {
        let folder = layout::teachers_dir(dir).join(id.as_str());
        remove(&layout::teacher_json(dir, &id))?;
        folders.push(folder);
    }
    for folder in &folders {
        // Complete files that no commit record declares: of a part that was being published.
        for entry in list(folder)? {
            let of_part = |suffix| layout::part_number(&entry.name, suffix).is_some();
            if of_part(".parquet") || of_part(".jsonl") {
                remove(&entry.path)?;
            }
        }
        // Only if nothing else is in it; a bucket has no folders.
        let _ = std::fs::remove_dir(folder);
    }
    // What was saved for the parts of the other identity.
    let _ = storage::remove_tree(&layout::work_dir(dir));
    json::write(&path, identity)
}

/// Whether a part is declared complete in the folder that this file lies in, readable or not.
fn has_committed_part(beside: &Path) -> Result<bool> {
    Ok(!commits_in(beside)?.is_empty())
}

/// The parts that are declared complete in the folder that this file lies in, readable or not.
pub(crate) fn commits_in(beside: &Path) -> Result<BTreeSet<u32>> {
    let folder = beside.parent().unwrap_or(beside);
    let names = list(folder)?.into_iter().map(|entry| entry.name);
    Ok(names.filter_map(|name| layout::part_number(&name, ".commit.json")).collect())
}

/// The parts whose samples and features of all `teachers` are declared complete, by the names of their records alone: of a cache that others write to, a
/// quick look.
///
/// # Errors
/// I/O.
pub fn committed_parts(dir: &Path, teachers: &BTreeSet<TeacherId>) -> Result<BTreeSet<u32>> {
    let mut all = commits_in(&layout::samples_commit(dir, 0))?;
    for id in teachers {
        let of_teacher = commits_in(&layout::teacher_json(dir, id))?;
        all.retain(|part| of_teacher.contains(part));
    }
    Ok(all)
}

/// Removes what killed builders left of a part: temporary files of its samples, rejects and teachers. Files of living builders
/// are kept. Returns how many were removed.
pub fn remove_stale(dir: &Path, part: u32) -> Result<usize> {
    let mut targets = vec![
        layout::cache_json(dir),
        layout::samples_file(dir, part),
        layout::samples_commit(dir, part),
        layout::rejects_file(dir, part),
    ];
    for id in teacher_folders(dir)? {
        targets.push(layout::teacher_json(dir, &id));
        targets.push(layout::teacher_file(dir, &id, part));
        targets.push(layout::teacher_commit(dir, &id, part));
    }
    targets.iter().try_fold(0, |removed, target| Ok(removed + atomic::remove_stale(target)?))
}

/// Removes what killed builders left anywhere in a cache. Files of living builders are kept, as far as the file system has locks. Returns how many were
/// removed.
pub fn remove_all_stale(dir: &Path) -> Result<usize> {
    let mut folders = vec![
        dir.to_path_buf(),
        dir.join("samples"),
        dir.join("rejects"),
        layout::generations_dir(dir),
        layout::work_dir(dir),
    ];
    folders.extend(teacher_folders(dir)?.into_iter().map(|id| layout::teachers_dir(dir).join(id.as_str())));
    folders.iter().try_fold(0, |removed, folder| Ok(removed + atomic::remove_all_stale(folder)?))
}

/// An opened cache. Holds the identities; parts are read when asked for.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
    identity: CacheIdentity,
    teachers: BTreeMap<TeacherId, TeacherIdentity>,
}

/// Which records of a part are committed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PartState {
    /// The samples' commit record, if there is one.
    pub samples: Option<SamplesCommit>,
    /// The commit records of the teachers that have one.
    pub teachers: BTreeMap<TeacherId, TeacherCommit>,
}

impl Cache {
    /// Reads `cache.json` and every `teacher.json`.
    pub fn open(dir: &Path) -> Result<Cache> {
        let (cache, unreadable) = Cache::open_readable(dir)?;
        unreadable.into_values().next().map_or(Ok(cache), Err)
    }

    /// Reads `cache.json` and every `teacher.json` that can be read; the cache has these teachers, and beside it are the others, each
    /// with what is wrong with its record. For a look at what is left of a damaged cache.
    ///
    /// # Errors
    /// What is wrong with `cache.json` or with the folder itself.
    pub fn open_readable(dir: &Path) -> Result<(Cache, BTreeMap<TeacherId, Error>)> {
        let identity = read_identity(dir)?;
        let (mut teachers, mut unreadable) = (BTreeMap::new(), BTreeMap::new());
        for id in teacher_folders(dir)? {
            match read_teacher(dir, &id) {
                Ok(Some(teacher)) => {
                    teachers.insert(id, teacher);
                }
                // A folder without its record is one that is being added now.
                Ok(None) => {}
                Err(error) => {
                    unreadable.insert(id, error);
                }
            }
        }
        let cache = Cache { dir: dir.to_path_buf(), identity, teachers };
        Ok((cache, unreadable))
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The identity.
    pub fn identity(&self) -> &CacheIdentity {
        &self.identity
    }

    /// The teachers, by name.
    pub fn teachers(&self) -> &BTreeMap<TeacherId, TeacherIdentity> {
        &self.teachers
    }

    /// A teacher.
    ///
    /// # Errors
    /// [`Error::NoSuchTeacher`] says which there are.
    pub fn teacher(&self, id: &TeacherId) -> Result<&TeacherIdentity> {
        self.teachers.get(id).ok_or_else(|| Error::NoSuchTeacher {
            path: self.dir.clone(),
            id: id.clone(),
            known: self.teachers.keys().cloned().collect(),
        })
    }

    /// The commit records of a part: what of it is complete. A record that is there but damaged is an error.
    pub fn part_state(&self, part: u32) -> Result<PartState> {
        let part = self.check_part(part)?;
        let samples = SamplesCommit::read(&self.dir, part, &self.identity)?;
        let mut teachers = BTreeMap::new();
        for (id, teacher) in &self.teachers {
            if let Some(commit) = TeacherCommit::read(&self.dir, part, &self.identity, teacher)? {
                teachers.insert(id.clone(), commit);
            }
        }
        Ok(PartState { samples, teachers })
    }

    /// [`Self::part_state`] of every part; where each takes a round trip, of many at once.
    ///
    /// # Errors
    /// The first that [`Self::part_state`] gives.
    pub fn part_states(&self) -> Result<Vec<PartState>> {
        let parts: Vec<u32> = (0..self.identity.parts()).collect();
        storage::in_parallel(&parts, |&part| self.part_state(part), storage::is_url(&self.dir)).into_iter().collect()
    }

    /// The files that a commit record declares and that are not there, or not of the declared size: what a copy that broke off, or a
    /// tidying hand, leaves. Their contents are not read; [`verify`](crate::verify()) does that.
    ///
    /// # Errors
    /// What prevents looking: a damaged commit record, I/O.
    pub fn lost_files(&self) -> Result<Vec<Error>> {
        let mut declared: Vec<(PathBuf, u64)> = Vec::new();
        for (part, state) in (0..).zip(self.part_states()?) {
            if let Some(samples) = state.samples {
                declared.push((layout::samples_file(&self.dir, part), samples.file.bytes));
                declared.push((layout::rejects_file(&self.dir, part), samples.rejects.bytes));
            }
            for (id, commit) in state.teachers {
                declared.push((layout::teacher_file(&self.dir, &id, part), commit.file.bytes));
            }
        }
        let check = |(path, expected): &(PathBuf, u64)| match storage::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Some(Error::FileMissing { path: path.clone() })),
            Err(e) => Err(Error::io("read", path, e)),
            Ok(found) if found.len != *expected => {
                Ok(Some(Error::FileSize { path: path.clone(), found: found.len, expected: *expected }))
            }
            Ok(_) => Ok(None),
        };
        let checked = storage::in_parallel(&declared, check, storage::is_url(&self.dir));
        checked.into_iter().filter_map(Result::transpose).collect()
    }

    /// The rows of a samples file, each checked.
    ///
    /// # Errors
    /// The first damaged row; [`Error::NotBuilt`] if the part is not committed.
    pub fn samples(&self, part: u32) -> Result<Vec<SampleRow>> {
        Ok(self.samples_part(part)?.rows().to_vec())
    }

    /// A samples file with its rows, each checked, open for its packed images.
    ///
    /// # Errors
    /// As [`Self::samples`].
    pub fn samples_part(&self, part: u32) -> Result<SamplesPart> {
        let commit = self.samples_commit(part)?;
        let file = SamplesFile::open(&self.dir, part, &self.identity, &commit)?;
        let samples = file.read(part, &self.identity)?;
        match samples.problems.into_iter().next() {
            Some(problem) => Err(problem),
            None => Ok(SamplesPart::new(file, samples.rows.into_iter().flatten().collect())),
        }
    }

    /// The lines of a rejects file, each checked.
    ///
    /// # Errors
    /// The first damaged line; [`Error::NotBuilt`] if the part is not committed.
    pub fn rejects(&self, part: u32) -> Result<Vec<Reject>> {
        let commit = self.samples_commit(part)?;
        let (rejects, problems) = reject::read(&layout::rejects_file(&self.dir, part), &commit.rejects)?;
        problems.into_iter().next().map_or(Ok(rejects), Err)
    }

    /// Compressed bytes of each column of a samples file.
    pub fn samples_column_bytes(&self, part: u32) -> Result<BTreeMap<String, u64>> {
        let commit = self.samples_commit(part)?;
        let samples = SamplesFile::open(&self.dir, part, &self.identity, &commit)?;
        Ok(samples.file.column_bytes(&samples_columns()))
    }

    /// Opens a teacher's features of a part.
    ///
    /// # Errors
    /// [`Error::NotBuilt`] if they are not committed; what is wrong with the file as a whole. A damaged row shows when it is read.
    pub fn teacher_part(&self, id: &TeacherId, part: u32) -> Result<TeacherPart> {
        let teacher = self.teacher(id)?;
        let part = self.check_part(part)?;
        let commit = TeacherCommit::read(&self.dir, part, &self.identity, teacher)?;
        let commit = commit.ok_or_else(|| Error::NotBuilt { path: layout::teacher_commit(&self.dir, id, part) })?;
        TeacherPart::open(&self.dir, part, &self.identity, teacher, commit)
    }

    fn samples_commit(&self, part: u32) -> Result<SamplesCommit> {
        let part = self.check_part(part)?;
        SamplesCommit::read(&self.dir, part, &self.identity)?
            .ok_or_else(|| Error::NotBuilt { path: layout::samples_commit(&self.dir, part) })
    }

    fn check_part(&self, part: u32) -> Result<u32> {
        let parts = self.identity.parts();
        if part < parts { Ok(part) } else { Err(Error::NoSuchPart { path: self.dir.clone(), part, parts }) }
    }
}

/// Reads and checks `cache.json` and the generations that follow it.
pub(crate) fn read_identity(dir: &Path) -> Result<CacheIdentity> {
    let mut identity = read_first_generation(dir)?;
    read_generations(dir, &mut identity)?;
    Ok(identity)
}

/// Reads and checks `cache.json` alone.
pub(crate) fn read_first_generation(dir: &Path) -> Result<CacheIdentity> {
    let path = layout::cache_json(dir);
    let identity = json::read::<CacheIdentity>(&path)?.ok_or_else(|| Error::NotACache { path: dir.to_path_buf() })?;
    identity.validate(&path)?;
    Ok(identity)
}

/// Reads and checks a `teacher.json`; `None` if there is none.
///
/// # Errors
/// I/O, and what is wrong with the record.
pub fn read_teacher(dir: &Path, id: &TeacherId) -> Result<Option<TeacherIdentity>> {
    let path = layout::teacher_json(dir, id);
    let Some(teacher) = json::read::<TeacherIdentity>(&path)? else {
        return Ok(None);
    };
    check_place(&path, "id", &teacher.id, id)?;
    teacher.validate(&path)?;
    Ok(Some(teacher))
}

/// The folders of `teachers/` that can be a teacher's, sorted.
pub(crate) fn teacher_folders(dir: &Path) -> Result<BTreeSet<TeacherId>> {
    // Links to folders count as folders. A plain file cannot be a teacher, and `verify` mentions it in a note.
    let folders = list(&layout::teachers_dir(dir))?.into_iter().filter(|entry| entry.is_dir);
    Ok(folders.filter_map(|entry| TeacherId::new(&entry.name).ok()).collect())
}
