//! The first directory of a TIFF file or of an EXIF block, which is a TIFF file without pictures.

/// Entries of a directory, in their order. Entries that cannot be read are left out, as in Pillow.
pub(super) struct Ifd<'a> {
    bytes: &'a [u8],
    big_endian: bool,
    big: bool,
    entries: Vec<Entry<'a>>,
}

struct Entry<'a> {
    tag: u16,
    kind: u16,
    data: &'a [u8],
}

impl<'a> Ifd<'a> {
    /// Reads the directory that the header points at. `None` without a TIFF header.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        // Two of these have the bytes of 42 swapped, as some cameras write them.
        let (big_endian, big) = match bytes.get(..4)? {
            b"II*\0" | b"II\0*" => (false, false),
            b"MM\0*" | b"MM*\0" => (true, false),
            b"II+\0" => (false, true),
            b"MM\0+" => (true, true),
            _ => return None,
        };
        let mut ifd = Self { bytes, big_endian, big, entries: Vec::new() };
        let start = if big { ifd.number(bytes.get(8..16)?) } else { ifd.number(bytes.get(4..8)?) };
        ifd.entries(usize::try_from(start).unwrap_or(usize::MAX));
        Some(ifd)
    }

    fn entries(&mut self, start: usize) {
        let (count_bytes, entry_bytes, inline) = if self.big { (8, 20, 8) } else { (2, 12, 4) };
        let bytes = self.bytes;
        let Some(rest) = bytes.get(start..) else {
            return;
        };
        let Some((count, rest)) = rest.split_at_checked(count_bytes) else {
            return;
        };
        let count = usize::try_from(self.number(count)).unwrap_or(usize::MAX);
        let mut sum = 0u64;
        for entry in rest.chunks_exact(entry_bytes).take(count) {
            let tag = self.number(&entry[..2]) as u16;
            let kind = self.number(&entry[2..4]) as u16;
            let (count, value) = entry[4..].split_at(inline);
            let Some(unit) = unit_bytes(kind) else {
                continue;
            };
            if self.entries.iter().any(|known| known.tag == tag) {
                continue;
            }
            let size = self.number(count).saturating_mul(unit);
            let data = if size <= inline as u64 {
                &value[..size as usize]
            } else {
                sum = sum.saturating_add(size);
                if sum > bytes.len() as u64 {
                    continue;
                }
                let from = usize::try_from(self.number(value)).unwrap_or(usize::MAX);
                match bytes.get(from..).and_then(|rest| rest.get(..size as usize)) {
                    Some(data) => data,
                    None => return,
                }
            };
            if !data.is_empty() {
                self.entries.push(Entry { tag, kind, data });
            }
        }
    }

    fn number(&self, bytes: &[u8]) -> u64 {
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        if self.big_endian { bytes.iter().fold(0, add) } else { bytes.iter().rev().fold(0, add) }
    }

    fn entry(&self, tag: u16) -> Option<&Entry<'a>> {
        self.entries.iter().find(|entry| entry.tag == tag)
    }

    /// The whole numbers of an entry. Empty if the entry is missing or has other values.
    pub(super) fn numbers(&self, tag: u16) -> Vec<u64> {
        self.entry(tag)
            .filter(|entry| matches!(entry.kind, 1 | 3 | 4 | 13 | 16))
            .map(|entry| {
                let unit = unit_bytes(entry.kind).expect("a known type") as usize;
                let units = entry.data.chunks_exact(unit);
                units.map(|unit| self.number(unit)).collect()
            })
            .unwrap_or_default()
    }

    /// The bytes of an entry.
    pub(super) fn data(&self, tag: u16) -> Option<&'a [u8]> {
        self.entry(tag).map(|entry| entry.data)
    }

    /// First value of the entry with this tag: `None` if there is no entry, `Some(None)` if its value is not a number. A value of single
    /// bytes does not count as a number, as in Pillow.
    pub(super) fn value(&self, tag: u16) -> Option<Option<f64>> {
        let entry = self.entry(tag)?;
        let unit = unit_bytes(entry.kind).expect("a known type") as usize;
        let first = entry.data.get(..unit)?;
        let half = |at: usize| self.number(&first[at..at + 4]);
        let value = match entry.kind {
            3 | 4 | 13 | 16 => Some(self.number(first) as f64),
            5 => Some(half(0) as f64 / half(4) as f64),
            6 => Some(f64::from(self.number(first) as u8 as i8)),
            8 => Some(f64::from(self.number(first) as u16 as i16)),
            9 => Some(f64::from(self.number(first) as u32 as i32)),
            10 => Some(f64::from(half(0) as u32 as i32) / f64::from(half(4) as u32 as i32)),
            11 => Some(f64::from(f32::from_bits(self.number(first) as u32))),
            12 => Some(f64::from_bits(self.number(first))),
            _ => None,
        };
        Some(value)
    }
}

/// Bytes of one value of a type; `None` for types that TIFF does not have.
fn unit_bytes(kind: u16) -> Option<u64> {
    Some(match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16 => 8,
        _ => return None,
    })
}
