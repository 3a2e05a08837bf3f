//! `data.max_rejects`: how many images may be unusable before a build stops.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A share of the data set's images, or a number of images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaxRejects {
    /// Per cent, 0 to 100.
    Percent(f64),
    /// Images.
    Images(u64),
}

/// The smallest default limit: 1 % of a few hundred images would be two or three.
const AT_LEAST: u64 = 10;

impl MaxRejects {
    /// How many of `samples` images may be unusable; without a limit 1 %, or 10 images if that is more.
    pub(crate) fn images(limit: Option<MaxRejects>, samples: u64) -> u64 {
        let share = |percent: f64| (percent / 100.0 * samples as f64) as u64;
        match limit {
            None => share(1.0).max(AT_LEAST),
            Some(MaxRejects::Percent(percent)) => share(percent),
            Some(MaxRejects::Images(images)) => images,
        }
    }
}

impl fmt::Display for MaxRejects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaxRejects::Percent(percent) => write!(f, "{percent}%"),
            MaxRejects::Images(images) => write!(f, "{images}"),
        }
    }
}

impl FromStr for MaxRejects {
    type Err = String;

    fn from_str(text: &str) -> Result<MaxRejects, String> {
        let limit = match text.trim().strip_suffix('%') {
            Some(percent) => {
                let percent = percent.trim().parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
                percent.map(MaxRejects::Percent)
            }
            None => text.trim().parse().ok().map(MaxRejects::Images),
        };
        limit.ok_or_else(|| format!("{text:?} is neither a number of images nor a share such as 1%"))
    }
}

impl Serialize for MaxRejects {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            MaxRejects::Percent(_) => out.collect_str(self),
            MaxRejects::Images(images) => out.serialize_u64(*images),
        }
    }
}

impl<'de> Deserialize<'de> for MaxRejects {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<MaxRejects, D::Error> {
        struct Limit;
        impl Visitor<'_> for Limit {
            type Value = MaxRejects;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of images, or a share such as \"1%\"")
            }

            fn visit_i64<E: de::Error>(self, images: i64) -> Result<MaxRejects, E> {
                let images = images.try_into();
                images.map(MaxRejects::Images).map_err(|_| E::custom("a number of images cannot be negative"))
            }

            fn visit_u64<E: de::Error>(self, images: u64) -> Result<MaxRejects, E> {
                Ok(MaxRejects::Images(images))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<MaxRejects, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_shares_or_numbers() {
        let images = |text: &str, samples| MaxRejects::images(Some(text.parse().unwrap()), samples);
        assert_eq!((images("1%", 1000), images("0.5 %", 1000), images("100%", 7)), (10, 5, 7));
        assert_eq!((images("12", 5), images("0", 5)), (12, 0));
        assert_eq!((MaxRejects::images(None, 100), MaxRejects::images(None, 1_281_167)), (10, 12_811));
        for bad in ["", "%", "-1", "101%", "many", "nan%"] {
            assert!(bad.parse::<MaxRejects>().unwrap_err().contains("1%"), "{bad}");
        }
    }
}
