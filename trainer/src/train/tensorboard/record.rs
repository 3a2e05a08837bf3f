//! TFRecord framing: length, its checksum, data, its checksum, little-endian; checksums are masked CRC-32C.

/// Bytes of a record besides its data: the length and two checksums.
const LENGTH: usize = 8;
const CHECKSUM: usize = 4;

/// A CRC of data that contains CRCs is weak, so TFRecord rotates it and adds a constant.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

pub(super) fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(LENGTH + 2 * CHECKSUM + data.len());
    out.extend(length);
    out.extend(masked(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked(data).to_le_bytes());
    out
}
