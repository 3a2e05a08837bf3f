//! WebDataset shards: tar files in which the members of a sample have the same path up to the first dot of their name.
//!
//! As in WebDataset, the part of a member's name after the *last* dot makes it an image, and the part before the *first* dot of its last
//! component names its sample. A member with only one dot, `000.jpg`, is the sample's image. A sample without such a
//! member may have several images: `pair.left.jpg`, `pair.right.jpg` and `track 22.05.jpg` are all images, and their keys reach to
//! the last dot. Beside `000.jpg`, however, `000.seg.png` is skipped and reported, because masks and depth maps are stored like this. Two
//! images that differ only in the last extension, `000.jpg` and `000.png`, are ambiguous and refused. A pattern after `::` resolves
//! this: the images are the members that it matches and that are pictures by name or content.
//!
//! A label is read from a member `.cls`, `.class` or `.label` of the same name up to the last dot, else up to the first; `.txt` or `.json`
//! may follow. It is a whole number or, in all members, the name of a class.
//!
//! Archives that were joined are read to the end of the file, as by `tar --ignore-zeros`. Headers are read once, when opening; images
//! are read in place afterwards.

mod ends;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use glob::Pattern;
use storage::{Scan, Scanner};
use tar::{Archive, EntryType};

use self::ends::{BLOCK, Behind, compression, is_header, malformed, truncated};
use super::files::{ShardFiles, qualify};
use super::findings::{Findings, extension, is_image_extension, is_picture_extension, is_readable, picture_reason};
use super::labels::{Names, Text, is_like_a_label, list, read_text};
use super::{Listing, Sample, Store, check_length, file_name, io_error};
use crate::SourceError;
use crate::decode::{MAX_FILE_BYTES, SNIFF_BYTES};

/// Largest member with a label in bytes: more than any number or class name has.
const MAX_LABEL_BYTES: u64 = 1024;

/// Largest member that could be a label in bytes.
const MAX_WORD_BYTES: u64 = 64;

/// Fields of members with labels, in order of preference.
const LABEL_FIELDS: [&str; 3] = ["cls", "class", "label"];

pub(super) struct Shards {
    files: ShardFiles,
    /// Position of the image of every sample of the source.
    members: Vec<Member>,
}

struct Member {
    shard: u32,
    /// Position of the first byte.
    offset: u64,
    bytes: u64,
}

impl Shards {
    pub(super) fn read(&self, index: usize, key: &str) -> Result<Vec<u8>, SourceError> {
        let member = &self.members[index];
        let path = self.files.path(member.shard as usize);
        check_length(path, || key.to_owned(), member.bytes)?;
        let mut data = vec![0; member.bytes as usize];
        self.files.get(member.shard as usize)?.read_exact_at(&mut data, member.offset).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => truncated(path, format!("`{key}` ends past the end of the file")),
            _ => io_error(path)(e),
        })?;
        Ok(data)
    }

    pub(super) fn is_remote(&self) -> bool {
        self.files.is_remote()
    }

    /// Begins to fetch an image. A shard that cannot be opened shows when the image is read.
    pub(super) fn prefetch(&self, index: usize) {
        let member = &self.members[index];
        if self.is_remote()
            && member.bytes <= MAX_FILE_BYTES
            && let Ok(file) = self.files.get(member.shard as usize)
        {
            file.prefetch([(member.offset, member.bytes as usize)]);
        }
    }

    pub(super) fn forget(&self, index: usize) -> bool {
        let member = &self.members[index];
        let file = if self.is_remote() { self.files.get(member.shard as usize).ok() } else { None };
        file.is_some_and(|file| file.forget(member.offset, member.bytes))
    }

    pub(super) fn files(&self) -> usize {
        self.files.len()
    }

    pub(super) fn place(&self, index: usize) -> String {
        let member = &self.members[index];
        format!("{} at byte {}", self.files.path(member.shard as usize).display(), member.offset)
    }
}

