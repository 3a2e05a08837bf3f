use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, UInt16Type, UInt32Type, UInt64Type};
use arrow_array::{Array, RecordBatch};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::prelude::*;

use super::*;
use crate::columns::teacher_checksum;
use crate::testing::{Tiny, affine, content_hash, encoded, files, identity, image, sample_row, teacher, teacher_row};
use crate::{
    Cache, Codec, ContentHash, CropBox, FeatureCodec, Plan, RowFeatures, RowKey, Scalar, TeacherId, TeacherRow, View,
    add_teacher, create_cache,
};

#[test]
fn what_is_written_is_read() {
    for tiny in [Tiny::usual(), Tiny::packed()] {
        write_and_read(&tiny);
    }
}

fn write_and_read(tiny: &Tiny) {
    let dir = tempfile::tempdir().unwrap();
    tiny.build(dir.path());
    let cache = Cache::open(dir.path()).unwrap();
    assert_eq!(cache.identity(), &tiny.identity);
    assert_eq!(cache.teachers().values().cloned().collect::<Vec<_>>(), tiny.teachers);
    for part in 0..3 {
        let state = cache.part_state(part).unwrap();
        assert_eq!((state.samples.is_some(), state.teachers.len()), (true, tiny.teachers.len()));
        let samples: Vec<_> = tiny.places(part).into_iter().map(|(id, view)| tiny.sample(id, view)).collect();
        let read = cache.samples_part(part).unwrap();
        assert_eq!(read.rows(), samples);
        for (row, sample) in samples.iter().enumerate() {
            let packed = sample.image_hash.map(|_| image(sample.sample_id));
            assert_eq!(read.read_image(row).unwrap(), packed);
        }
        assert!(read.read_image(samples.len()).is_err());
        assert_eq!(cache.rejects(part).unwrap(), tiny.rejects(part));
        for teacher in &tiny.teachers {
            let features = cache.teacher_part(&teacher.id, part).unwrap();
            let expected: Vec<_> =
                tiny.places(part).into_iter().map(|(id, view)| teacher_row(id, view, teacher)).collect();
            assert_eq!(features.iter().collect::<Result<Vec<_>>>().unwrap(), expected);
            for (row, sample) in samples.iter().enumerate().rev() {
                let found = features.read_row(row).unwrap();
                features.check_join(row, &found.key, &sample.row_key()).unwrap();
                assert_eq!(features.key(row).unwrap(), sample.row_key());
            }
        }
    }
}

#[test]
fn the_same_rows_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let built = |name: &str| -> Vec<(PathBuf, Vec<u8>)> {
        let root = dir.path().join(name);
        Tiny::usual().build(&root);
        files(&root).into_iter().map(|(path, bytes)| (path.strip_prefix(&root).unwrap().to_path_buf(), bytes)).collect()
    };
    let one = built("one");
    assert_eq!(one.len(), 1 + 3 * 3 + 2 * (1 + 3 * 2), "no other file is left");
    assert!(one == built("two"));
}

/// The files are ordinary Parquet: the library's own Arrow reader, which shares nothing with ours, sees the same values.
#[test]
fn other_readers_see_the_same_values() {
    let (dir, tiny) = (tempfile::tempdir().unwrap(), Tiny::usual());
    tiny.build(dir.path());
    let read = |path: &Path| -> RecordBatch {
        let file = std::fs::File::open(path).unwrap();
        let mut batches = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
        batches.next().unwrap().unwrap()
    };
    let samples = read(&layout::samples_file(dir.path(), 1));
    let rows: Vec<_> = tiny.places(1).into_iter().map(|(id, view)| sample_row(id, view)).collect();
    assert_eq!(samples.num_rows(), rows.len());
    let column = |name: &str| samples.column_by_name(name).unwrap();
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(column("sample_id").as_primitive::<UInt64Type>().value(i), row.sample_id);
        assert_eq!(column("view").as_primitive::<UInt16Type>().value(i), row.view.index);
        assert_eq!(column("key").as_string::<i32>().value(i), row.key);
        assert_eq!(column("content_hash").as_fixed_size_binary().value(i), row.content_hash.0);
        let label = column("label").as_primitive::<Int32Type>();
        assert_eq!(label.is_valid(i).then(|| label.value(i)), row.label);
        let crop = row.view.crop;
        for (name, value) in [
            ("width", row.width),
            ("height", row.height),
            ("crop_x", crop.x),
            ("crop_y", crop.y),
            ("crop_w", crop.w),
            ("crop_h", crop.h),
        ] {
            assert_eq!(column(name).as_primitive::<UInt32Type>().value(i), value, "{name}");
        }
        assert_eq!(column("flip").as_boolean().value(i), row.view.flip);
        assert!(column("image").is_null(i));
        assert_eq!(column("checksum").as_primitive::<UInt64Type>().value(i), sample_checksum(row));
    }
    for teacher in &tiny.teachers {
        let features = read(&layout::teacher_file(dir.path(), &teacher.id, 1));
        let rows: Vec<_> = tiny.places(1).into_iter().map(|(id, view)| teacher_row(id, view, teacher)).collect();
        assert_eq!(features.num_rows(), rows.len());
        let column = |name: &str| features.column_by_name(name).unwrap();
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(column("tokens").as_fixed_size_binary().value(i), row.tokens);
            assert_eq!(column("cls").as_fixed_size_binary().value(i), row.cls);
            assert_eq!(column("cls_attn").as_fixed_size_binary().value(i), row.cls_attn);
            assert_eq!(
                column("checksum").as_primitive::<UInt64Type>().value(i),
                teacher_checksum(&row.key, row.features())
            );
        }
    }
}

