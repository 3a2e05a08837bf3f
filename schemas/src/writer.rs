//! Writing parts: rows in order, then one commit record.
//!
//! Rows are gathered up to [`ROW_GROUP_BYTES`] and written column by column. Files go to temporary names; what makes a part
//! exist is its commit record, published last.

use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use parquet::column::writer::ColumnWriterImpl;
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, FixedLenByteArray, FixedLenByteArrayType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use sha2::{Digest, Sha256};

use crate::atomic::{self, AtomicFile};
use crate::column_chunk::ColumnChunk;
use crate::columns::{
    Column, ROW_GROUP_BYTES, key_values, properties, sample_checksum, samples_columns, schema, teacher_columns,
};
use crate::rules::{RowRules, check_coverage};
use crate::{
    CacheIdentity, ChannelSums, CodecError, EncodedRow, Error, FORMAT_VERSION, FileStamp, Reject, RejectsStamp, Result,
    SampleRow, SamplesCommit, TeacherCommit, TeacherIdentity, json, layout, reject,
};

/// Writes the samples and rejects of one part. Dropping it unfinished leaves nothing.
#[derive(Debug)]
pub struct SamplesWriter {
    cache: PathBuf,
    identity: CacheIdentity,
    part: u32,
    file: PartWriter,
    rules: RowRules,
    rows: Vec<SampleRow>,
    /// The image of each row that carries one.
    images: Vec<Option<Bytes>>,
    rows_bytes: usize,
    /// (sample_id, rows of it), ascending.
    counts: Vec<(u64, u64)>,
}

impl SamplesWriter {
    /// Starts part `part` of the cache in the folder `cache`, which [`create_cache`](crate::create_cache) has made with this
    /// identity.
    pub fn create(cache: &Path, part: u32, identity: &CacheIdentity) -> Result<SamplesWriter> {
        identity.validate(&layout::cache_json(cache))?;
        let path = layout::samples_file(cache, part);
        Ok(SamplesWriter {
            cache: cache.to_path_buf(),
            identity: identity.clone(),
            part,
            file: PartWriter::create(&path, &samples_columns(), key_values(part, identity, None))?,
            rules: RowRules::new(path, identity, part),
            rows: Vec::new(),
            images: Vec::new(),
            rows_bytes: 0,
            counts: Vec::new(),
        })
    }

    /// Adds a row. Rows come sorted by (sample_id, view), without repetition.
    ///
    /// # Errors
    /// [`Error::RowOrder`] and [`Error::RowValue`] for a row that does not belong here.
    pub fn push(&mut self, row: &SampleRow) -> Result<()> {
        self.push_packed(row, None)
    }

    /// [`Self::push`] with the row's image, for caches that pack images; it is that of the row's `image_hash`.
    ///
    /// # Errors
    /// As [`Self::push`]; also for an image that does not have the row's hash.
    pub fn push_packed(&mut self, row: &SampleRow, image: Option<&[u8]>) -> Result<()> {
        self.rules.check_image(row, image)?;
        self.rules.check_sample(row)?;
        match self.counts.last_mut() {
            Some((sample_id, count)) if *sample_id == row.sample_id => *count += 1,
            _ => self.counts.push((row.sample_id, 1)),
        }
        self.rows_bytes += 128 + row.key.len() + image.map_or(0, <[u8]>::len);
        self.rows.push(row.clone());
        self.images.push(image.map(Bytes::copy_from_slice));
        if self.rows_bytes >= ROW_GROUP_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let images = std::mem::take(&mut self.images);
        self.rows_bytes = 0;
        self.file.write_group(rows.len(), |group| {
            put::<Int64Type>(group, rows.iter().map(|row| row.sample_id.cast_signed()))?;
            put::<Int32Type>(group, rows.iter().map(|row| row.view.index.into()))?;
            put::<ByteArrayType>(group, rows.iter().map(|row| ByteArray::from(row.key.as_bytes().to_vec())))?;
            put::<FixedLenByteArrayType>(group, rows.iter().map(|row| fixed(&row.content_hash.0)))?;
            put_optional::<Int32Type>(group, rows.iter().map(|row| row.label))?;
            let columns: [fn(&SampleRow) -> u32; 6] = [
                |row| row.width,
                |row| row.height,
                |row| row.view.crop.x,
                |row| row.view.crop.y,
                |row| row.view.crop.w,
                |row| row.view.crop.h,
            ];
            for value in columns {
                put::<Int32Type>(group, rows.iter().map(|row| value(row).cast_signed()))?;
            }
            put::<BoolType>(group, rows.iter().map(|row| row.view.flip))?;
            put_optional::<FixedLenByteArrayType>(
                group,
                rows.iter().map(|row| row.image_hash.map(|hash| fixed(&hash.0))),
            )?;
            put_optional::<ByteArrayType>(group, images.into_iter().map(|image| image.map(ByteArray::from)))?;
            put::<Int64Type>(group, rows.iter().map(|row| sample_checksum(row).cast_signed()))
        })
    }

