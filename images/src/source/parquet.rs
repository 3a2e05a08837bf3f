//! Parquet in the Hugging Face layout: a struct column `{bytes, path}` of image files, and a column of labels.
//!
//! A label column holds whole numbers of any type, or names: text, categorical or not, whose distinct values are numbered in the order
//! of their bytes. The [`Findings`] list columns with a label's name that cannot be a class (a list, fractions), and
//! further columns of images; a column's name after `::` selects one.
//!
//! Rows are read through pages, the unit that Parquet compresses: a row group can hold gigabytes, a page rarely more than the
//! megabyte that writers aim at. The last pages are kept, so that reading rows in order decodes each page once.

mod columns;
mod pages;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::ParquetMetaData;
use ::parquet::file::reader::Length;

use storage::is_url;

use self::columns::{Columns, LabelColumn, LabelKind};
use self::pages::{Page, PageStarts, Pread, Value, read_labels};
use super::files::{ShardFiles, qualify};
use super::findings::{Findings, Skipped};
use super::labels::{MAX_NAMES, Names, bare, is_like_a_label, list};
use super::{Listing, Sample, Store, check_length, file_name, io_error};
use crate::SourceError;
use crate::guard::catch_panics;

/// Pages are kept until they hold this many bytes: 64 MiB. The page in use is kept whatever its size.
pub(super) const CACHE_BYTES: usize = 64 << 20;

pub(super) struct Tables {
    files: ShardFiles,
    /// For every file its footer, and the sample number of its first row.
    tables: Vec<Table>,
    /// Position of the image column, the same in all files.
    image_leaf: usize,
    cache: Mutex<VecDeque<(PageId, Arc<Slot>)>>,
}

struct Table {
    metadata: Arc<ParquetMetaData>,
    first_sample: usize,
    groups: Vec<RowGroup>,
}

struct RowGroup {
    /// First row, counted in the file.
    first_row: usize,
    /// Where its pages begin; filled when a row of the group is first read.
    page_starts: OnceLock<PageStarts>,
}

/// File, row group, page.
type PageId = (usize, usize, usize);

/// A page, or the slot that the first thread fills while others wait.
#[derive(Default)]
struct Slot(Mutex<Option<Arc<Page>>>);

/// Position of a row.
struct Place {
    table: usize,
    group: usize,
    row_in_file: usize,
    row_in_group: usize,
}

pub(super) fn open(paths: Vec<PathBuf>, column: Option<&str>, label: Option<&str>) -> Result<Listing, SourceError> {
    let mut opening = Opening { column, label_column: label, ..Opening::default() };
    let (mut tables, mut ranges) = (Vec::new(), Vec::new());
    let mut first: Option<Columns> = None;
    // Over a network every footer takes several round trips.
    let ahead = paths.iter().any(|path| is_url(path)).then(|| storage::in_parallel(&paths, |path| footer(path), true));
    let mut ahead = ahead.map(Vec::into_iter);
    for path in &paths {
        let footer = ahead.as_mut().and_then(Iterator::next).unwrap_or_else(|| footer(path))?;
        let start = opening.samples.len();
        let (table, columns) = guarded(path, || opening.table(path, footer))?;
        match &first {
            Some(first) => columns.check_same(first, path)?,
            None => first = Some(columns),
        }
        tables.push(table);
        ranges.push(start..opening.samples.len());
    }
    let columns = first.expect("a source has at least one file");
    let Opening { mut samples, names, unfit, numbered, named, mut findings, .. } = opening;
    let mut label_names = columns.label_names;
    if let Some(unfit) = unfit {
        findings.note(unfit);
        label_names.clear();
        samples.iter_mut().for_each(|sample| sample.label = None);
    } else if let (Some(number), Some(name)) = (numbered, named.as_ref()) {
        return Err(SourceError::MixedLabels { number, name: name.clone() });
    } else if named.is_some() {
        let (names, places) = names.sorted();
        label_names = names;
        for label in samples.iter_mut().filter_map(|sample| sample.label.as_mut()) {
            *label = places[*label as usize];
        }
    }
    qualify(&paths, &ranges, &mut samples)?;
    let store =
        Tables { files: ShardFiles::new(paths), tables, image_leaf: columns.image_leaf, cache: Mutex::default() };
    Ok(Listing { samples, label_names, findings, store: Store::Parquet(store) })
}