/// Pages that are made row by row and appended are the file that the library's own column writers make.
#[test]
fn a_teachers_file_is_the_one_that_the_library_writes() {
    for tiny in [Tiny::usual(), Tiny::packed()] {
        let dir = tempfile::tempdir().unwrap();
        tiny.build(dir.path());
        for (part, teacher) in (0..3).flat_map(|part| tiny.teachers.iter().map(move |teacher| (part, teacher))) {
            let rows: Vec<_> = tiny.places(part).into_iter().map(|(id, view)| teacher_row(id, view, teacher)).collect();
            let path = dir.path().join("reference.parquet");
            let columns = teacher_columns(teacher);
            let key_values = key_values(part, &tiny.identity, Some(teacher));
            let mut file = PartWriter::create(&path, &columns, key_values).unwrap();
            if !rows.is_empty() {
                file.write_group(rows.len(), |group| {
                    put::<Int64Type>(group, rows.iter().map(|row| row.key.sample_id.cast_signed()))?;
                    put::<parquet::data_type::Int32Type>(group, rows.iter().map(|row| row.key.view.into()))?;
                    put::<FixedLenByteArrayType>(group, rows.iter().map(|row| fixed(&row.key.content_hash.0)))?;
                    let blobs: [fn(&TeacherRow) -> &[u8]; 3] = [|row| &row.tokens, |row| &row.cls, |row| &row.cls_attn];
                    for blob in blobs {
                        put::<FixedLenByteArrayType>(group, rows.iter().map(|row| fixed(blob(row))))?;
                    }
                    let checksum = |row: &TeacherRow| teacher_checksum(&row.key, row.features()).cast_signed();
                    put::<Int64Type>(group, rows.iter().map(checksum))
                })
                .unwrap();
            }
            file.publish().unwrap();
            let written = std::fs::read(layout::teacher_file(dir.path(), &teacher.id, part)).unwrap();
            assert!(written == std::fs::read(&path).unwrap(), "part {part} of {}", teacher.id);
        }
    }
}

/// Numbers are stored as their codec stores them; what it loses and the sums of what is stored come with the row.
#[test]
fn a_row_of_numbers_is_encoded_and_measured() {
    for codec in [Codec::F32, Codec::F16, Codec::Bf16, affine(8)] {
        let teacher = teacher("any", codec);
        let given: Vec<f32> = (0..9 * 8).map(|i| (i * 37 % 64) as f32 / 7.0 - 4.0).collect();
        let features = RowFeatures { tokens: &given, cls: &given[..8], cls_attn: &given[..9] };
        let row = EncodedRow::encode(&teacher, RowKey::default(), features).unwrap();
        let store = |codec: &dyn FeatureCodec, values: &[f32]| {
            let mut bytes = Vec::new();
            codec.encode(values, 8, &mut bytes).map(|()| bytes).unwrap()
        };
        let stored = TeacherRow {
            key: RowKey::default(),
            tokens: store(teacher.codec.tokens(), &given),
            cls: store(&teacher.codec.cls(), &given[..8]),
            cls_attn: store(&Scalar::F16, &given[..9]),
        };
        let same = EncodedRow::from_stored(&teacher, stored.key, stored.features(), None).unwrap();
        for (page, other) in row.pages.iter().zip(&same.pages) {
            assert_eq!(page.bytes, other.bytes);
        }
        assert_eq!((&row.sums, row.sums.count), (&same.sums, 9));
        let mut decoded = Vec::new();
        teacher.decode_tokens(&stored.tokens, &mut decoded).unwrap();
        let lost = (decoded != given).then(|| CodecError::measure(&given, &decoded, 8));
        assert_eq!((row.codec_error.is_some(), row.codec_error), (!teacher.codec.tokens().is_exact(), lost));
    }
}

