//! Teachers against transformers, timm and open_clip, on the golden files of `tests/golden/teachers` (see the README there) and,
//! where Python is, on larger random towers; every stage compared.

#![allow(clippy::unwrap_used, reason = "a test states what it expects by unwrapping")]
#![allow(clippy::disallowed_methods, reason = "tests write throw-away folders")]

mod clip_layouts;
mod dino_layouts;
mod golden;
mod python;
mod renaming;
mod support;
mod vit_layouts;
