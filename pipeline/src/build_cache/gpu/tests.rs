//! The GPU's thread, on a CPU: what it computes and converts is what a build on a CPU stores.
#![allow(clippy::disallowed_methods, reason = "tests write throw-away files")]

use std::path::Path;
use std::thread;

use images::RgbImage;
use images::rng::{Purpose, Rng};
use models::teacher::Teacher;
use schemas::{
    CacheIdentity, Codec, ContentHash, CropBox, DatasetIdentity, EncodedRow, FORMAT_VERSION, Pack, Plan, SampleRow,
    TeacherCommit, TeacherId, TeacherIdentity, TeacherWriter, View, ViewIdentity, ViewPolicy,
};
use tch::Kind;

use super::*;
use crate::build_cache::identity::{ForwardPass, teacher_identity};
use crate::build_cache::infer::{Compute, with_inference};
use crate::build_cache::network::BuildTeacher;
use crate::build_cache::parallel::Stop;
use crate::build_cache::unstorable::Unstorable;

#[path = "../../../tests/cli/teacher.rs"]
mod tiny;

const ROWS: usize = 5;
const SIDE: u32 = 16;

fn build_teacher(dir: &Path, codec: Codec) -> BuildTeacher {
    let model = Teacher::load(dir, Device::Cpu).unwrap();
    let pass = ForwardPass { grid: 4, batch_size: 8, device: Device::Cpu, precision: Precision::F32 };
    let id = TeacherId::new("tiny").unwrap();
    BuildTeacher { identity: teacher_identity(&id, "a test", model.info(), codec, pass).unwrap(), model }
}

fn pixels() -> Pixels {
    let image = |row: usize| {
        let mut rng = Rng::new(1, Purpose::Select, &[row as u64]);
        let data = (0..SIDE * SIDE * 3).map(|_| rng.range(256) as u8).collect();
        RgbImage { width: SIDE, height: SIDE, data }
    };
    BTreeMap::from([(SIDE, (0..ROWS).map(image).collect())])
}

fn sample_rows() -> Vec<SampleRow> {
    let row = |sample_id: u64| SampleRow {
        sample_id,
        view: View { index: 0, crop: CropBox { x: 0, y: 0, w: SIDE, h: SIDE }, flip: false },
        key: format!("{sample_id}.png"),
        content_hash: ContentHash::of(&sample_id.to_le_bytes()),
        label: None,
        width: SIDE,
        height: SIDE,
        image_hash: None,
    };
    (0..ROWS as u64).map(row).collect()
}

/// What the commit record of a part with these rows says: hashes of the stored bytes, sums, what the codec lost.
fn commit(teacher: &TeacherIdentity, rows: Vec<EncodedRow>) -> TeacherCommit {
    let dir = tempfile::tempdir().unwrap();
    let samples = ROWS as u64;
    let identity = CacheIdentity {
        format_version: FORMAT_VERSION,
        dataset: DatasetIdentity { kind: "folder".to_owned(), samples, digest: "ab".repeat(32) },
        image_code: "test 1".to_owned(),
        views: ViewIdentity { policy: ViewPolicy::Full, views: 1, seed: 0, filter: "bicubic".to_owned() },
        plan: Plan { samples, part_samples: samples },
        pack: Pack::None,
        depth_window: schemas::DepthWindow::HighByte,
        label_names: Vec::new(),
        dedup: false,
        generations: Vec::new(),
    };
    schemas::create_cache(dir.path(), &identity).unwrap();
    schemas::add_teacher(dir.path(), teacher).unwrap();
    let mut writer = TeacherWriter::create(dir.path(), 0, &identity, teacher).unwrap();
    rows.into_iter().for_each(|row| writer.push(row).unwrap());
    writer.finish().unwrap()
}