    /// Publishes the samples file, the rejects file, and last the commit record. Rows and rejects together must cover the
    /// part's samples: every sample has all its views, or one reject.
    ///
    /// # Errors
    /// [`Error::Coverage`] names the first sample that is not covered.
    pub fn finish(mut self, rejects: &[Reject]) -> Result<SamplesCommit> {
        let mut rejects = rejects.to_vec();
        rejects.sort_by_key(|reject| reject.sample_id);
        let rejected: Vec<u64> = rejects.iter().map(|reject| reject.sample_id).collect();
        let range = self.identity.range(self.part);
        check_coverage(&self.file.path, range, self.identity.views.views, &self.counts, &rejected)?;
        if !self.rows.is_empty() {
            self.flush()?;
        }
        let file = self.file.publish()?;
        let text: String = rejects.iter().map(|reject| reject::to_line(reject) + "\n").collect();
        atomic::write(&layout::rejects_file(&self.cache, self.part), text.as_bytes())?;
        let rejects = RejectsStamp {
            rows: rejects.len() as u64,
            bytes: text.len() as u64,
            sha256: json::sha256_hex(text.as_bytes()),
        };
        let cache = self.identity.part_fingerprint(self.part);
        let commit = SamplesCommit { format_version: FORMAT_VERSION, part: self.part, cache, file, rejects };
        json::write(&layout::samples_commit(&self.cache, self.part), &commit)?;
        Ok(commit)
    }
}

/// Writes one teacher's features of one part. Dropping it unfinished leaves nothing.
#[derive(Debug)]
pub struct TeacherWriter {
    cache: PathBuf,
    cache_fingerprint: String,
    teacher: TeacherIdentity,
    part: u32,
    columns: [Column; 7],
    file: PartWriter,
    rules: RowRules,
    /// Rows waiting for their group to be full.
    rows: Vec<EncodedRow>,
    channels: ChannelSums,
    codec_error: Option<CodecError>,
}

impl TeacherWriter {
    /// Starts part `part` of a teacher that [`add_teacher`](crate::add_teacher) has added to the cache in the folder `cache`.
    ///
    /// # Errors
    /// [`Error::IdentityValue`] for an identity that no cache can have, or whose [`Batches`](crate::Batches) this version only reads.
    pub fn create(
        cache: &Path,
        part: u32,
        identity: &CacheIdentity,
        teacher: &TeacherIdentity,
    ) -> Result<TeacherWriter> {
        identity.validate(&layout::cache_json(cache))?;
        teacher.validate_for_writing(&layout::teacher_json(cache, &teacher.id))?;
        let path = layout::teacher_file(cache, &teacher.id, part);
        let columns = teacher_columns(teacher);
        Ok(TeacherWriter {
            cache: cache.to_path_buf(),
            cache_fingerprint: identity.part_fingerprint(part),
            teacher: teacher.clone(),
            part,
            file: PartWriter::create(&path, &columns, key_values(part, identity, Some(teacher)))?,
            columns,
            rules: RowRules::new(path, identity, part),
            rows: Vec::new(),
            channels: ChannelSums::new(teacher.width as usize),
            codec_error: None,
        })
    }

    /// Adds a row that was encoded for this teacher. Rows come sorted by (sample_id, view), as in the samples file.
    ///
    /// # Errors
    /// [`Error::RowOrder`] and [`Error::RowValue`] for a row that does not belong here.
    pub fn push(&mut self, row: EncodedRow) -> Result<()> {
        self.rules.check_encoded(&row, &self.columns)?;
        self.channels.add(&row.sums);
        if let Some(error) = &row.codec_error {
            self.codec_error.get_or_insert_default().add(error);
        }
        self.rows.push(row);
        let row_bytes = self.teacher.tokens_bytes() + self.teacher.cls_bytes() + self.teacher.cls_attn_bytes();
        if self.rows.len() * row_bytes >= ROW_GROUP_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let descriptions = self.file.writer.schema_descr().columns().to_vec();
        let columns = &self.columns;
        self.file.write_group(rows.len(), |group| {
            for (i, (column, description)) in columns.iter().zip(descriptions).enumerate() {
                let chunk = ColumnChunk::new(rows.iter().map(|row| row.pages[i].clone()));
                group.append_column(&chunk, chunk.close_result(description, column.compression())?)?;
            }
            Ok(())
        })
    }

