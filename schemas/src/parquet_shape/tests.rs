use super::*;

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A list of `count` booleans in the field 15 of a structure, then the structure's end.
fn booleans(count: u64, kind: u8) -> Vec<u8> {
    [&[0xf9, 0xf0 | kind][..], &varint(count), &[0]].concat()
}

#[test]
fn lists_of_values_without_bytes_are_bounded() {
    for kind in [TRUE, FALSE] {
        assert_eq!(check_footer(&booleans(16, kind)).unwrap_err(), "it has a list of 16 values without bytes");
        assert!(check_footer(&booleans(1 << 31, kind)).unwrap_err().contains("values without bytes"));
    }
    // As many as bytes pass, and the library passes over them at once.
    assert_eq!(check_footer(&[booleans(15, TRUE), vec![0; 20]].concat()), Ok(()));
    // A map of booleans to booleans.
    let map = [&[0xfb][..], &varint(1 << 30), &[0x11, 0]].concat();
    assert!(check_footer(&map).unwrap_err().contains("values without bytes"));
    // Inside a structure in a list of structures that is skipped.
    let nested = [&[0xf9, 0x1c][..], &booleans(1 << 31, TRUE), &[0]].concat();
    assert!(check_footer(&nested).unwrap_err().contains("values without bytes"));
    // In the header of a page.
    let header = [&[0x15, 0, 0x15, 2, 0x15, 2, 0xc9, 0xf1][..], &varint(1 << 31), &[0]].concat();
    assert_eq!(page_facts(&header), None);
}

/// What the library reads as a number must be one, or it would go on in the middle of what is skipped here.
#[test]
fn known_fields_have_their_type() {
    let rows = |kind: u8, value: &[u8]| [&[0x30 | kind][..], value, &[0]].concat();
    assert_eq!(check_footer(&rows(I64, &[2])), Ok(()));
    let hidden = booleans(1 << 31, TRUE);
    let text = [&varint(hidden.len() as u64)[..], &hidden].concat();
    assert!(check_footer(&rows(BINARY, &text)).unwrap_err().contains("malformed"));
    // Of a field that nobody knows, text is text.
    assert_eq!(check_footer(&[&[0xf8][..], &text, &[0]].concat()), Ok(()));
}

/// Groups of one child each.
fn nested(depth: usize) -> Vec<u8> {
    let mut footer = vec![0x29, 0xfc];
    footer.extend(varint(depth as u64 + 1));
    for _ in 0..depth {
        footer.extend([0x48, 1, b'a', 0x15, 2, 0]);
    }
    footer.extend([0x15, 2, 0x38, 1, b'b', 0, 0]);
    footer
}

#[test]
fn groups_of_columns_nest_only_so_deep() {
    assert_eq!(check_footer(&nested(MAX_COLUMN_DEPTH)), Ok(()));
    for depth in [MAX_COLUMN_DEPTH + 1, 100_000] {
        assert!(check_footer(&nested(depth)).unwrap_err().contains("nest more than 64 deep"));
    }
    // A thousand columns beside each other.
    let wide = [
        &[0x29, 0xfc][..],
        &varint(1001),
        &[0x48, 1, b'a', 0x15],
        &varint(2000),
        &[0],
        &[0x48, 1, b'b', 0].repeat(1000),
        &[0],
    ]
    .concat();
    assert_eq!(check_footer(&wide), Ok(()));
}

#[test]
fn page_headers_say_where_the_next_page_is() {
    // A dictionary page, a data page of version 1, one of version 2.
    let dictionary = [0x15, 4, 0x15, 20, 0x15, 14, 0x4c, 0x15, 6, 0x15, 0, 0, 0];
    assert_eq!(page_facts(&dictionary), Some(PageFacts { header: 13, body: 7, rows: None }));
    let data = [0x15, 0, 0x15, 20, 0x15, 14, 0x2c, 0x15, 6, 0x15, 0, 0x15, 6, 0x15, 6, 0, 0, 9, 9];
    assert_eq!(page_facts(&data), Some(PageFacts { header: 17, body: 7, rows: Some(3) }));
    let second = [0x15, 6, 0x15, 20, 0x15, 14, 0x5c, 0x15, 8, 0x15, 2, 0x15, 6, 0x15, 0, 0x15, 4, 0x15, 0, 0x11, 0, 0];
    assert_eq!(page_facts(&second), Some(PageFacts { header: 22, body: 7, rows: Some(3) }));
    // Cut short anywhere; and with a negative length.
    for end in 0..17 {
        assert_eq!(page_facts(&data[..end]), None, "{end}");
    }
    assert_eq!(page_facts(&[0x15, 4, 0x15, 20, 0x15, 13, 0]), None);
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_refused_or_pass(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let _ = check_footer(&bytes);
        if let Some(facts) = page_facts(&bytes) {
            proptest::prop_assert!(facts.header <= bytes.len());
        }
    }
}
