//! Everything that the programs ask of an image source.

use images::{ImageSource, SourceError};

/// More images than this are not read one by one.
const READ: usize = 64;

pub fn read(spec: &str, file_bytes: usize) {
    let said = |error: &SourceError| assert!(!error.to_string().is_empty());
    let Ok(source) = ImageSource::open(spec).inspect_err(said) else {
        return;
    };
    assert!(!source.is_empty() && source.files() == 1);
    assert_eq!(source.identity().samples, source.len() as u64);
    for index in (0..source.len()).take(READ).chain([source.len() - 1]) {
        assert_eq!(source.find(source.key(index)), Some(index));
        if let (Some(label), names) = (source.label(index), source.label_names()) {
            assert!(label >= 0 && (names.is_empty() || (label as usize) < names.len()));
        }
        match source.read(index) {
            Ok(bytes) => assert!(source.kind() == "parquet" || bytes.len() <= file_bytes),
            Err(error) => {
                said(&error);
                let _ = error.is_bad_record();
            }
        }
    }
    for skipped in &source.findings().skipped {
        assert!(!skipped.reason.is_empty());
    }
    let limited = source.limit(1);
    assert_eq!((limited.len(), limited.find(limited.key(0))), (1, Some(0)));
}
