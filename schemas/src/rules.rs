//! What rows must satisfy, checked by writers before and by readers after.

use std::ops::Range;
use std::path::PathBuf;

use crate::columns::Column;
use crate::{
    CacheIdentity, ContentHash, EncodedRow, Error, FeatureCodec, Pack, Result, SampleRow, Scalar, TeacherIdentity,
    TeacherRow, View,
};

/// The rules of one part, and the place reached in it.
#[derive(Debug)]
pub(crate) struct RowRules {
    path: PathBuf,
    samples: Range<u64>,
    views: u16,
    labels: Option<usize>,
    pack: Pack,
    row: usize,
    before: Option<(u64, u16)>,
}

impl RowRules {
    pub(crate) fn new(path: PathBuf, identity: &CacheIdentity, part: u32) -> RowRules {
        RowRules {
            path,
            samples: identity.range(part),
            views: identity.views.views,
            labels: Some(identity.all_label_names().len()).filter(|&names| names > 0),
            pack: identity.pack,
            row: 0,
            before: None,
        }
    }

    /// Goes on to a row that could not be read, so that the rows behind it keep their numbers.
    pub(crate) fn skip_to(&mut self, row: usize) {
        self.row = row;
    }

    /// Checks the next row of a samples file.
    pub(crate) fn check_sample(&mut self, row: &SampleRow) -> Result<()> {
        self.check_place(row.sample_id, row.view.index)?;
        let View { crop, .. } = row.view;
        let size = format!("inside the image of {} x {}", row.width, row.height);
        self.check("crop", crop.fits(row.width, row.height), || format!("{crop:?}"), &size)?;
        let label = row.label.unwrap_or(0);
        let names = self.labels.unwrap_or(usize::MAX);
        let expected =
            if self.labels.is_some() { format!("one of the {names} in label_names") } else { "0 or more".to_string() };
        self.check("label", usize::try_from(label).is_ok_and(|label| label < names), || label.to_string(), &expected)?;
        let packed = self.pack != Pack::None && row.view.index == 0;
        self.check(
            "image_hash",
            row.image_hash.is_some() == packed,
            || if packed { "empty" } else { "there" }.to_string(),
            if packed {
                "there, since the cache packs images in the rows of view 0"
            } else {
                "empty, since only rows of view 0 carry images, and only where the cache packs them"
            },
        )?;
        self.row += 1;
        Ok(())
    }

    /// Checks that a row and the image to be packed with it belong together.
    pub(crate) fn check_image(&self, row: &SampleRow, image: Option<&[u8]>) -> Result<()> {
        let found = image.map(ContentHash::of);
        let show = |hash: Option<ContentHash>| hash.map_or("none".to_string(), |h| h.to_string());
        self.check(
            "image",
            found == row.image_hash,
            || format!("an image with hash {}", show(found)),
            &format!("one with the row's image_hash, {}", show(row.image_hash)),
        )
    }

    /// Checks that a row belongs at the next place of a teacher's file with these columns.
    pub(crate) fn check_encoded(&mut self, row: &EncodedRow, columns: &[Column]) -> Result<()> {
        self.check_place(row.key.sample_id, row.key.view)?;
        for (column, page) in columns.iter().zip(&row.pages) {
            let (found, expected) = (page.value, column.width());
            self.check(column.name, found == expected, || format!("{found} bytes"), &format!("{expected} bytes"))?;
        }
        self.row += 1;
        Ok(())
    }

    /// Checks the next row of a teacher's file.
    pub(crate) fn check_features(&mut self, row: &TeacherRow, teacher: &TeacherIdentity) -> Result<()> {
        self.check_place(row.key.sample_id, row.key.view)?;
        let cls = teacher.codec.cls();
        let features: [(&str, &Vec<u8>, usize, &dyn FeatureCodec); 3] = [
            ("tokens", &row.tokens, teacher.tokens_bytes(), teacher.codec.tokens()),
            ("cls", &row.cls, teacher.cls_bytes(), &cls),
            ("cls_attn", &row.cls_attn, teacher.cls_attn_bytes(), &Scalar::F16),
        ];
        for (column, bytes, expected, codec) in features {
            let found = bytes.len();
            self.check(column, found == expected, || format!("{found} bytes"), &format!("{expected} bytes"))?;
            let bad = codec.first_bad(bytes, teacher.width as usize);
            self.check(
                column,
                bad.is_none(),
                || format!("not finite at position {}", bad.unwrap_or(0)),
                "finite everywhere",
            )?;
        }
        self.row += 1;
        Ok(())
    }

