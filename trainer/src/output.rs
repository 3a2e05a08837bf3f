//! Tables of results, a row for each image: written in chunks, so that a command that is stopped goes on, and published as one file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use arrow_array::{Array, FixedSizeListArray, Float32Array, RecordBatch, StringArray, cast::AsArray};
use arrow_schema::{DataType, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use schemas::atomic::{self, AtomicFile};

#[cfg(test)]
mod tests;

/// What a table is written as, by the end of its file's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// `.parquet`: everything.
    Parquet,
    /// `.csv`: texts and numbers, with a line of names.
    Csv,
    /// `.npy`: the one column of vectors, `[N, D]` f32; the other columns in `FILE.keys.csv`.
    Npy,
}

impl Format {
    /// The format of a file that is to be written, one of `known`.
    pub(crate) fn of(path: &Path, known: &[Format]) -> anyhow::Result<Format> {
        ensure!(!storage::is_url(path), "--out {}: is written to a disk; give the name of a file", path.display());
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let found = known.iter().find(|format| format.ending() == ending).copied();
        let endings = || known.iter().map(|format| format!(".{}", format.ending())).collect::<Vec<_>>().join(" or ");
        found.with_context(|| {
            format!("--out {}: the name ends in {} to say how it is written", path.display(), endings())
        })
    }

    fn ending(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Csv => "csv",
            Format::Npy => "npy",
        }
    }
}

/// The finished chunks of a table, in a hidden folder beside it.
#[derive(Debug)]
pub(crate) struct Chunks {
    out: PathBuf,
    folder: PathBuf,
}

/// File in the folder of the chunks that says what they are of.
const ABOUT: &str = "about.json";

impl Chunks {
    /// Opens the chunks of the table `out`. `about` says what its rows depend on: chunks of something else are refused.
    pub(crate) fn open(out: &Path, about: &BTreeMap<String, String>) -> anyhow::Result<Chunks> {
        let name = out.file_name().with_context(|| format!("--out {}: names no file", out.display()))?;
        let folder = out.with_file_name(format!(".{}.chunks", name.to_string_lossy()));
        ensure!(!out.exists(), "--out {}: is there already; remove it, or give another name", out.display());
        // The table of an attempt that was killed while it wrote it.
        atomic::remove_stale(out)?;
        let path = folder.join(ABOUT);
        if path.exists() {
            let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let there: BTreeMap<String, String> = serde_json::from_slice(&text)
                .with_context(|| format!("{}: remove its folder and begin again", path.display()))?;
            let differs = about.iter().find(|(key, value)| there.get(*key) != Some(value));
            if let Some((key, value)) = differs {
                bail!(
                    "--out {}: was begun with other {key} ({}, now {value}); give the same to go on, or remove {} to begin again",
                    out.display(),
                    there.get(key).map_or("none", String::as_str),
                    folder.display()
                );
            }
        } else {
            atomic::write(&path, serde_json::to_string_pretty(about)?.as_bytes())?;
        }
        Ok(Chunks { out: out.to_path_buf(), folder })
    }

    /// Whether chunk `index` is finished.
    pub(crate) fn has(&self, index: usize) -> bool {
        self.path(index).exists()
    }

    /// Publishes a chunk.
    pub(crate) fn write(&self, index: usize, rows: &RecordBatch) -> anyhow::Result<()> {
        let mut writer = parquet_writer(&self.path(index), &rows.schema())?;
        writer.write(rows)?;
        Ok(writer.into_inner()?.publish()?)
    }

