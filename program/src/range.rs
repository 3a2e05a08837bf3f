//! Ranges of settings. Each function takes a setting's dotted name and its value, or nothing for one that is unset.

use std::ops::RangeBounds;

use crate::recipe::{Error, POSITIVE, require};

/// # Errors
/// [`Error::Invalid`] for 0.
pub fn at_least_one(field: &str, value: impl Into<Option<u64>>) -> Result<(), Error> {
    value.into().map_or(Ok(()), |value| require(value >= 1, field, value, POSITIVE))
}

/// # Errors
/// [`Error::Invalid`] for zero, negative and non-finite values.
pub fn positive(field: &str, value: impl Into<Option<f64>>) -> Result<(), Error> {
    value.into().map_or(Ok(()), |value| require(value > 0.0 && value.is_finite(), field, value, "must be positive"))
}

/// # Errors
/// [`Error::Invalid`] for negative and non-finite values.
pub fn not_negative(field: &str, value: impl Into<Option<f64>>) -> Result<(), Error> {
    let problem = "must be zero or positive";
    value.into().map_or(Ok(()), |value| require(value >= 0.0 && value.is_finite(), field, value, problem))
}

/// # Errors
/// [`Error::Invalid`] for values outside `[0, 1]`.
pub fn probability(field: &str, value: f64) -> Result<(), Error> {
    within(field, value, 0.0..=1.0, "must be a probability, from 0 to 1")
}

/// # Errors
/// [`Error::Invalid`] for values outside `[0, 1)`.
pub fn below_one(field: &str, value: f64) -> Result<(), Error> {
    within(field, value, 0.0..1.0, "must be zero or more, and less than 1")
}

/// # Errors
/// [`Error::Invalid`] with `problem` for values outside `range`.
pub fn within(field: &str, value: f64, range: impl RangeBounds<f64>, problem: &str) -> Result<(), Error> {
    require(range.contains(&value), field, value, problem)
}