/// The rows of a batch that was asked for twice at once, as two threads do.
fn through_the_lane(teacher: &BuildTeacher) -> Vec<EncodedRow> {
    let timings = Timings::default();
    thread::scope(|scope| {
        let (lane, requests) = Lane::new(Device::Cpu);
        let networks = [teacher.network()];
        let timings = &timings;
        scope.spawn(move || serve(&requests, Device::Cpu, &networks, Precision::F32, timings));
        let asked = [lane.clone(), lane]
            .map(|lane| scope.spawn(move || lane.run(&[0], &pixels(), ROWS).map(|mut all| all.remove(0))));
        let [features, _again] = asked.map(|thread| thread.join().unwrap().unwrap());
        features.encode(&teacher.identity, &sample_rows()).unwrap().into_iter().map(Result::unwrap).collect()
    })
}

fn on_a_cpu(teacher: &BuildTeacher) -> Vec<EncodedRow> {
    let compute = Compute {
        device: Device::Cpu,
        precision: Precision::F32,
        threads: 1,
        pause_per_row: std::time::Duration::ZERO,
    };
    with_inference(compute, &|| vec![teacher.network()], &Timings::default(), |inference| {
        let mut features = inference[0].run(&[0], &pixels(), ROWS, &Stop::default()).unwrap();
        features.remove(0).encode(&teacher.identity, &sample_rows()).unwrap().into_iter().map(Result::unwrap).collect()
    })
}

#[test]
fn features_converted_on_the_device_are_stored_as_those_of_the_host() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_teacher(dir.path(), 4, 1);
    let affine = schemas::Affine { scale: vec![0.05; 32], offset: vec![0.0; 32], outliers: vec![3], images: 1 };
    for codec in [Codec::F32, Codec::F16, Codec::Bf16, Codec::I8(affine)] {
        let teacher = build_teacher(dir.path(), codec);
        let [device, host] =
            [through_the_lane(&teacher), on_a_cpu(&teacher)].map(|rows| commit(&teacher.identity, rows));
        assert_eq!((device.file, device.channels), (host.file, host.channels), "{}", teacher.identity.codec);
        // The device adds the same squares in another order.
        assert_eq!(device.codec_error.is_none(), teacher.identity.codec.tokens().is_exact());
        let (Some(device), Some(host)) = (device.codec_error, host.codec_error) else { continue };
        assert_eq!(device.tokens, host.tokens);
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * b.abs();
        assert!(close(device.relative_l2(), host.relative_l2()) && close(device.mean_cos(), host.mean_cos()));
        assert!(close(device.cos_min, host.cos_min) && host.relative_l2() > 0.0);
        assert_eq!(device.worst_channel().unwrap().0, host.worst_channel().unwrap().0);
    }
}

#[test]
fn a_value_that_cannot_be_stored_is_named_by_teacher_and_image() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_teacher(dir.path(), 4, 1);
    let teacher = build_teacher(dir.path(), Codec::F16);
    let output =
        teacher.network().forward(&Tensor::zeros([5, 3, 16, 16], (Kind::Uint8, Device::Cpu)), Precision::F32).unwrap();
    let _ = output.tokens.get(2).get(7).get(1).fill_(1e6);
    let mut features = Features::default();
    features.push(&output, Some(schemas::Scalar::F16)).unwrap();
    let encode = |features: Features| features.encode(&teacher.identity, &sample_rows()).unwrap();
    let mut unstorable = Unstorable::default();
    let rows = unstorable.sort_out(&teacher.identity, &sample_rows(), encode(features), false).unwrap();
    assert_eq!(rows.iter().map(|row| row.key().sample_id).collect::<Vec<_>>(), [0, 1, 3, 4]);
    let rejects: Vec<_> = unstorable.into_rejects().collect();
    let [reject] = &rejects[..] else { panic!("{rejects:?}") };
    assert_eq!((reject.sample_id, reject.key.as_str()), (2, "2.png"));
    let start = "non-finite: teacher tiny, layer last, view 0: tokens: value inf at position ";
    assert!(reject.reason.starts_with(start) && reject.reason.contains("as f16"), "{}", reject.reason);
    // Rows that are committed cannot be rejected any more.
    let mut features = Features::default();
    features.push(&output, Some(schemas::Scalar::F16)).unwrap();
    let refused =
        Unstorable::default().sort_out(&teacher.identity, &sample_rows(), encode(features), true).unwrap_err();
    assert!(
        format!("{refused:#}").contains("teacher tiny, image \"2.png\" (sample 2, view 0): tokens: "),
        "{refused:#}"
    );
}

