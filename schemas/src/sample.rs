//! A samples row: which image, which view of it.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The first 16 bytes of the SHA-256 of an image file's original bytes. Joins features to images, and keys the randomness of
/// views, so a copy of an image in another data set gets the same views.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 16]);

impl ContentHash {
    /// The hash of a file's bytes.
    pub fn of(bytes: &[u8]) -> ContentHash {
        let digest = Sha256::digest(bytes);
        let mut hash = [0; 16];
        hash.copy_from_slice(&digest[..16]);
        ContentHash(hash)
    }

    /// From 32 lower-case hexadecimal digits.
    pub fn from_hex(hex: &str) -> Option<ContentHash> {
        let mut hash = [0; 16];
        crate::json::parse_hex(hex, &mut hash)?;
        Some(ContentHash(hash))
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentHash({self})")
    }
}

impl Serialize for ContentHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let hex = String::deserialize(deserializer)?;
        ContentHash::from_hex(&hex).ok_or_else(|| serde::de::Error::custom("a content hash is 32 hexadecimal digits"))
    }
}

/// A crop in pixels of the decoded, upright image: columns `x .. x + w`, rows `y .. y + h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropBox {
    /// Left edge.
    pub x: u32,
    /// Upper edge.
    pub y: u32,
    /// Width, at least 1.
    pub w: u32,
    /// Height, at least 1.
    pub h: u32,
}

impl CropBox {
    /// Whether the box is not empty and lies inside an image of this size.
    pub fn fits(&self, width: u32, height: u32) -> bool {
        let inside =
            |start: u32, length: u32, size: u32| length > 0 && start.checked_add(length).is_some_and(|end| end <= size);
        inside(self.x, self.w, width) && inside(self.y, self.h, height)
    }
}

/// What the teachers saw of an image, and what the student must be shown: crop first, then resize, then mirror if `flip`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Number of this view among those of its image.
    pub index: u16,
    /// The crop.
    pub crop: CropBox,
    /// Whether the crop is mirrored left to right.
    pub flip: bool,
}

/// Which view of which image a row is of. Samples rows and teachers' rows carry it, and are joined by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowKey {
    /// Position of the image in its data set's order.
    pub sample_id: u64,
    /// Number of the view among those of its image.
    pub view: u16,
    /// Hash of the image file's bytes.
    pub content_hash: ContentHash,
}

/// One row of a samples file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleRow {
    /// Position of the image in its data set's order.
    pub sample_id: u64,
    /// The view.
    pub view: View,
    /// The data set's own name of the image, for example its path under the source folder.
    pub key: String,
    /// Hash of the image file's bytes.
    pub content_hash: ContentHash,
    /// Class, if the data set has classes; not negative.
    pub label: Option<i32>,
    /// Width in pixels of the decoded, upright image; of the packed one where images are packed.
    pub width: u32,
    /// Height in pixels, likewise.
    pub height: u32,
    /// Hash of the packed image's bytes, in caches that pack them: in the row of view 0.
    pub image_hash: Option<ContentHash>,
}

impl SampleRow {
    /// What the row of a teacher's features must repeat to belong to this one.
    pub fn row_key(&self) -> RowKey {
        RowKey { sample_id: self.sample_id, view: self.view.index, content_hash: self.content_hash }
    }
}

/// An image that could not be used: one line of a rejects file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Position of the image in its data set's order.
    pub sample_id: u64,
    /// The data set's own name of the image.
    pub key: String,
    /// Why it could not be used.
    pub reason: String,
    /// Hash of its bytes, if they could be read at all.
    pub content_hash: Option<ContentHash>,
}
