//! Intersection over union of classes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::set::{IGNORED, MAX_CLASSES};

/// Pixels of each class in masks, in predictions, and in both, over a whole set of images.
#[derive(Debug)]
pub(crate) struct Areas {
    classes: Vec<Area>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Area {
    actual: u64,
    predicted: u64,
    both: u64,
}

/// How well masks are predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Segmentation {
    /// Mean of the classes' IoU, 0 to 1, over the classes that occur in the masks or in the predictions.
    pub miou: f64,
    /// Share of the pixels whose class is right, 0 to 1.
    pub pixel_accuracy: f64,
    /// Pixels that have a class.
    pub pixels: u64,
    /// The classes that occur, by number.
    pub classes: BTreeMap<u16, ClassIou>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClassIou {
    /// Intersection over union, 0 to 1.
    pub iou: f64,
    /// Pixels of the class in the masks.
    pub pixels: u64,
    /// Pixels that were predicted to be of the class.
    pub predicted: u64,
}

impl Areas {
    pub(crate) fn new() -> Areas {
        Areas { classes: vec![Area::default(); usize::from(MAX_CLASSES)] }
    }

    /// Counts pixels, or anything else that has a class and a predicted one. Those whose class is [`IGNORED`] do not count, whatever is
    /// predicted there.
    ///
    /// Both have the same length, and classes below [`MAX_CLASSES`]; others would be a bug.
    pub(crate) fn add(&mut self, actual: &[u16], predicted: &[u16]) {
        assert_eq!(actual.len(), predicted.len(), "a prediction for each pixel");
        for (&actual, &predicted) in actual.iter().zip(predicted) {
            if actual != IGNORED {
                self.classes[usize::from(actual)].actual += 1;
                self.classes[usize::from(predicted)].predicted += 1;
                self.classes[usize::from(actual)].both += u64::from(actual == predicted);
            }
        }
    }

    /// The IoU of a class is `both / (actual + predicted - both)` over all pixels of all images, as PASCAL VOC defines it (Everingham et al.
    /// 2010). A class in neither masks nor predictions has none and is left out of the mean, as in mmsegmentation's `IoUMetric`. `None` if
    /// no pixel was counted.
    pub(crate) fn finish(&self) -> Option<Segmentation> {
        let (mut classes, mut pixels, mut right) = (BTreeMap::new(), 0, 0);
        for (class, area) in (0..).zip(&self.classes) {
            let union = area.actual + area.predicted - area.both;
            if union > 0 {
                let iou = area.both as f64 / union as f64;
                classes.insert(class, ClassIou { iou, pixels: area.actual, predicted: area.predicted });
            }
            pixels += area.actual;
            right += area.both;
        }
        (pixels > 0).then(|| Segmentation {
            miou: classes.values().map(|class| class.iou).sum::<f64>() / classes.len() as f64,
            pixel_accuracy: right as f64 / pixels as f64,
            pixels,
            classes,
        })
    }
}

#[cfg(test)]
mod tests {
    use images::rng::{Purpose, Rng};

    use super::*;

    #[test]
    fn shares_are_those_counted_by_hand() {
        let mut areas = Areas::new();
        // Class 5 is in no mask and predicted once; class 9 is in a mask and never predicted; 3 occurs nowhere, or at an ignored pixel.
        areas.add(&[0, 0, 0, 1, 1, IGNORED], &[0, 0, 1, 1, 5, 3]);
        areas.add(&[9, 1], &[1, 1]);
        let found = areas.finish().unwrap();
        let class = |iou, pixels, predicted| ClassIou { iou, pixels, predicted };
        let expected =
            [(0, class(2.0 / 3.0, 3, 2)), (1, class(2.0 / 5.0, 3, 4)), (5, class(0.0, 0, 1)), (9, class(0.0, 1, 0))];
        assert_eq!(found.classes, expected.into());
        assert!((found.miou - (2.0 / 3.0 + 2.0 / 5.0) / 4.0).abs() < 1e-15, "{}", found.miou);
        assert_eq!((found.pixels, found.pixel_accuracy), (7, 4.0 / 7.0));
    }

    /// Sets of pixels instead of counters.
    #[test]
    fn shares_are_those_of_sets_of_pixels() {
        let mut rng = Rng::new(5, Purpose::Select, &[]);
        let mut draw = |classes: u64| -> Vec<u16> { (0..400).map(|_| rng.range(classes) as u16).collect() };
        let (mut actual, predicted) = (draw(6), draw(8));
        actual.iter_mut().step_by(7).for_each(|class| *class = IGNORED);
        let mut areas = Areas::new();
        areas.add(&actual[..150], &predicted[..150]);
        areas.add(&actual[150..], &predicted[150..]);
        let found = areas.finish().unwrap();

        let counted = || (0..400).filter(|&i| actual[i] != IGNORED);
        let of = |classes: &[u16], class| {
            counted().filter(|&i| classes[i] == class).collect::<std::collections::BTreeSet<_>>()
        };
        let mut ious = Vec::new();
        for class in 0..8 {
            let (a, b) = (of(&actual, class), of(&predicted, class));
            ious.push(a.intersection(&b).count() as f64 / a.union(&b).count() as f64);
            assert_eq!(found.classes[&class].iou, ious[usize::from(class)]);
        }
        assert!((found.miou - ious.iter().sum::<f64>() / 8.0).abs() < 1e-15);
    }

    #[test]
    fn without_a_pixel_there_is_no_result() {
        let mut areas = Areas::new();
        assert_eq!(areas.finish(), None);
        areas.add(&[IGNORED; 3], &[0, 1, 2]);
        assert_eq!(areas.finish(), None);
    }
}
