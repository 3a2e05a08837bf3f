//! Thrift's compact protocol, in which Parquet stores its metadata: <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>.

/// Thrift's compact protocol, as far as Parquet's page structures need it. `None` for anything malformed.
pub(crate) struct Compact<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) at: usize,
}

// Types of the compact protocol.
pub(crate) const I16: u8 = 4;
pub(crate) const I32: u8 = 5;
pub(crate) const I64: u8 = 6;
pub(crate) const BINARY: u8 = 8;
pub(crate) const LIST: u8 = 9;
pub(crate) const STRUCT: u8 = 12;

/// Structures nest this deep at most; ours nest 2 deep.
const MAX_DEPTH: u32 = 8;

impl<'a> Compact<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Compact<'a> {
        Compact { bytes, at: 0 }
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A number of the given type, as a zigzag varint; `kind` is what the field says it is.
    pub(crate) fn integer(&mut self, kind: u8, expected: u8) -> Option<i64> {
        if kind != expected {
            return None;
        }
        let value = self.varint()?;
        Some((value >> 1).cast_signed() ^ -((value & 1).cast_signed()))
    }

    /// Count and element type of a list.
    pub(crate) fn list(&mut self, kind: u8) -> Option<(usize, u8)> {
        if kind != LIST {
            return None;
        }
        let header = self.byte()?;
        let count = match header >> 4 {
            15 => usize::try_from(self.varint()?).ok()?,
            count => usize::from(count),
        };
        Some((count, header & 0x0f))
    }

    /// Calls `field(self, id, type)` for each field of a structure; it must consume the field.
    pub(crate) fn fields(&mut self, mut field: impl FnMut(&mut Self, i64, u8) -> Option<()>) -> Option<()> {
        let mut id = 0;
        loop {
            match self.field(&mut id)? {
                0 => return Some(()),
                kind => field(self, id, kind)?,
            }
        }
    }

    /// The type of the next field of a structure, 0 at its end; `id` is that of the field before, and becomes that of this one.
    pub(crate) fn field(&mut self, id: &mut i64) -> Option<u8> {
        let header = self.byte()?;
        if header == 0 {
            return Some(0);
        }
        *id = match header >> 4 {
            0 => self.integer(I16, I16)?,
            delta => *id + i64::from(delta),
        };
        // More fields than any Parquet structure has; the sum above cannot overflow then. And a type of 0 is none.
        ((0..=1000).contains(id) && header & 0x0f != 0).then_some(header & 0x0f)
    }

    pub(crate) fn skip(&mut self, kind: u8, depth: u32) -> Option<()> {
        match kind {
            1 | 2 => Some(()),
            3 => self.byte().map(|_| ()),
            I16 | I32 | I64 => self.varint().map(|_| ()),
            7 => self.advance(8),
            BINARY => {
                let length = usize::try_from(self.varint()?).ok()?;
                self.advance(length)
            }
            LIST if depth < MAX_DEPTH => {
                let (count, element) = self.list(kind)?;
                // An element of one byte or more each, except for booleans, which lists store as bytes.
                (0..count).try_for_each(|_| if element <= 2 { self.advance(1) } else { self.skip(element, depth + 1) })
            }
            STRUCT if depth < MAX_DEPTH => self.fields(|thrift, _, kind| thrift.skip(kind, depth + 1)),
            _ => None,
        }
    }

    pub(crate) fn advance(&mut self, count: usize) -> Option<()> {
        let at = self.at.checked_add(count).filter(|&at| at <= self.bytes.len())?;
        self.at = at;
        Some(())
    }
}
