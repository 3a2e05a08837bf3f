//! Checks that configurations share.

use std::ops::RangeInclusive;

use crate::error::{Error, Result};

/// Larger than any size of a published network; more is damage.
pub(crate) const MAX_SIZE: i64 = 65_536;

/// Refuses the first field that is not at least 1.
pub(crate) fn positive(fields: &[(&'static str, i64)]) -> Result<()> {
    match fields.iter().find(|(_, value)| *value < 1) {
        Some((field, value)) => {
            Err(Error::Config { field, value: value.to_string(), reason: "must be at least 1".to_owned() })
        }
        None => Ok(()),
    }
}

/// Refuses the first field outside `range`.
pub(crate) fn within(fields: &[(&'static str, i64)], range: RangeInclusive<i64>) -> Result<()> {
    match fields.iter().find(|(_, value)| !range.contains(value)) {
        Some((field, value)) => {
            let reason = format!("must be in {}..={}", range.start(), range.end());
            Err(Error::Config { field, value: value.to_string(), reason })
        }
        None => Ok(()),
    }
}

/// Refuses a width that has no sine-cosine positions, or that the heads do not divide.
pub(crate) fn width_and_heads(
    (field, width): (&'static str, i64),
    (heads_field, heads): (&'static str, i64),
) -> Result<()> {
    let reason = if width % 4 != 0 {
        "4 must divide it, for the sine-cosine positions".to_owned()
    } else if width % heads != 0 {
        format!("{heads_field} = {heads} must divide it")
    } else {
        return Ok(());
    };
    Err(Error::Config { field, value: width.to_string(), reason })
}
