//! How samples of more than 8 bits become 8 bits.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Which levels of a sample of 16 bits become 0 and 255.
///
/// Spelled `high-byte`, `full-range`, `percentile:LOW,HIGH` or `MIN,MAX`, in recipes, flags and caches alike. Between the two levels
/// it is linear, rounded to the nearest; beyond them, samples are clipped. All color channels of an image share one window, and alpha
/// has none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum DepthWindow {
    /// 0 and 65535, by dropping the low byte: whatever the image holds.
    #[default]
    HighByte,
    /// The image's own least and greatest sample.
    FullRange,
    /// Two percentiles of the image's own samples, 0 to 100.
    Percentile(f64, f64),
    /// These two levels, of 0 to 65535, in every image.
    Levels(u16, u16),
}

impl DepthWindow {
    /// Whether this is the default, which caches do not write down.
    pub fn is_high_byte(&self) -> bool {
        *self == DepthWindow::HighByte
    }
}

impl fmt::Display for DepthWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DepthWindow::HighByte => f.write_str("high-byte"),
            DepthWindow::FullRange => f.write_str("full-range"),
            DepthWindow::Percentile(low, high) => write!(f, "percentile:{low},{high}"),
            DepthWindow::Levels(min, max) => write!(f, "{min},{max}"),
        }
    }
}

/// A depth window that means nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown depth window {found:?}; expected high-byte, full-range, percentile:LOW,HIGH with 0 <= LOW < HIGH <= 100, or MIN,MAX with \
     0 <= MIN < MAX <= 65535"
)]
pub struct BadDepthWindow {
    found: String,
}

impl FromStr for DepthWindow {
    type Err = BadDepthWindow;

    fn from_str(text: &str) -> Result<Self, BadDepthWindow> {
        let window = match text {
            "high-byte" => Some(DepthWindow::HighByte),
            "full-range" => Some(DepthWindow::FullRange),
            _ => match text.strip_prefix("percentile:") {
                Some(pair) => two::<f64>(pair)
                    .filter(|(low, high)| 0.0 <= *low && low < high && *high <= 100.0)
                    .map(|(low, high)| DepthWindow::Percentile(low, high)),
                None => two::<u16>(text).filter(|(min, max)| min < max).map(|(min, max)| DepthWindow::Levels(min, max)),
            },
        };
        window.ok_or_else(|| BadDepthWindow { found: text.to_owned() })
    }
}

fn two<T: FromStr>(pair: &str) -> Option<(T, T)> {
    let (low, high) = pair.split_once(',')?;
    Some((low.trim().parse().ok()?, high.trim().parse().ok()?))
}

impl Serialize for DepthWindow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DepthWindow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for DepthWindow {
    fn schema_name() -> Cow<'static, str> {
        "DepthWindow".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Which levels of a sample of 16 bits become 0 and 255.",
            "type": "string",
            "pattern": "^(high-byte|full-range|percentile:[0-9.]+,[0-9.]+|[0-9]+,[0-9]+)$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_window_reads_back() {
        for text in ["high-byte", "full-range", "percentile:1,99", "percentile:0.5,99.5", "0,4095", "1000,65535"] {
            let window: DepthWindow = text.parse().unwrap();
            assert_eq!(window.to_string(), text);
            let json = serde_json::to_string(&window).unwrap();
            assert_eq!(serde_json::from_str::<DepthWindow>(&json).unwrap(), window);
        }
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for text in [
            "",
            "low-byte",
            "4095",
            "4095,0",
            "7,7",
            "0,65536",
            "-1,5",
            "percentile:99,1",
            "percentile:0,101",
            "percentile:nan,5",
            "percentile:1",
        ] {
            let error = text.parse::<DepthWindow>().unwrap_err().to_string();
            assert!(error.contains("percentile:LOW,HIGH"), "{error}");
        }
    }
}