    fn check_place(&mut self, sample_id: u64, view: u16) -> Result<()> {
        let Range { start, end } = self.samples;
        self.check(
            "sample_id",
            self.samples.contains(&sample_id),
            || sample_id.to_string(),
            &format!("in {start}..{end}, the part's samples"),
        )?;
        self.check(
            "view",
            view < self.views,
            || view.to_string(),
            &format!("below {}, the views per image", self.views),
        )?;
        match self.before {
            Some(before) if before >= (sample_id, view) => {
                Err(Error::RowOrder { path: self.path.clone(), row: self.row, sample_id, view, before })
            }
            _ => {
                self.before = Some((sample_id, view));
                Ok(())
            }
        }
    }

    fn check(&self, column: &str, good: bool, found: impl FnOnce() -> String, expected: &str) -> Result<()> {
        if good {
            return Ok(());
        }
        Err(Error::RowValue {
            path: self.path.clone(),
            row: self.row,
            column: column.to_string(),
            found: found(),
            expected: expected.to_string(),
        })
    }
}

/// Checks that each sample of a part has all its views or one reject. `counts` are (sample, rows of it) and `rejected` the
/// rejected samples, both ascending. Takes time by rows and rejects, not by samples: a damaged plan may promise any number.
pub(crate) fn check_coverage(
    path: &std::path::Path,
    samples: Range<u64>,
    views: u16,
    counts: &[(u64, u64)],
    rejected: &[u64],
) -> Result<()> {
    let (mut counts, mut rejected) = (counts.iter().peekable(), rejected.iter().peekable());
    for sample_id in samples {
        let rows = counts.next_if(|(id, _)| *id == sample_id).map_or(0, |(_, rows)| *rows);
        let mut rejects = 0;
        while rejected.next_if(|id| **id == sample_id).is_some() {
            rejects += 1;
        }
        // The first sample that is not covered ends the loop.
        if (rows, rejects) != (views.into(), 0) && (rows, rejects) != (0, 1) {
            return Err(Error::Coverage { path: path.to_path_buf(), sample_id, rows, rejects, views });
        }
    }
    match (counts.next().map(|(id, rows)| (*id, *rows, 0)), rejected.next().map(|id| (*id, 0, 1))) {
        (Some((sample_id, rows, rejects)), _) | (None, Some((sample_id, rows, rejects))) => {
            Err(Error::Coverage { path: path.to_path_buf(), sample_id, rows, rejects, views })
        }
        (None, None) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_names_the_first_sample_that_is_not_covered() {
        let check =
            |counts: &[(u64, u64)], rejected: &[u64]| match check_coverage("p".as_ref(), 4..7, 2, counts, rejected) {
                Ok(()) => None,
                Err(Error::Coverage { sample_id, rows, rejects, .. }) => Some((sample_id, rows, rejects)),
                Err(other) => panic!("{other}"),
            };
        assert_eq!(check(&[(4, 2), (6, 2)], &[5]), None);
        assert_eq!(check(&[], &[4, 5, 6]), None);
        assert_eq!(check(&[(4, 2), (6, 2)], &[]), Some((5, 0, 0)));
        assert_eq!(check(&[(4, 2), (5, 1), (6, 2)], &[]), Some((5, 1, 0)));
        assert_eq!(check(&[(4, 2), (5, 2), (6, 2)], &[6]), Some((6, 2, 1)));
        assert_eq!(check(&[(4, 2), (6, 2)], &[5, 5]), Some((5, 0, 2)));
        assert_eq!(check(&[(4, 2), (5, 2), (6, 2)], &[9]), Some((9, 0, 1)));
        assert_eq!(check(&[(3, 2), (4, 2), (5, 2), (6, 2)], &[]), Some((4, 0, 0)));
    }

    #[test]
    fn a_plan_that_promises_endless_samples_costs_nothing() {
        assert!(matches!(
            check_coverage("p".as_ref(), 0..u64::MAX, 1, &[(0, 1)], &[]),
            Err(Error::Coverage { sample_id: 1, .. })
        ));
    }
}
