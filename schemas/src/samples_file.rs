//! Reading a samples file: all rows, each with its own verdict.

use std::path::Path;

use crate::columns::{sample_checksum, samples_columns};
use crate::page::{Page, Values};
use crate::part_file::{Expected, Fetch, PartFile, RowGroup};
use crate::rules::RowRules;
use crate::{CacheIdentity, ContentHash, CropBox, Error, Result, SampleRow, SamplesCommit, View, layout};

/// A samples file, open.
#[derive(Debug)]
pub(crate) struct SamplesFile {
    pub(crate) file: PartFile,
}

/// Position of the column `image`.
const IMAGE: usize = 13;

/// The samples of a part, read and checked, with its packed images at hand. `Send` and `Sync`.
#[derive(Debug)]
pub struct SamplesPart {
    file: SamplesFile,
    rows: Vec<SampleRow>,
}

impl SamplesPart {
    pub(crate) fn new(file: SamplesFile, rows: Vec<SampleRow>) -> SamplesPart {
        SamplesPart { file, rows }
    }

    /// The rows, sorted by (sample_id, view).
    pub fn rows(&self) -> &[SampleRow] {
        &self.rows
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.file.file.path
    }

    /// The image packed with a row, checked against its `image_hash`; `None` if the row has none.
    ///
    /// # Errors
    /// [`Error::NoSuchRow`], [`Error::RowUnreadable`] and [`Error::ImageHash`].
    pub fn read_image(&self, row: usize) -> Result<Option<Vec<u8>>> {
        let sample = self.rows.get(row).ok_or_else(|| Error::NoSuchRow {
            path: self.path().to_path_buf(),
            row,
            rows: self.rows.len(),
        })?;
        self.file.image(row, sample)
    }

    /// Begins to fetch the image of a row, if it has to come over a network. Nothing is done for a row that there is not.
    pub fn prefetch_image(&self, row: usize) {
        if row < self.rows.len() && self.file.file.is_remote() {
            self.file.file.prefetch([self.file.image_page(row)]);
        }
    }
}

/// What reading a samples file gives: the sound rows, and what is wrong with the others.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    /// One per row of the file; `None` where the row is damaged.
    pub(crate) rows: Vec<Option<SampleRow>>,
    /// By row.
    pub(crate) problems: Vec<Error>,
}

impl SamplesFile {
    pub(crate) fn open(
        cache: &Path,
        part: u32,
        identity: &CacheIdentity,
        commit: &SamplesCommit,
    ) -> Result<SamplesFile> {
        let expected = Expected {
            part,
            stamp: &commit.file,
            columns: &samples_columns(),
            cache_fingerprint: identity.part_fingerprint(part),
            teacher_fingerprint: None,
        };
        Ok(SamplesFile { file: PartFile::open(&layout::samples_file(cache, part), &expected)? })
    }

    /// Reads every row and checks each: its checksum, its values, its place.
    ///
    /// # Errors
    /// Only I/O errors; damage is in the result.
    pub(crate) fn read(&self, part: u32, identity: &CacheIdentity) -> Result<Samples> {
        let mut samples = self.read_from(part, identity, Fetch::Usual)?;
        for _ in 0..storage::COPIES {
            if samples.problems.is_empty() || !self.file.is_remote() {
                break;
            }
            // The network may have done it.
            samples = self.read_from(part, identity, Fetch::Again)?;
        }
        Ok(samples)
    }

    fn read_from(&self, part: u32, identity: &CacheIdentity, fetch: Fetch) -> Result<Samples> {
        let mut samples = Samples::default();
        let mut rules = RowRules::new(self.file.path.clone(), identity, part);
        for group in &self.file.groups {
            let (rows, mut problems) = self.read_group(group, fetch)?;
            for (i, row) in rows.iter().enumerate() {
                rules.skip_to(group.first_row + i);
                let verdict = row.as_ref().map_or(Ok(()), |(row, stored)| {
                    let found = sample_checksum(row);
                    if found != *stored {
                        let (path, row) = (self.file.path.clone(), group.first_row + i);
                        return Err(Error::RowChecksum { path, row, found, expected: *stored });
                    }
                    rules.check_sample(row)
                });
                match verdict {
                    Ok(()) => samples.rows.push(row.as_ref().map(|(row, _)| row.clone())),
                    Err(error) => {
                        problems.push((group.first_row + i, error));
                        samples.rows.push(None);
                    }
                }
            }
            problems.sort_by_key(|(row, _)| *row);
            samples.problems.extend(problems.into_iter().map(|(_, error)| error));
        }
        Ok(samples)
    }