pub(super) fn open(
    paths: Vec<PathBuf>,
    pattern: Option<&Pattern>,
    field: Option<&str>,
) -> Result<Listing, SourceError> {
    let mut shards = Opening { pattern, field, ..Opening::default() };
    let (mut members, mut ranges) = (Vec::new(), Vec::new());
    for ((shard, path), scan) in paths.iter().enumerate().zip(Scanner::new(&paths)) {
        let shard = u32::try_from(shard).expect("fewer than 2^32 shards");
        let first = shards.samples.len();
        for (offset, bytes) in shards.shard(path, scan.map_err(io_error(path))?)? {
            members.push(Member { shard, offset, bytes });
        }
        ranges.push(first..shards.samples.len());
    }
    shards.refuse_missing_field(&paths)?;
    shards.report_labels();
    let Opening { mut samples, names, numbered, named, findings, .. } = shards;
    if let (Some(number), Some(name)) = (numbered, named) {
        return Err(SourceError::MixedLabels { number, name });
    }
    let (label_names, places) = names.sorted();
    if !places.is_empty() {
        for label in samples.iter_mut().filter_map(|sample| sample.label.as_mut()) {
            *label = places[*label as usize];
        }
    }
    qualify(&paths, &ranges, &mut samples)?;
    Ok(Listing { samples, label_names, findings, store: Store::Tar(Shards { files: ShardFiles::new(paths), members }) })
}

/// Contents of the shards read so far.
#[derive(Default)]
struct Opening<'a> {
    /// The pattern of images, instead of their extensions.
    pattern: Option<&'a Pattern>,
    /// The field that labels are read from, instead of the usual ones.
    field: Option<&'a str>,
    /// Fields that labels were read from, and fields that could hold labels, with the number of images or members of each.
    used: BTreeMap<String, u64>,
    passed: BTreeMap<String, u64>,
    /// Fields without a label's name that hold a number or a word, as labels do.
    worded: BTreeMap<String, u64>,
    /// The first member with a label that belongs to no image, and how many there are.
    orphan: Option<(String, u64)>,
    /// Labels that are names are indices into `names` here.
    samples: Vec<Sample>,
    names: Names,
    /// The first member whose label is a number, and the first whose is a name.
    numbered: Option<String>,
    named: Option<String>,
    findings: Findings,
}

/// The members of one shard.
#[derive(Default)]
struct Index {
    /// Images in order of position.
    images: Vec<Image>,
    /// Labels by the member's name up to the label's field; the lowest rank counts.
    labels: BTreeMap<String, Label>,
}

struct Image {
    /// The member's path, without `./` in front.
    name: String,
    offset: u64,
    bytes: u64,
}

struct Label {
    rank: usize,
    member: String,
    told: Told,
}

/// The label in a member. Only the names of labels that are used become classes.
enum Told {
    /// 0 or above.
    Number(i32),
    Name(String),
}

impl Image {
    /// The name up to the last dot: the key of the image.
    fn stem(&self) -> &str {
        match extension(&self.name) {
            Some(extension) => &self.name[..self.name.len() - extension.len() - 1],
            None => &self.name,
        }
    }

    /// The name up to the first dot of its last component: the key of WebDataset's sample.
    fn sample(&self) -> &str {
        let base = self.name.rfind('/').map_or(0, |slash| slash + 1);
        match self.name[base..].find('.') {
            Some(dot) => &self.name[..base + dot],
            None => &self.name,
        }
    }
}