    /// Publishes the table of chunks `0..count` and removes them. Returns its rows.
    pub(crate) fn finish(self, count: usize, format: Format) -> anyhow::Result<u64> {
        let schema = self.schema(count)?;
        let rows = match format {
            Format::Parquet => self.to_parquet(count, &schema)?,
            Format::Csv => self.to_csv(count, &self.out)?,
            Format::Npy => self.to_npy(count, &schema)?,
        };
        fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))?;
        Ok(rows)
    }

    fn path(&self, index: usize) -> PathBuf {
        self.folder.join(format!("chunk-{index:06}.parquet"))
    }

    /// The batches of a chunk; none if it has no rows.
    fn read(&self, index: usize) -> anyhow::Result<Vec<RecordBatch>> {
        let path = self.path(index);
        let damaged = || format!("{}: is damaged; remove it and run the command again", path.display());
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build());
        reader.with_context(damaged)?.collect::<Result<_, _>>().with_context(damaged)
    }

    /// The columns: those of the first chunk with rows, since a chunk without any does not know how wide its vectors would be.
    fn schema(&self, count: usize) -> anyhow::Result<Arc<Schema>> {
        for index in 0..count {
            if let Some(batch) = self.read(index)?.first() {
                return Ok(batch.schema());
            }
        }
        Err(crate::data::Problem::NoImages { why: String::new() }.into())
    }

    fn to_parquet(&self, count: usize, schema: &Arc<Schema>) -> anyhow::Result<u64> {
        let mut writer = parquet_writer(&self.out, schema)?;
        let mut rows = 0;
        for index in 0..count {
            for batch in self.read(index)? {
                rows += batch.num_rows() as u64;
                writer.write(&batch)?;
            }
        }
        writer.into_inner()?.publish()?;
        Ok(rows)
    }

    /// Writes every column that is not of vectors.
    fn to_csv(&self, count: usize, out: &Path) -> anyhow::Result<u64> {
        let mut file = csv::Writer::from_writer(AtomicFile::create(out)?);
        let mut rows = 0;
        for index in 0..count {
            for batch in self.read(index)? {
                let columns: Vec<_> =
                    batch.schema().fields().iter().cloned().zip(batch.columns().iter().cloned()).collect();
                let flat: Vec<_> = columns
                    .into_iter()
                    .filter(|(field, _)| !matches!(field.data_type(), DataType::FixedSizeList(..)))
                    .collect();
                if rows == 0 {
                    file.write_record(flat.iter().map(|(field, _)| field.name()))?;
                }
                for row in 0..batch.num_rows() {
                    file.write_record(flat.iter().map(|(_, column)| text(column.as_ref(), row)))?;
                }
                rows += batch.num_rows() as u64;
            }
        }
        let file =
            file.into_inner().map_err(|e| e.into_error()).with_context(|| format!("cannot write {}", out.display()))?;
        file.publish()?;
        Ok(rows)
    }

    /// Writes the one column of vectors, and the others beside it.
    fn to_npy(&self, count: usize, schema: &Schema) -> anyhow::Result<u64> {
        let vectors: Vec<_> = schema
            .fields()
            .iter()
            .filter_map(|field| match field.data_type() {
                DataType::FixedSizeList(_, width) => Some((field.name().clone(), *width)),
                _ => None,
            })
            .collect();
        let [(name, width)] = &vectors[..] else {
            bail!("--out {}: a .npy file has one kind of features; choose it with --features", self.out.display());
        };
        let mut keys = self.out.clone().into_os_string();
        keys.push(".keys.csv");
        let rows = self.to_csv(count, Path::new(&keys))?;
        let mut file = AtomicFile::create(&self.out)?;
        file.write_all(&npy_header(rows, *width as u64))?;
        for index in 0..count {
            for batch in self.read(index)? {
                let column = batch.column_by_name(name).context("every chunk has the same columns")?;
                let values =
                    column.as_fixed_size_list().values().as_primitive::<arrow_array::types::Float32Type>().clone();
                let bytes: Vec<u8> = values.values().iter().flat_map(|value| value.to_le_bytes()).collect();
                file.write_all(&bytes)?;
            }
        }
        file.publish()?;
        Ok(rows)
    }
}

fn parquet_writer(path: &Path, schema: &Arc<Schema>) -> anyhow::Result<ArrowWriter<AtomicFile>> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        // Floats of networks do not repeat.
        .set_dictionary_enabled(false)
        .build();
    Ok(ArrowWriter::try_new(AtomicFile::create(path)?, schema.clone(), Some(properties))?)
}

/// A value as text; nothing for a null.
fn text(column: &dyn Array, row: usize) -> String {
    if column.is_null(row) {
        return String::new();
    }
    match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).to_owned(),
        DataType::Int32 => column.as_primitive::<arrow_array::types::Int32Type>().value(row).to_string(),
        DataType::Float32 => column.as_primitive::<arrow_array::types::Float32Type>().value(row).to_string(),
        DataType::FixedSizeBinary(_) => schemas::hex(column.as_fixed_size_binary().value(row)),
        other => unreachable!("no table has a column of {other}"),
    }
}

/// The header of a `.npy` file, version 1.0, with f32 `[rows, width]`: magic, and a Python dictionary that ends at a multiple of 64 bytes.
fn npy_header(rows: u64, width: u64) -> Vec<u8> {
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    const PREFIX: usize = 10;
    let padding = 64 - (PREFIX + text.len() + 1) % 64;
    text.extend(std::iter::repeat_n(' ', padding % 64));
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((text.len() as u16).to_le_bytes());
    header.extend(text.as_bytes());
    header
}

/// A column of texts.
pub(crate) fn strings<'a>(values: impl IntoIterator<Item = &'a str>) -> Arc<dyn Array> {
    Arc::new(StringArray::from_iter_values(values))
}

/// A column of vectors of `width` numbers.
pub(crate) fn vectors(values: Vec<f32>, width: usize) -> anyhow::Result<Arc<dyn Array>> {
    let item = Arc::new(arrow_schema::Field::new("item", DataType::Float32, false));
    Ok(Arc::new(FixedSizeListArray::try_new(item, i32::try_from(width)?, Arc::new(Float32Array::from(values)), None)?))
}