#[test]
fn what_is_no_row_of_a_teacher_is_refused() {
    let teacher = teacher("any", Codec::F16);
    let (tokens, cls, cls_attn) = (vec![0; 9 * 8 * 2], vec![0; 8 * 2], vec![0; 9 * 2]);
    let refused = |tokens: &[u8], cls: &[u8], cls_attn: &[u8]| {
        let features = RowFeatures { tokens, cls, cls_attn };
        match EncodedRow::from_stored(&teacher, RowKey::default(), features, None) {
            Err(Error::Feature { column, .. }) => Some(column),
            Err(other) => panic!("{other}"),
            Ok(_) => None,
        }
    };
    assert_eq!(refused(&tokens, &cls, &cls_attn), None);
    assert_eq!(refused(&tokens[2..], &cls, &cls_attn), Some("tokens"));
    assert_eq!(refused(&tokens, &cls[1..], &cls_attn), Some("cls"));
    assert_eq!(refused(&tokens, &cls, &[]), Some("cls_attn"));
    let infinite = [0x00, 0x7c].repeat(9);
    assert_eq!(refused(&tokens, &cls, &infinite), Some("cls_attn"));

    // A row of another teacher is refused by the writer.
    let (dir, tiny) = (tempfile::tempdir().unwrap(), Tiny::usual());
    create_cache(dir.path(), &tiny.identity).unwrap();
    let mut writer = TeacherWriter::create(dir.path(), 0, &tiny.identity, &tiny.teachers[1]).unwrap();
    let row = encoded(&teacher_row(0, 0, &tiny.teachers[0]), &tiny.teachers[0]);
    assert!(matches!(writer.push(row), Err(Error::RowValue { column, .. }) if column == "tokens"));
    let earlier = TeacherIdentity { batches: crate::Batches::Rows, ..tiny.teachers[0].clone() };
    let refused = TeacherWriter::create(dir.path(), 0, &tiny.identity, &earlier).unwrap_err();
    assert!(matches!(refused, Error::IdentityValue { field, .. } if field == "batches"));
}

/// Rows of 8 MB, more of them than one row group holds, read from several threads at once.
#[test]
fn rows_of_megabytes_in_several_groups() {
    let dir = tempfile::tempdir().unwrap();
    let mut identity = identity();
    identity.dataset.samples = 11;
    identity.plan = Plan { samples: 11, part_samples: 11 };
    identity.views.views = 1;
    let mut teacher = teacher("huge", Codec::F32);
    (teacher.grid, teacher.patch_size, teacher.input_size, teacher.width) = (32, 14, 448, 2048);
    create_cache(dir.path(), &identity).unwrap();
    add_teacher(dir.path(), &teacher).unwrap();
    let mut writer = TeacherWriter::create(dir.path(), 0, &identity, &teacher).unwrap();
    let mut expected = teacher_row(0, 0, &teacher);
    assert_eq!(expected.tokens.len(), 8 << 20);
    for id in 0..11 {
        (expected.key.sample_id, expected.key.content_hash, expected.tokens[77]) = (id, content_hash(id), id as u8);
        writer.push(encoded(&expected, &teacher)).unwrap();
    }
    writer.finish().unwrap();
    let features = Cache::open(dir.path()).unwrap().teacher_part(&teacher.id, 0).unwrap();
    assert_eq!((features.rows(), features.file().groups.len()), (11, 2));
    std::thread::scope(|scope| {
        for start in 0..3 {
            let (features, mut expected) = (&features, expected.clone());
            scope.spawn(move || {
                for id in (start..11).step_by(3) {
                    (expected.key.sample_id, expected.key.content_hash, expected.tokens[77]) =
                        (id, content_hash(id), id as u8);
                    assert!(features.read_row(id as usize).unwrap() == expected);
                }
            });
        }
    });
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let (dir, tiny) = (tempfile::tempdir().unwrap(), Tiny::usual());
    create_cache(dir.path(), &tiny.identity).unwrap();
    let before = files(dir.path());
    let mut samples = SamplesWriter::create(dir.path(), 0, &tiny.identity).unwrap();
    samples.push(&sample_row(0, 0)).unwrap();
    let mut features = TeacherWriter::create(dir.path(), 0, &tiny.identity, &tiny.teachers[0]).unwrap();
    features.push(encoded(&teacher_row(0, 0, &tiny.teachers[0]), &tiny.teachers[0])).unwrap();
    assert_eq!(files(dir.path()).len(), before.len() + 2);
    drop((samples, features));
    assert_eq!(files(dir.path()), before);
}