impl Opening<'_> {
    /// Appends a shard's samples; returns the position and length of each.
    fn shard(&mut self, path: &Path, file: Scan) -> Result<Vec<(u64, u64)>, SourceError> {
        let shard = file_name(path)?;
        let mut index = Index::default();
        self.members(path, shard, &file, &mut index)?;
        let Index { images, labels } = index;

        let in_key = match self.pattern {
            Some(_) => keys_of_selected(&images),
            None => self.keys_of_samples(path, shard, &images)?,
        };
        let (mut places, mut taken) = (Vec::new(), HashSet::new());
        for (image, key) in images.iter().zip(in_key) {
            let Some(key) = key else { continue };
            let label =
                [&*image.name, image.stem(), image.sample()].into_iter().find_map(|stem| labels.get_key_value(stem));
            let label = match label {
                None => None,
                Some((stem, label)) => {
                    taken.insert(stem.as_str());
                    *self.used.entry(label.member[stem.len()..].to_owned()).or_default() += 1;
                    Some(self.take(path, shard, label)?)
                }
            };
            self.samples.push(Sample { key: format!("{shard}/{key}").into_boxed_str(), label, bytes: image.bytes });
            places.push((image.offset, image.bytes));
        }
        for (stem, label) in &labels {
            if !taken.contains(stem.as_str()) {
                let first = || (format!("{shard}/{}", label.member), 0);
                self.orphan.get_or_insert_with(first).1 += 1;
            }
        }
        Ok(places)
    }

    /// The label of an image: a number, or the index of a name.
    fn take(&mut self, path: &Path, shard: &str, label: &Label) -> Result<i32, SourceError> {
        let (first, label_number) = match &label.told {
            Told::Number(number) => (&mut self.numbered, *number),
            Told::Name(name) => match self.names.add(name) {
                Some(index) => (&mut self.named, index as i32),
                None => {
                    return Err(SourceError::BadLabel {
                        path: path.to_path_buf(),
                        member: label.member.clone(),
                        found: name.chars().take(60).collect(),
                    });
                }
            },
        };
        first.get_or_insert_with(|| format!("{shard}/{}", label.member));
        Ok(label_number)
    }

    /// Refuses a requested field that no image has: it is probably misspelled.
    fn refuse_missing_field(&self, paths: &[PathBuf]) -> Result<(), SourceError> {
        let (Some(field), true, Some(path)) = (self.field, self.used.is_empty(), paths.first()) else {
            return Ok(());
        };
        let others: Vec<_> = self.passed.keys().chain(self.worded.keys()).collect();
        Err(SourceError::NoLabelMember {
            path: path.clone(),
            field: field.trim_start_matches('.').to_owned(),
            instead: match others.is_empty() {
                true => "none".to_owned(),
                false => list(others),
            },
        })
    }

    /// Notes where labels are read from, if another member could have been meant.
    fn report_labels(&mut self) {
        match &self.orphan {
            None => {}
            Some((only, 1)) => self.findings.note(format!(
                "the label in `{only}` belongs to no image of the data set and is not read"
            )),
            Some((first, count)) => self.findings.note(format!(
                "{count} members with labels belong to no image of the data set and are not read; the first is `{first}`"
            )),
        }
        if self.field.is_some() {
            return;
        }
        if self.used.is_empty() {
            for (field, count) in std::mem::take(&mut self.worded) {
                *self.passed.entry(field).or_default() += count;
            }
        }
        self.passed.retain(|field, _| !self.used.contains_key(field) || self.used.len() > 1);
        let Some(first) = self.passed.keys().next() else {
            return;
        };
        let choice = first.trim_start_matches('.');
        let passed = list(self.passed.keys());
        self.findings.note(match self.used.is_empty() {
            true => format!(
                "no member is read as a label (.cls, .class or .label of an image's name); `::label={choice}` after the source takes {first}, \
                 and these hold a number or a word: {passed}"
            ),
            false => format!(
                "labels are read from {} and not from {passed}; `::label={choice}` after the source takes {first} instead",
                list(self.used.keys())
            ),
        });
    }

    /// The key in the shard for every image, `None` for a further image of a sample.
    fn keys_of_samples<'i>(
        &mut self,
        path: &Path,
        shard: &str,
        images: &'i [Image],
    ) -> Result<Vec<Option<&'i str>>, SourceError> {
        // Names in use, with the images that are a whole sample.
        let mut by_stem: HashMap<&str, &Image> = HashMap::new();
        for image in images {
            match by_stem.insert(image.stem(), image) {
                // Two members of one name would give two images one key, which every kind of source refuses.
                Some(other) if other.name != image.name => {
                    return Err(SourceError::SeveralImages {
                        path: path.to_path_buf(),
                        first: other.name.clone(),
                        second: image.name.clone(),
                        extension: extension(&other.name).unwrap_or_default().to_owned(),
                    });
                }
                _ => {}
            }
        }
        let mut skipped_field = None;
        let keys = images
            .iter()
            .map(|image| {
                let (stem, sample) = (image.stem(), image.sample());
                if stem != sample && by_stem.contains_key(sample) {
                    let field = &image.name[sample.len()..];
                    skipped_field.get_or_insert_with(|| field.to_owned());
                    self.findings.skip(format!("{shard}/{}", image.name), "further image of a sample");
                    return None;
                }
                Some(stem)
            })
            .collect();
        if let Some(field) = skipped_field {
            self.findings.note(format!(
                "samples have further images, such as {field}, which are skipped; `::*{field}` after the source takes these instead, `::*` all"
            ));
        }
        Ok(keys)
    }

    /// Reads all headers of a shard, which may be several archives joined.
    fn members(&mut self, path: &Path, shard: &str, file: &Scan, index: &mut Index) -> Result<(), SourceError> {
        let file_len = file.len().map_err(io_error(path))?;
        let mut start = [0; BLOCK as usize];
        if file.read_exact_at(&mut start, 0).is_ok() && !is_header(&start) {
            return Err(SourceError::CorruptTar {
                path: path.to_path_buf(),
                detail: format!("it does not begin with a header{}", compression(&start)),
            });
        }
        let mut end = 0;
        let mut archive = Archive::new(file);
        archive.set_ignore_zeros(true);
        for entry in archive.entries_with_seek().map_err(|e| malformed(path, file_len, end, e))? {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    return match Behind::look(file, file_len, end).map_err(io_error(path))? {
                        Behind::NoMark => Err(malformed(path, file_len, end, error)),
                        Behind::Zeros => Ok(()),
                        Behind::Members { junk } => Err(SourceError::CorruptTar {
                            path: path.to_path_buf(),
                            detail: format!(
                                "bytes {} to {} are not a tar archive, and members follow. Split the file, or pack it again",
                                junk.start, junk.end
                            ),
                        }),
                        Behind::Archive => Err(malformed(path, file_len, end, error)),
                        Behind::Junk { at } => {
                            self.findings.note(format!(
                                "{shard}: the {} bytes after the end of the archive, from byte {at} on, are not a tar archive and are not read",
                                file_len - at
                            ));
                            Ok(())
                        }
                    };
                }
            };
            let (offset, bytes) = (entry.raw_file_position(), entry.size());
            let name = entry.path_bytes().into_owned();
            end = offset.checked_add(bytes).filter(|&end| end <= file_len).ok_or_else(|| {
                truncated(
                    path,
                    format!("member `{}` ends past the file's {file_len} bytes", String::from_utf8_lossy(&name)),
                )
            })?;
            let member = Found { path, shard, file, kind: entry.header().entry_type(), offset, bytes };
            self.member(index, member, &name)?;
        }
        // Two blocks of zeros end an archive. Without this check, a file truncated between two members would pass for a shorter one.
        let mut marker = [1; BLOCK as usize];
        let at = end.next_multiple_of(BLOCK);
        if file.read_exact_at(&mut marker, at).is_err() || marker.iter().any(|&byte| byte != 0) {
            return Err(truncated(path, format!("there is no end-of-archive mark at byte {at}")));
        }
        Ok(())
    }

    fn member(&mut self, index: &mut Index, found: Found<'_>, name: &[u8]) -> Result<(), SourceError> {
        let name = name.strip_prefix(b"./").unwrap_or(name);
        if found.kind == EntryType::Directory || name.ends_with(b"/") {
            return Ok(());
        }
        let lossy = String::from_utf8_lossy(name);
        let is_hidden = lossy.rsplit('/').next().unwrap_or_default().starts_with('.');
        let is_matched = self.pattern.is_none_or(|pattern| pattern.matches(&lossy));
        let is_file = matches!(found.kind, EntryType::Regular | EntryType::Continuous);
        let is_link = matches!(found.kind, EntryType::Link | EntryType::Symlink);
        let is_image = !is_hidden && is_matched && extension(&lossy).is_some_and(is_image_extension);
        let label = (!is_hidden).then(|| label_field(&lossy, self.field)).flatten();
        let refuse = |what: &str| {
            Err(SourceError::CorruptTar { path: found.path.to_path_buf(), detail: format!("`{lossy}` {what}") })
        };
        let utf8 = || std::str::from_utf8(name).map_err(|_| SourceError::NotUtf8 { path: found.path.join(&*lossy) });
        if let Some((stem, rank)) = label {
            if is_link {
                return refuse(
                    "is a link to a label; pack the archive again with its links followed (tar --dereference --hard-dereference)",
                );
            }
            if !is_file {
                return refuse("is not a plain file");
            }
            utf8()?;
            return self.label(index, found, &lossy, stem, rank);
        }
        if !is_image {
            if !is_file {
                return Ok(());
            }
            let mut start = vec![0; found.bytes.min(SNIFF_BYTES as u64) as usize];
            found.file.read_exact_at(&mut start, found.offset).map_err(io_error(found.path))?;
            let is_picture = extension(&lossy).is_some_and(is_picture_extension);
            if !is_hidden && !is_picture && found.bytes <= MAX_WORD_BYTES {
                self.possible_label(&lossy, &start);
            }
            if !(self.pattern.is_some() && is_matched && is_readable(&lossy, &start)) {
                if is_matched {
                    let reason = picture_reason(&lossy, &start);
                    self.findings.file(format!("{}/{lossy}", found.shard), reason);
                }
                return Ok(());
            }
        } else if is_link {
            // Its target is a member of its own, or outside the archive.
            self.findings.skip(format!("{}/{lossy}", found.shard), "link, not followed");
            return Ok(());
        } else if !is_file {
            return refuse("is not a plain file");
        }
        index.images.push(Image { name: utf8()?.to_owned(), offset: found.offset, bytes: found.bytes });
        Ok(())
    }

    /// Notes a member that could be a label by its name or content.
    fn possible_label(&mut self, member: &str, text: &[u8]) {
        let Some(field) = extension(member) else {
            return;
        };
        let holds = match std::str::from_utf8(text).map(read_text) {
            Ok(Text::Whole(_)) => true,
            Ok(Text::Name(name)) => !name.contains(char::is_whitespace),
            _ => false,
        };
        let fields = match is_like_a_label(field) {
            true => &mut self.passed,
            false if holds => &mut self.worded,
            false => return,
        };
        *fields.entry(format!(".{field}")).or_default() += 1;
    }

    fn label(
        &mut self,
        index: &mut Index,
        found: Found<'_>,
        member: &str,
        stem: &str,
        rank: usize,
    ) -> Result<(), SourceError> {
        let mut text = vec![0; found.bytes.min(MAX_LABEL_BYTES) as usize];
        found.file.read_exact_at(&mut text, found.offset).map_err(io_error(found.path))?;
        let read = match std::str::from_utf8(&text) {
            Ok(text) if found.bytes <= MAX_LABEL_BYTES => read_text(text),
            _ => Text::Other,
        };
        let told = match read {
            Text::Whole(number) => i32::try_from(number).ok().filter(|&number| number >= 0).map(Told::Number),
            Text::Name(name) => Some(Told::Name(name.to_owned())),
            Text::Fraction | Text::Other => None,
        };
        let Some(told) = told else {
            // Only `.cls` means a class in every WebDataset; members of the other names may hold anything.
            if rank > 0 {
                let field = &member[stem.len()..];
                self.findings.note(format!(
                    "members {field} are not read as labels if they hold neither a whole number nor a name in one line"
                ));
                return Ok(());
            }
            let found_text: String = String::from_utf8_lossy(&text).trim().chars().take(60).collect();
            return Err(SourceError::BadLabel {
                path: found.path.to_path_buf(),
                member: member.to_owned(),
                found: found_text,
            });
        };
        let label = Label { rank, member: member.to_owned(), told };
        match index.labels.get(stem) {
            Some(other) if other.rank == rank => Err(SourceError::CorruptTar {
                path: found.path.to_path_buf(),
                detail: format!("there are two members `{member}`"),
            }),
            Some(other) if other.rank < rank => {
                self.pass(&label.member[stem.len()..]);
                Ok(())
            }
            _ => {
                if let Some(other) = index.labels.insert(stem.to_owned(), label) {
                    self.pass(&other.member[stem.len()..]);
                }
                Ok(())
            }
        }
    }
}