    /// Publishes the features file and last the commit record.
    pub fn finish(mut self) -> Result<TeacherCommit> {
        if !self.rows.is_empty() {
            self.flush()?;
        }
        let commit = TeacherCommit {
            format_version: FORMAT_VERSION,
            id: self.teacher.id.clone(),
            part: self.part,
            cache: self.cache_fingerprint,
            teacher: self.teacher.fingerprint(),
            file: self.file.publish()?,
            channels: self.channels,
            codec_error: self.codec_error,
        };
        json::write(&layout::teacher_commit(&self.cache, &self.teacher.id, self.part), &commit)?;
        Ok(commit)
    }
}

/// A Parquet file under a temporary name.
#[derive(Debug)]
struct PartWriter {
    path: PathBuf,
    writer: SerializedFileWriter<HashingFile>,
    rows: u64,
}

impl PartWriter {
    fn create(path: &Path, columns: &[Column], key_values: Vec<KeyValue>) -> Result<PartWriter> {
        let sink = HashingFile { file: Some(AtomicFile::create(path)?), bytes: 0, hash: Sha256::new(), footer: None };
        let writer = SerializedFileWriter::new(sink, schema(columns), properties(columns, key_values));
        let writer = writer.map_err(|e| Error::parquet("write", path, e))?;
        Ok(PartWriter { path: path.to_path_buf(), writer, rows: 0 })
    }

    fn write_group(
        &mut self,
        rows: usize,
        fill: impl FnOnce(&mut SerializedRowGroupWriter<'_, HashingFile>) -> Result<(), ParquetError>,
    ) -> Result<()> {
        let write = || {
            let mut group = self.writer.next_row_group()?;
            fill(&mut group)?;
            group.close().map(|_| ())
        };
        write().map_err(|e| Error::parquet("write", &self.path, e))?;
        self.rows += rows as u64;
        Ok(())
    }

    fn publish(mut self) -> Result<FileStamp> {
        let mut close = || {
            // All rows have to reach the sink before it is told that the footer begins.
            self.writer.flush()?;
            self.writer.inner_mut().begin_footer();
            self.writer.finish()
        };
        close().map_err(|e: ParquetError| Error::parquet("write", &self.path, e))?;
        let sink = self.writer.inner_mut();
        let (footer_start, footer) = sink.footer.take().expect("begin_footer was called above");
        let stamp = FileStamp {
            rows: self.rows,
            bytes: sink.bytes,
            sha256: json::hex(&std::mem::take(&mut sink.hash).finalize()),
            footer_bytes: sink.bytes - footer_start,
            footer_sha256: json::hex(&footer.finalize()),
        };
        sink.file.take().expect("only publishing takes it").publish()?;
        Ok(stamp)
    }
}

/// Hashes what passes through: the commit record is of the bytes as they were meant, whatever the disk makes of them.
#[derive(Debug)]
struct HashingFile {
    /// Taken when it is published: the Parquet writer gives its sink back only by a way on which errors lose their kind.
    file: Option<AtomicFile>,
    bytes: u64,
    hash: Sha256,
    /// Where the footer begins, and the hash of it.
    footer: Option<(u64, Sha256)>,
}

impl HashingFile {
    fn begin_footer(&mut self) {
        self.footer = Some((self.bytes, Sha256::new()));
    }
}

impl Write for HashingFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let closed = || std::io::Error::other("the file is published already");
        let count = self.file.as_mut().ok_or_else(closed)?.write(bytes)?;
        self.bytes += count as u64;
        self.hash.update(&bytes[..count]);
        if let Some((_, hash)) = &mut self.footer {
            hash.update(&bytes[..count]);
        }
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.as_mut().map_or(Ok(()), |file| file.flush())
    }
}

type Group<'a> = SerializedRowGroupWriter<'a, HashingFile>;

fn fixed(bytes: &[u8]) -> FixedLenByteArray {
    ByteArray::from(bytes.to_vec()).into()
}

/// Writes the next column of the group.
fn put<T: DataType>(group: &mut Group<'_>, values: impl Iterator<Item = T::T>) -> Result<(), ParquetError> {
    let values: Vec<_> = values.collect();
    write_column::<T>(group, |column| column.write_batch(&values, None, None).map(|_| ()))
}

/// Writes the next column of the group, in which some rows have no value.
fn put_optional<T: DataType>(
    group: &mut Group<'_>,
    rows: impl Iterator<Item = Option<T::T>>,
) -> Result<(), ParquetError> {
    write_column::<T>(group, |column| {
        rows.map(|row| (i16::from(row.is_some()), row))
            .try_for_each(|(level, row)| column.write_batch(row.as_slice(), Some(&[level]), None).map(|_| ()))
    })
}

fn write_column<T: DataType>(
    group: &mut Group<'_>,
    write: impl FnOnce(&mut ColumnWriterImpl<'_, T>) -> Result<(), ParquetError>,
) -> Result<(), ParquetError> {
    let mut column =
        group.next_column()?.ok_or_else(|| ParquetError::General("more columns than the schema has".to_string()))?;
    write(column.typed::<T>())?;
    column.close()
}

#[cfg(test)]
mod tests;