/// Opens a file and reads its footer.
fn footer(path: &Path) -> Result<(Arc<Pread>, ParquetMetaData), SourceError> {
    let file = Arc::new(storage::open(path).map_err(io_error(path))?);
    let reader = Arc::new(Pread::new(path, &file)?);
    guarded(path, || {
        let metadata = pages::metadata(&reader).map_err(explain(path))?;
        Ok((reader.clone(), metadata))
    })
}

/// Contents of the files read so far.
#[derive(Default)]
struct Opening<'a> {
    /// The image column that was asked for.
    column: Option<&'a str>,
    /// The label column that was asked for.
    label_column: Option<&'a str>,
    /// Labels that are names are indices into `names` here.
    samples: Vec<Sample>,
    names: Names,
    /// Why the label column does not hold classes, if it does not.
    unfit: Option<String>,
    /// The first row whose label is a number, and the first whose is a name.
    numbered: Option<String>,
    named: Option<String>,
    findings: Findings,
}

impl Opening<'_> {
    /// Reads a footer and the labels, and appends the file's samples.
    fn table(
        &mut self,
        path: &Path,
        (reader, metadata): (Arc<Pread>, ParquetMetaData),
    ) -> Result<(Table, Columns), SourceError> {
        let first_sample = self.samples.len();
        let columns = Columns::find(path, &metadata, self.column, self.label_column)?;
        let name = file_name(path)?;
        let file_len = reader.len();
        let (mut groups, mut row_in_file) = (Vec::new(), 0);
        for group in metadata.row_groups() {
            let corrupt =
                |what: &str| SourceError::CorruptParquet { path: path.to_path_buf(), detail: what.to_owned() };
            // An absurd number of rows must not become an allocation. No image allows eight rows per byte.
            let plausible = 0..=file_len.saturating_mul(8);
            let rows = usize::try_from(group.num_rows()).ok().filter(|&rows| plausible.contains(&(rows as u64)));
            let rows = rows.ok_or_else(|| corrupt("a row group claims an impossible number of rows"))?;
            let bytes = u64::try_from(group.column(columns.image_leaf).uncompressed_size())
                .map_err(|_| corrupt("a column has a negative size"))?;
            let values = match &columns.label {
                Some(label) => {
                    let chunk = group.column(label.leaf);
                    let (start, len) = chunk.byte_range();
                    let reader = Arc::new(reader.holding(start, len).map_err(io_error(path))?);
                    read_labels(reader, chunk, rows, label.kind).map_err(explain(path))?
                }
                None => Vec::new(),
            };
            let mut values = values.into_iter();
            for row in row_in_file..row_in_file + rows {
                let label = match (values.next(), &columns.label) {
                    (Some(value), Some(column)) => {
                        let label = self.label(path, row, column, value)?;
                        columns.check_named(path, row, label)?;
                        label
                    }
                    _ => None,
                };
                self.samples.push(Sample { key: format!("{name}/{row}").into_boxed_str(), label, bytes });
            }
            groups.push(RowGroup { first_row: row_in_file, page_starts: OnceLock::new() });
            row_in_file += rows;
        }
        self.report(path, name, &columns, row_in_file as u64);
        Ok((Table { metadata: Arc::new(metadata), first_sample, groups }, columns))
    }

    /// The label of a row; an index if it is a name. A value that cannot be a class is an error in an integer column; in other columns it means
    /// that the column does not hold classes, for example a regression target.
    fn label(
        &mut self,
        path: &Path,
        row: usize,
        column: &LabelColumn,
        value: Value,
    ) -> Result<Option<i32>, SourceError> {
        let mut unfit = |found: &str| {
            let file = path.display();
            self.unfit.get_or_insert_with(|| {
                format!(
                    "column `{}` holds no classes and is not read as labels: {found} ({file}, row {row})",
                    column.name
                )
            });
            Ok(None)
        };
        let place = || format!("{}, row {row}", path.display());
        match value {
            Value::Missing => Ok(None),
            Value::Number(number) => match i32::try_from(number) {
                Ok(label) if label >= 0 => {
                    self.numbered.get_or_insert_with(place);
                    Ok(Some(label))
                }
                _ if column.kind == LabelKind::Integer => Err(SourceError::BadLabel {
                    path: path.to_path_buf(),
                    member: format!("row {row}"),
                    found: number.to_string(),
                }),
                _ => unfit(&format!("{number} is not a whole number from 0 to 2147483647")),
            },
            Value::Unfit(found) => unfit(&format!("{found} is not a whole number from 0 to 2147483647")),
            Value::Text(text) => {
                let Ok(text) = std::str::from_utf8(text.data()) else {
                    return unfit("bytes that are not UTF-8");
                };
                let text = bare(text);
                if text.is_empty() {
                    return Ok(None);
                }
                match self.names.add(text) {
                    Some(index) => {
                        self.named.get_or_insert_with(place);
                        Ok(Some(index as i32))
                    }
                    None => unfit(&format!("more than {MAX_NAMES} different texts")),
                }
            }
        }
    }

    /// Notes the parts of a file that are not read.
    fn report(&mut self, path: &Path, name: &str, columns: &Columns, rows: u64) {
        let choice = |column: &str| match self.column {
            Some(images) => format!("`::{images},label={column}`"),
            None => format!("`::label={column}`"),
        };
        let like_labels = &columns.like_labels;
        match (&columns.label, like_labels.first()) {
            (_, None) => {}
            (Some(label), Some(other)) => self.findings.note(format!(
                "labels are read from the column `{}` and not from {}; {} after the source takes the other",
                label.name,
                list(like_labels),
                choice(other)
            )),
            (None, Some(first)) => self.findings.note(format!(
                "no column is read as labels; {} after the source takes that column, and these could be classes by their type: {}",
                choice(first),
                list(like_labels)
            )),
        }
        if let (None, Some(partition)) = (&columns.label, hive_partition(path)) {
            self.findings.note(format!(
                "the folder `{partition}` around the file is not read as a label; to use it as one, write it into a column `label` of the file"
            ));
        }
        for column in &columns.other_images {
            self.findings.skipped.push(Skipped {
                key: format!("{name}/{column}"),
                reason: format!("in another column of images, `{column}`"),
                count: rows,
            });
        }
        for (column, what) in &columns.unread_labels {
            self.findings
                .note(format!("column `{column}` is {what}, which cannot be a class, and is not read as labels"));
        }
        for column in &columns.others {
            *self.findings.others.entry(format!("column `{column}`")).or_default() += 1;
        }
    }
}