    /// Reads a row group, and what is wrong with it by row.
    fn read_group(&self, group: &RowGroup, fetch: Fetch) -> Result<(Vec<StoredRow>, Vec<RowError>)> {
        if fetch == Fetch::Usual {
            let columns = group.chunks.iter().enumerate().filter(|(column, _)| *column != IMAGE);
            self.file.prefetch(columns.flat_map(|(_, chunk)| (0..chunk.n_pages()).map(|page| chunk.page(page))));
        }
        let mut columns = Columns { file: &self.file, group, fetch, next: 0, problems: Vec::new() };
        Ok((columns.read()?, columns.problems))
    }

    /// The image packed with row `i`, which is `row`; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::RowUnreadable`] for a damaged page, [`Error::ImageHash`] for an image that is not the row's.
    pub(crate) fn image(&self, i: usize, row: &SampleRow) -> Result<Option<Vec<u8>>> {
        self.file.read_patiently(|fetch| self.image_from(i, row, fetch))
    }

    /// Where the page of the image of row `i` lies.
    fn image_page(&self, i: usize) -> (u64, usize) {
        let group = &self.file.groups[self.file.groups.partition_point(|group| group.first_row <= i) - 1];
        group.chunks[IMAGE].page(i - group.first_row)
    }

    fn image_from(&self, i: usize, row: &SampleRow, fetch: Fetch) -> Result<Option<Vec<u8>>> {
        let (offset, length) = self.image_page(i);
        let compression = self.file.groups[0].chunks[IMAGE].compression;
        let (mut bytes, mut body) = (vec![0; length], Vec::new());
        self.file.read_at(offset, &mut bytes, fetch)?;
        let unfit = || "its value does not fit in its page".to_string();
        let read = Page::open(&bytes).and_then(|page| {
            if page.rows != 1 {
                return Err(format!("its page has {} rows instead of 1", page.rows));
            }
            page.decompress(compression, length, &mut body)?;
            let mut values = Values::new(&body);
            let present = values.present(1).ok_or_else(unfit)?[0];
            let image = match present {
                true => Some(values.bytes().ok_or_else(unfit)?.len()),
                false => None,
            };
            if !values.is_empty() {
                return Err("its page has bytes left over".to_string());
            }
            // The image is the end of the page, which becomes it without another allocation.
            Ok(image.map(|length| {
                body.drain(..body.len() - length);
                std::mem::take(&mut body)
            }))
        });
        let image = read.map_err(|detail| Error::RowUnreadable {
            path: self.file.path.clone(),
            row: i,
            column: samples_columns()[IMAGE].name.to_string(),
            detail,
        })?;
        let found = image.as_deref().map(ContentHash::of);
        if found == row.image_hash {
            return Ok(image);
        }
        let show = |hash: Option<ContentHash>| hash.map_or("none".to_string(), |h| h.to_string());
        Err(Error::ImageHash {
            path: self.file.path.clone(),
            row: i,
            found: show(found),
            expected: show(row.image_hash),
        })
    }

    /// The rows as they are stored, whatever they hold.
    #[cfg(test)]
    pub(crate) fn read_unchecked(&self) -> Result<Vec<SampleRow>> {
        let mut rows = Vec::new();
        for group in &self.file.groups {
            rows.extend(self.read_group(group, Fetch::Usual)?.0.into_iter().flatten().map(|(row, _)| row));
        }
        Ok(rows)
    }
}

/// A row with its stored checksum; `None` where one of its values could not be read.
type StoredRow = Option<(SampleRow, u64)>;

/// What is wrong with a row, and its number in the file.
type RowError = (usize, Error);

/// The columns of a row group, read one after another in the order of the file.
struct Columns<'a> {
    file: &'a PartFile,
    group: &'a RowGroup,
    fetch: Fetch,
    next: usize,
    problems: Vec<RowError>,
}