#[test]
fn a_part_without_rows_is_a_part() {
    let (dir, mut tiny) = (tempfile::tempdir().unwrap(), Tiny::usual());
    tiny.rejected = vec![4, 5, 6, 7];
    tiny.build(dir.path());
    let cache = Cache::open(dir.path()).unwrap();
    assert!(cache.samples(1).unwrap().is_empty());
    assert_eq!(cache.rejects(1).unwrap().len(), 4);
    assert_eq!(cache.teacher_part(&TeacherId::new("clip").unwrap(), 1).unwrap().rows(), 0);
    assert!(crate::verify(dir.path(), &mut |_| {}).unwrap().problems.is_empty());
}

fn any_row() -> impl Strategy<Value = (SampleRow, Option<Vec<u8>>)> {
    let numbers = (any::<u64>(), any::<[u32; 6]>(), any::<u16>(), any::<bool>());
    let rest = (
        ".{0,20}",
        any::<[u8; 16]>(),
        any::<Option<i32>>(),
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..50)),
    );
    (numbers, rest).prop_map(|((sample_id, [width, height, x, y, w, h], index, flip), (key, hash, label, image))| {
        let row = SampleRow {
            sample_id,
            view: View { index, crop: CropBox { x, y, w, h }, flip },
            key,
            content_hash: ContentHash(hash),
            label,
            width,
            height,
            image_hash: image.as_deref().map(ContentHash::of),
        };
        (row, image)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any values, packed images and pages with many rows among them, past the rules that today's caches add.
    #[test]
    fn any_samples_rows_survive(rows in proptest::collection::vec(any_row(), 1..700)) {
        let dir = tempfile::tempdir().unwrap();
        let identity = identity();
        create_cache(dir.path(), &identity).unwrap();
        let mut writer = SamplesWriter::create(dir.path(), 0, &identity).unwrap();
        for chunk in rows.chunks(500) {
            writer.rows = chunk.iter().map(|(row, _)| row.clone()).collect();
            writer.images = chunk.iter().map(|(_, image)| image.clone().map(Bytes::from)).collect();
            writer.flush().unwrap();
        }
        let file = writer.file.publish().unwrap();
        let rejects = RejectsStamp { rows: 0, bytes: 0, sha256: String::new() };
        let commit = SamplesCommit { format_version: 1, part: 0, cache: identity.fingerprint(), file, rejects };
        let samples = crate::samples_file::SamplesFile::open(dir.path(), 0, &identity, &commit).unwrap();
        for (i, (row, image)) in rows.iter().enumerate() {
            prop_assert_eq!(&samples.image(i, row).unwrap(), image);
        }
        let rows: Vec<_> = rows.into_iter().map(|(row, _)| row).collect();
        prop_assert_eq!(samples.read_unchecked().unwrap(), rows);
    }

    #[test]
    fn any_features_survive(seeds in proptest::collection::vec(any::<u64>(), 1..8), f16 in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let identity = identity();
        let teacher = teacher("any", if f16 { Codec::F16 } else { Codec::F32 });
        create_cache(dir.path(), &identity).unwrap();
        add_teacher(dir.path(), &teacher).unwrap();
        let mut writer = TeacherWriter::create(dir.path(), 0, &identity, &teacher).unwrap();
        let mut rows = Vec::new();
        for (place, seed) in seeds.iter().enumerate() {
            let mut row = teacher_row(place as u64 / 2, place as u16 % 2, &teacher);
            // Any bits but one: without the highest of the exponent, a value is finite.
            for (i, byte) in row.tokens.iter_mut().chain(&mut row.cls_attn).enumerate() {
                *byte = seed.rotate_left(i as u32 * 7) as u8 & !0x40;
            }
            writer.push(encoded(&row, &teacher)).unwrap();
            rows.push(row);
        }
        writer.finish().unwrap();
        let features = Cache::open(dir.path()).unwrap().teacher_part(&teacher.id, 0).unwrap();
        prop_assert_eq!(features.iter().collect::<Result<Vec<_>>>().unwrap(), rows);
    }
}