impl Tables {
    pub(super) fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        let place = self.locate(index);
        let path = self.files.path(place.table);
        guarded(path, || self.read_row(path, &place))
    }

    pub(super) fn files(&self) -> usize {
        self.files.len()
    }

    pub(super) fn place(&self, index: usize) -> String {
        let place = self.locate(index);
        format!("{}, row {}", self.files.path(place.table).display(), place.row_in_file)
    }

    pub(super) fn is_remote(&self) -> bool {
        self.files.is_remote()
    }

    /// Begins to fetch the page of a row, if it is known where that lies: another row of its group has been read.
    pub(super) fn prefetch(&self, index: usize) {
        if !self.is_remote() {
            return;
        }
        let place = self.locate(index);
        if let Some(starts) = self.tables[place.table].groups[place.group].page_starts.get()
            && let Ok(file) = self.files.get(place.table)
        {
            let page = starts.rows.partition_point(|&start| start <= place.row_in_group) - 1;
            let is_kept = self
                .cache
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .any(|(id, _)| *id == (place.table, place.group, page));
            if !is_kept {
                file.prefetch(starts.extent(page));
            }
        }
    }

    /// Drops the page of a row.
    pub(super) fn forget(&self, index: usize) -> bool {
        let place = self.locate(index);
        let (true, Ok(file)) = (self.is_remote(), self.files.get(place.table)) else {
            return false;
        };
        let chunk = self.tables[place.table].metadata.row_group(place.group).column(self.image_leaf);
        let (start, len) = chunk.byte_range();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|((table, group, _), _)| (*table, *group) != (place.table, place.group));
        file.forget(start, len)
    }

    fn locate(&self, index: usize) -> Place {
        let table = self.tables.partition_point(|table| table.first_sample <= index) - 1;
        let row_in_file = index - self.tables[table].first_sample;
        let groups = &self.tables[table].groups;
        let group = groups.partition_point(|group| group.first_row <= row_in_file) - 1;
        Place { table, group, row_in_file, row_in_group: row_in_file - groups[group].first_row }
    }

    fn read_row(&self, path: &Path, place: &Place) -> Result<Vec<u8>, SourceError> {
        let file = self.files.get(place.table)?;
        let table = &self.tables[place.table];
        let (chunk, rows) = {
            let group = table.metadata.row_group(place.group);
            (group.column(self.image_leaf), group.num_rows() as usize)
        };
        let reader = || Pread::new(path, &file).map(Arc::new);
        let known_starts = &table.groups[place.group].page_starts;
        let starts = match known_starts.get() {
            Some(starts) => starts,
            None => {
                let starts = pages::page_starts(&*reader()?, chunk, rows).map_err(explain(path))?;
                known_starts.get_or_init(|| starts)
            }
        };
        let page = starts.rows.partition_point(|&start| start <= place.row_in_group) - 1;
        let start = starts.rows[page];
        let end = starts.rows.get(page + 1).copied().unwrap_or(rows);
        let page = self.page((place.table, place.group, page), || {
            Page::read(reader()?, chunk, rows, start..end, starts).map_err(explain(path))
        })?;
        let no_bytes = || SourceError::NoBytes { path: path.to_path_buf(), row: place.row_in_file as u64 };
        let bytes = page.row(place.row_in_group - start).ok_or_else(no_bytes)?;
        check_length(path, || format!("row {}", place.row_in_file), bytes.len() as u64)?;
        Ok(bytes.to_vec())
    }

    /// A page from the cache, or read now. Threads that need the same page read it once; threads that need other pages do not
    /// wait.
    fn page(&self, id: PageId, read: impl FnOnce() -> Result<Page, SourceError>) -> Result<Arc<Page>, SourceError> {
        let slot = {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            let slot = match cache.iter().position(|(other, _)| *other == id) {
                Some(at) => cache.remove(at).expect("the position was just found").1,
                None => Arc::default(),
            };
            cache.push_front((id, slot.clone()));
            slot
        };
        // A reader that panicked left the slot empty, which is a valid state.
        let mut content = slot.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = &*content {
            return Ok(page.clone());
        }
        let page = Arc::new(read()?);
        *content = Some(page.clone());
        drop(content);
        self.evict();
        Ok(page)
    }

    #[cfg(test)]
    pub(super) fn bytes_kept(&self) -> usize {
        let cache = self.cache.lock().expect("no test panics while it holds the lock");
        cache.iter().filter_map(|(_, slot)| slot.0.lock().ok()?.as_ref().map(|page| page.bytes())).sum()
    }

    /// Drops the least recently used pages until the others fit. Pages that are being read do not count yet.
    fn evict(&self) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = 0;
        let keep = cache.iter().position(|(_, slot)| {
            held += slot.0.try_lock().ok().and_then(|content| content.as_ref().map(|page| page.bytes())).unwrap_or(0);
            held > CACHE_BYTES
        });
        if let Some(keep) = keep {
            cache.truncate(keep.max(1));
        }
    }
}