impl Columns<'_> {
    /// The rows of the group.
    fn read(&mut self) -> Result<Vec<StoredRow>> {
        let mut sample_id = self.required(|values| values.u64())?;
        let mut view = self.required(|values| u16::try_from(values.u32()?).ok())?;
        let mut key = self.required(|values| std::str::from_utf8(values.bytes()?).ok().map(str::to_string))?;
        let mut content_hash = self.required(|values| values.fixed().map(ContentHash))?;
        let mut label = self.optional(|values| values.i32())?;
        let mut numbers = Vec::new();
        for _ in 0..6 {
            numbers.push(self.required(|values| values.u32())?);
        }
        let mut flip = self.required(|values| values.bool())?;
        let mut image_hash = self.optional(|values| values.fixed().map(ContentHash))?;
        // Images are read one by one, when they are wanted.
        self.next += 1;
        let mut checksum = self.required(|values| values.u64())?;
        let mut row = |i: usize| {
            let [width, height, x, y, w, h] = std::array::from_fn(|n| numbers[n][i].take());
            let row = SampleRow {
                sample_id: sample_id[i].take()?,
                view: View {
                    index: view[i].take()?,
                    crop: CropBox { x: x?, y: y?, w: w?, h: h? },
                    flip: flip[i].take()?,
                },
                key: key[i].take()?,
                content_hash: content_hash[i].take()?,
                label: label[i].take()?,
                width: width?,
                height: height?,
                image_hash: image_hash[i].take()?,
            };
            Some((row, checksum[i].take()?))
        };
        Ok((0..self.group.rows).map(&mut row).collect())
    }

    /// The next column, in which every row has a value.
    fn required<T>(&mut self, value: impl Fn(&mut Values<'_>) -> Option<T>) -> Result<Vec<Option<T>>> {
        self.column(|values, rows, cells| {
            while cells.len() < rows {
                cells.push(Some(value(values)?));
            }
            Some(())
        })
    }

    /// The next column, in which rows may have no value.
    fn optional<T>(&mut self, value: impl Fn(&mut Values<'_>) -> Option<T>) -> Result<Vec<Option<Option<T>>>> {
        self.column(|values, rows, cells| {
            for present in values.present(rows)? {
                cells.push(Some(if present { Some(value(values)?) } else { None }));
            }
            Some(())
        })
    }

    /// Reads the pages of the next column. `fill` adds a page's values to an empty list; where it stops short, the row it
    /// stopped at is named, and it and the rest of the page are without value.
    fn column<T>(
        &mut self,
        fill: impl Fn(&mut Values<'_>, usize, &mut Vec<Option<T>>) -> Option<()>,
    ) -> Result<Vec<Option<T>>> {
        let column = samples_columns()[self.next];
        let chunk = &self.group.chunks[self.next];
        self.next += 1;
        let mut cells = Vec::with_capacity(self.group.rows.min(1 << 20));
        let (mut bytes, mut body) = (Vec::new(), Vec::new());
        for i in 0..chunk.n_pages() {
            let (offset, length) = chunk.page(i);
            let rows = chunk.page_rows(i);
            let (first_row, rows) = (rows.start, rows.len());
            bytes.resize(length, 0);
            self.file.read_at(offset, &mut bytes, self.fetch)?;
            let mut page = Vec::new();
            let mut read = || {
                let opened = Page::open(&bytes)?;
                if opened.rows != rows {
                    return Err(format!("its page has {} rows instead of {rows}", opened.rows));
                }
                // Samples columns are never compressed.
                opened.decompress(chunk.compression, bytes.len(), &mut body)?;
                let mut values = Values::new(&body);
                match fill(&mut values, rows, &mut page) {
                    Some(()) if values.is_empty() => Ok(()),
                    Some(()) => Err("its page has bytes left over".to_string()),
                    None => Err("its value does not fit in its page".to_string()),
                }
            };
            if let Err(detail) = read() {
                let row = self.group.first_row + first_row + page.len().min(rows - 1);
                let (path, column) = (self.file.path.clone(), column.name.to_string());
                self.problems.push((row, Error::RowUnreadable { path, row, column, detail }));
            }
            page.resize_with(rows, || None);
            cells.append(&mut page);
        }
        Ok(cells)
    }
}
