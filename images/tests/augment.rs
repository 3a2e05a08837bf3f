//! RandAugment's operations beside timm's on Pillow: equal arguments and equal bytes.
//!
//! The expectations come from `scripts/golden/augment.py`. Nothing here needs Python but the last test, which says that it was skipped
//! where there is none.

use std::path::{Path, PathBuf};
use std::process::Command;

use images::RgbImage;
use images::augment::{Interpolation, Op, OpKind};
use sha2::{Digest, Sha256};

const FILL: [u8; 3] = [124, 116, 104];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn golden() -> PathBuf {
    root().join("tests/golden/augment")
}

/// As the script writes it: the first 128 bits of the pixels' SHA-256.
fn digest(img: &RgbImage) -> String {
    Sha256::digest(&img.data)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The argument that an operation has in timm, if it has one.
fn arg(op: Op) -> Option<f64> {
    match op {
        Op::AutoContrast | Op::Equalize | Op::Invert => None,
        Op::Posterize(bits) => Some(f64::from(bits)),
        Op::Solarize(from) => Some(f64::from(from)),
        Op::SolarizeAdd(add) => Some(f64::from(add)),
        Op::Rotate(x)
        | Op::Color(x)
        | Op::Contrast(x)
        | Op::Brightness(x)
        | Op::Sharpness(x)
        | Op::ShearX(x)
        | Op::ShearY(x)
        | Op::TranslateX(x)
        | Op::TranslateY(x) => Some(x),
    }
}

#[test]
fn every_operation_gives_pillows_bytes() {
    let table = std::fs::read_to_string(golden().join("ops.tsv")).unwrap();
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for row in table.lines().skip(1) {
        let [name, width, height, kind, magnitude, negate, expected_arg, bilinear, bicubic] =
            row.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let img = RgbImage {
            width: width.parse().unwrap(),
            height: height.parse().unwrap(),
            data: std::fs::read(golden().join("inputs").join(format!("{name}.rgb"))).unwrap(),
        };
        let op = OpKind::ALL
            .into_iter()
            .find(|op| format!("{op:?}") == kind)
            .unwrap()
            .at(magnitude.parse().unwrap(), negate == "1");
        let what = format!("{name}: {kind} at {magnitude}, negated {negate}");
        if arg(op) != expected_arg.parse().ok() {
            wrong.push(format!("{what}: {op:?} instead of {expected_arg}"));
        }
        for (interpolation, expected) in [(Interpolation::Bilinear, bilinear), (Interpolation::Bicubic, bicubic)] {
            compared += 1;
            if digest(&op.apply(&img, interpolation, FILL)) != expected {
                wrong.push(format!("{what}, {interpolation:?}: other pixels"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared >= 1_500, "{compared} results are fewer than this test promises");
}

/// The expectations are what timm and Pillow say today, not what they once said.
#[test]
fn timm_still_says_the_same() {
    let python = Command::new(root().join("scripts/python-env"))
        .arg("--if-present")
        .output()
        .expect("scripts/python-env can be started");
    if !python.status.success() {
        eprintln!("skipped: scripts/python-env has not been run, so there is no timm to ask");
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let run = Command::new(String::from_utf8(python.stdout).unwrap().trim())
        .arg(root().join("scripts/golden/augment.py"))
        .arg("--out")
        .arg(out.path())
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let (fresh, committed) =
        (std::fs::read(out.path().join("ops.tsv")).unwrap(), std::fs::read(golden().join("ops.tsv")).unwrap());
    assert!(fresh == committed, "ops.tsv differs; see what changed, then run scripts/golden/augment.py on purpose");
}