/// A folder that states a label like a partition of a Hive table: `label=cat`.
fn hive_partition(path: &Path) -> Option<String> {
    let folders = path.parent()?.components().rev();
    let mut names = folders.filter_map(|folder| folder.as_os_str().to_str());
    names
        .find(|name| name.split_once('=').is_some_and(|(column, _)| is_like_a_label(column)))
        .and_then(|name| name.split_once('='))
        .map(|(column, _)| format!("{column}=..."))
}

/// Calls the `parquet` crate, whose panics on malformed files become errors.
fn guarded<T>(path: &Path, parser: impl FnOnce() -> Result<T, SourceError>) -> Result<T, SourceError> {
    catch_panics(parser).unwrap_or_else(|detail| Err(SourceError::CorruptParquet { path: path.to_path_buf(), detail }))
}

/// Distinguishes a failing disk from a malformed file.
fn explain(path: &Path) -> impl FnOnce(ParquetError) -> SourceError {
    let path = path.to_path_buf();
    move |error| match error {
        ParquetError::External(cause) => match cause.downcast::<std::io::Error>() {
            Ok(source) if source.kind() != std::io::ErrorKind::UnexpectedEof => {
                SourceError::Io { path, source: *source }
            }
            Ok(source) => SourceError::CorruptParquet { path, detail: source.to_string() },
            Err(cause) => SourceError::CorruptParquet { path, detail: cause.to_string() },
        },
        error => SourceError::CorruptParquet { path, detail: error.to_string() },
    }
}