/// A batch that memory does not suffice for comes in parts, whose rows stay in order.
#[test]
fn a_batch_in_parts_has_all_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_teacher(dir.path(), 4, 1);
    let affine = schemas::Affine { scale: vec![0.05; 32], offset: vec![0.0; 32], outliers: vec![], images: 1 };
    for codec in [Codec::F16, Codec::I8(affine)] {
        let teacher = build_teacher(dir.path(), codec);
        let stacked = BTreeMap::from([(SIDE, stack(&pixels()[&SIDE], Device::Cpu).unwrap())]);
        let timings = Timings::default();
        let networks = [teacher.network()];
        let mut features =
            launch(Device::Cpu, &networks, Precision::F32, &[0], &stacked, ROWS, &mut [2], &timings).unwrap();
        let rows = features.remove(0).encode(&teacher.identity, &sample_rows()).unwrap();
        let rows: Vec<_> = rows.into_iter().map(Result::unwrap).collect();
        assert_eq!(rows.len(), ROWS);
        let [parts, whole] = [rows, on_a_cpu(&teacher)].map(|rows| commit(&teacher.identity, rows).channels);
        // Another batch size may add up in another order.
        for (a, b) in parts.sum_sq.iter().zip(&whole.sum_sq) {
            assert!((a - b).abs() <= 0.01 * b, "{a} {b}");
        }
    }
}

/// Asks libtorch for more memory than there are addresses for.
fn run_out() {
    let _ = Tensor::zeros([1 << 52], (Kind::Float, Device::Cpu));
}

#[test]
fn rows_that_do_not_fit_are_taken_in_parts_and_in_order() {
    for (n, fits, parts) in
        [(8, 8, vec![8]), (8, 7, vec![4, 4]), (8, 3, vec![2, 2, 2, 2]), (7, 3, vec![2, 2, 2, 1]), (5, 1, vec![1; 5])]
    {
        let (mut at_once, mut done, mut sizes) = (usize::MAX, 0, Vec::new());
        let mut pass = |rows: Range<usize>| {
            if rows.len() > fits {
                run_out();
            }
            assert_eq!(rows.start, done, "in order and once");
            done = rows.end;
            sizes.push(rows.len());
            Ok(())
        };
        in_parts(n, &mut at_once, &mut pass).unwrap();
        // What was learned stays: the next batch begins with it.
        let learned = at_once;
        assert_eq!(done, n);
        done = 0;
        in_parts(n, &mut at_once, |rows| {
            assert!(rows.len() <= fits && rows.start == done);
            done = rows.end;
            Ok(())
        })
        .unwrap();
        assert_eq!((done, at_once), (n, learned));
        assert_eq!(sizes, parts, "{n} rows, {fits} fit");
    }
}

#[test]
fn one_row_too_many_and_other_failures_are_told() {
    let refused = in_parts(4, &mut 4, |_| {
        run_out();
        Ok(())
    });
    let said = format!("{:#}", refused.unwrap_err());
    assert!(said.contains("for one image at a time: "), "{said}");
    let mut at_once = 4;
    let refused = in_parts(4, &mut at_once, |_| anyhow::bail!("not finite"));
    assert_eq!(refused.unwrap_err().to_string(), "not finite");
    assert_eq!(at_once, 4);
}
