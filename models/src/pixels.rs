//! The statistics of pixels by which images are normalized.

/// Mean of each channel (R, G, B) of ImageNet's pixels in 0..1, which every student's input is normalized by.
pub const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// Their standard deviation.
pub const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];
