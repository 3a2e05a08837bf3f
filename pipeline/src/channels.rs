//! One value for each channel, as settings give it.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

/// One value for each channel (R, G, B).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Channels(pub [f64; 3]);

impl FromStr for Channels {
    type Err = String;

    /// `0.5` for all channels, or `0.485,0.456,0.406`.
    fn from_str(text: &str) -> Result<Channels, String> {
        let values: Result<Vec<f64>, _> = text.split(',').map(|v| v.trim().parse()).collect();
        match values.as_deref() {
            Ok([one]) => Ok(Channels([*one; 3])),
            Ok([r, g, b]) => Ok(Channels([*r, *g, *b])),
            _ => Err("expected one number, or three with commas, for example 0.485,0.456,0.406".to_owned()),
        }
    }
}

impl<'de> Deserialize<'de> for Channels {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Channels, D::Error> {
        struct One;
        impl<'de> Visitor<'de> for One {
            type Value = Channels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one number, or a list of three (R, G, B)")
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Channels, E> {
                Ok(Channels([value; 3]))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Channels, E> {
                Ok(Channels([value as f64; 3]))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Channels, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Channels, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element::<f64>()? {
                    values.push(value);
                }
                let count = values.len();
                let values = values.try_into();
                values.map(Channels).map_err(|_| de::Error::invalid_length(count, &self))
            }
        }
        from.deserialize_any(One)
    }
}
