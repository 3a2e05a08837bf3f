//! What the weights of a fine-tuning depend on besides its recipe: a resume with another value is refused.

use std::collections::BTreeMap;

use images::ImageSource;

use crate::data::classes::{Classes, Matching};
use crate::eval::sets::images_fact;
use crate::pretrained::depth_window;
use crate::pretrained::finetune_init::Start;
use crate::train::finetuned::digest;

/// Facts by name, with their values as `state.json` has them.
pub(super) fn data_identity(
    start: &Start,
    train: &ImageSource,
    test: &ImageSource,
    classes: &Classes,
    matching: Matching,
) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::from([
        ("init".to_owned(), format!("SHA-256 {}", start.sha256)),
        ("train".to_owned(), images_fact(train)),
        ("test".to_owned(), images_fact(test)),
        ("classes".to_owned(), format!("{} classes, {}", classes.len(), digest(classes.names()))),
        ("image_code".to_owned(), images::IMAGE_CODE.to_owned()),
    ]);
    let window = train.decoder().window();
    if !window.is_high_byte() {
        facts.insert(depth_window::FACT.to_owned(), window.to_string());
    }
    if !matching.is_auto() {
        facts.insert("match_classes".to_owned(), format!("{matching:?}"));
    }
    facts
}