impl Opening<'_> {
    fn pass(&mut self, field: &str) {
        *self.passed.entry(field.to_owned()).or_default() += 1;
    }
}

/// Position of a member.
#[derive(Clone, Copy)]
struct Found<'a> {
    path: &'a Path,
    shard: &'a str,
    file: &'a Scan,
    kind: EntryType,
    offset: u64,
    bytes: u64,
}

/// Keys of images that a pattern selected: the names up to the last dot, or whole names if those are not unique.
fn keys_of_selected(images: &[Image]) -> Vec<Option<&str>> {
    let mut uses: HashMap<&str, Vec<&str>> = HashMap::new();
    for image in images {
        let names = uses.entry(image.stem()).or_default();
        if !names.contains(&&*image.name) {
            names.push(&image.name);
        }
    }
    images
        .iter()
        .map(|image| match uses[image.stem()].len() {
            1 => Some(image.stem()),
            _ => Some(&*image.name),
        })
        .collect()
}

/// The name of a member with a label up to its field, and the field's rank.
fn label_field<'a>(name: &'a str, wanted: Option<&str>) -> Option<(&'a str, usize)> {
    if let Some(wanted) = wanted.map(|wanted| wanted.trim_start_matches('.')) {
        let stem = name.strip_suffix(wanted)?.strip_suffix('.')?;
        let base = stem.rsplit('/').next().unwrap_or(stem);
        return (!base.is_empty()).then_some((stem, 0));
    }
    let (mut stem, mut field) = name.rsplit_once('.')?;
    let mut rank = 0;
    if field.eq_ignore_ascii_case("txt") || field.eq_ignore_ascii_case("json") {
        (stem, field) = stem.rsplit_once('.')?;
        rank = LABEL_FIELDS.len();
    }
    let field = LABEL_FIELDS.iter().position(|known| field.eq_ignore_ascii_case(known))?;
    let base = stem.rsplit('/').next().unwrap_or(stem);
    (!base.is_empty()).then_some((stem, rank + field))
}
