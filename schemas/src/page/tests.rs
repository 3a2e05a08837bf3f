use proptest::prelude::*;

use super::*;

/// The bytes of a page: zigzag varints of a header with these fields, then the body.
fn page(kind: u64, uncompressed: usize, compressed: usize, data: [u64; 4], body: &[u8]) -> Vec<u8> {
    fn varint(mut value: u64, out: &mut Vec<u8>) {
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }
    let mut bytes = Vec::new();
    for value in [kind, uncompressed as u64, compressed as u64] {
        bytes.push(0x15);
        varint(value << 1, &mut bytes);
    }
    bytes.push(0x2c);
    for value in data {
        bytes.push(0x15);
        varint(value << 1, &mut bytes);
    }
    bytes.extend([0, 0]);
    bytes.extend(body);
    bytes
}

fn read(bytes: &[u8], compression: Compression, limit: usize) -> Result<(usize, Vec<u8>), String> {
    let page = Page::open(bytes)?;
    let mut out = vec![9; 3];
    page.decompress(compression, limit, &mut out).map(|()| (page.rows, out))
}

#[test]
fn pages_are_read_and_bounded() {
    let body: Vec<u8> = (0..100).map(|i| i / 9).collect();
    let plain = page(0, 100, 100, [25, 0, 3, 3], &body);
    assert_eq!(read(&plain, Compression::UNCOMPRESSED, 100), Ok((25, body.clone())));
    assert!(read(&plain, Compression::UNCOMPRESSED, 99).unwrap_err().contains("declares 100 bytes"));
    assert!(read(&plain, Compression::SNAPPY, 100).unwrap_err().contains("SNAPPY"));
    let zstd = Compression::ZSTD(Default::default());
    let packed = zstd::bulk::compress(&body, 1).unwrap();
    let good = page(0, 100, packed.len(), [25, 0, 3, 3], &packed);
    assert_eq!(read(&good, zstd, 100), Ok((25, body.clone())));
    // A frame that holds more, or less, than the header says.
    assert!(read(&page(0, 99, packed.len(), [25, 0, 3, 3], &packed), zstd, 200).is_err());
    assert!(read(&page(0, 101, packed.len(), [25, 0, 3, 3], &packed), zstd, 200).is_err());
    // Two gigabytes that are not there.
    assert!(read(&page(0, i32::MAX as usize, packed.len(), [25, 0, 3, 3], &packed), zstd, 100).is_err());
}

#[test]
fn other_pages_are_refused() {
    let check = |bytes: &[u8]| assert!(Page::open(bytes).is_err(), "{bytes:?}");
    check(&[]);
    check(&page(2, 1, 1, [1, 0, 3, 3], &[7])); // a dictionary page
    check(&page(0, 1, 1, [1, 2, 3, 3], &[7])); // dictionary-encoded
    check(&page(0, 1, 1, [1, 0, 4, 3], &[7])); // bit-packed levels
    check(&page(0, 1, 2, [1, 0, 3, 3], &[7])); // a body shorter than it says
    check(&page(0, 1, 0, [1, 0, 3, 3], &[7])); // a longer one
}

#[test]
fn values_end_where_the_bytes_end() {
    let mut values = Values::new(&[1, 0, 0, 0, 2, 0, 0, 0, 0xab, 0xcd, 5]);
    assert_eq!(values.i32(), Some(1));
    assert_eq!(values.bytes(), Some(&[0xab, 0xcd][..]));
    assert!(!values.is_empty());
    assert_eq!(values.u32(), None);
    assert_eq!(values.fixed::<1>(), Some([5]));
    assert!(values.is_empty());
    assert_eq!((values.bool(), values.bytes(), values.u64()), (None, None, None));
    let mut bits = Values::new(&[0b0000_0101, 0b1]);
    let read: Vec<_> = (0..9).map(|_| bits.bool().unwrap()).collect();
    assert_eq!(read, [true, false, true, false, false, false, false, false, true]);
    assert!(bits.is_empty());
    let mut unused = Values::new(&[0b101]);
    assert_eq!((unused.bool(), unused.is_empty()), (Some(true), false), "a bit beyond the last value is set");
}

#[test]
fn levels_come_in_runs_and_in_groups() {
    // 3 ones as a run, then a group of eight of which 4 count.
    let read = |bytes: &[u8], rows| Values::new(bytes).present(rows);
    let present = [true, true, true, true, false, true, false];
    assert_eq!(read(&[4, 0, 0, 0, 3 << 1, 1, 0b11, 0b0101], 7), Some(present.to_vec()));
    // Malformed: too long a run, none at all, a level of 2, unused bits that are set, an unneeded group, bytes left over.
    for bytes in
        [&[4 << 1, 1][..], &[0, 1], &[3 << 1, 2], &[0b11, 0b1101], &[0b101, 0b101, 0], &[3 << 1, 1, 0], &[3 << 1]]
    {
        let mut page = vec![bytes.len() as u8, 0, 0, 0];
        page.extend(bytes);
        assert_eq!(read(&page, 3), None, "{bytes:?}");
    }
    assert_eq!(read(&[9, 0, 0, 0, 6, 1], 3), None, "longer than the page");
}

#[test]
fn an_index_that_promises_endless_pages_is_refused() {
    // A list of 2^31 - 1 structures in 8 bytes.
    assert!(read_offset_index(&[0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07, 0]).is_err());
    assert!(read_offset_index(&[]).is_err());
}

proptest! {
    #[test]
    fn nothing_panics_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), rows in 0usize..100) {
        let _ = read_offset_index(&bytes);
        let _ = read(&bytes, Compression::ZSTD(Default::default()), 1000);
        let _ = Values::new(&bytes).present(rows);
        let mut damaged = page(0, 4, 4, [1, 0, 3, 3], &[1, 2, 3, 4]);
        for (at, byte) in bytes.iter().enumerate().take(damaged.len()) {
            damaged[at] ^= byte & (byte >> 1) & (byte >> 2);
        }
        let _ = read(&damaged, Compression::UNCOMPRESSED, 1000);
    }
}
