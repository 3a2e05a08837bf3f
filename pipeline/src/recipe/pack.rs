//! [`Pack`] as one word: `none`, `original` or `jpeg:SHORT_SIDE:QUALITY`.

use schemas::Pack;
use serde::{Deserialize, Deserializer, Serializer, de::Error};

pub(super) fn serialize<S: Serializer>(pack: &Pack, out: S) -> Result<S::Ok, S::Error> {
    match pack {
        Pack::None => out.serialize_str("none"),
        Pack::Original => out.serialize_str("original"),
        Pack::Jpeg { short_side, quality } => out.collect_str(&format_args!("jpeg:{short_side}:{quality}")),
    }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Pack, D::Error> {
    let text = String::deserialize(input)?;
    parse(&text).ok_or_else(|| {
        D::Error::custom(format!(
            "unknown pack {text:?}; expected none, original, or jpeg:SHORT_SIDE:QUALITY, for example jpeg:256:90 (a side of 1 to 32768 \
             pixels, a quality of 1 to 100)"
        ))
    })
}

fn parse(text: &str) -> Option<Pack> {
    match text {
        "none" => Some(Pack::None),
        "original" => Some(Pack::Original),
        _ => {
            let (short_side, quality) = text.strip_prefix("jpeg:")?.split_once(':')?;
            let (short_side, quality) = (short_side.parse().ok()?, quality.parse().ok()?);
            let good = (1..=1 << 15).contains(&short_side) && (1..=100).contains(&quality);
            good.then_some(Pack::Jpeg { short_side, quality })
        }
    }
}
