//! What the metadata of a Parquet file may look like, looked at before the Parquet library reads it.
//!
//! The library (60.1) has no limit in two places. It skips a list of booleans in a field that it does not know element by element, and such
//! an element takes no byte of the file: a list of six bytes keeps it busy for seconds, and a file may have any number of them. And it builds
//! the tree of columns by recursion, so that deeply nested groups overflow the stack, which ends the process.
//!
//! Both are refused here. For that the metadata is read as the library reads it: fields that it knows must have their type, and the others
//! are skipped in the same way. Tables are those of `parquet.thrift` as far as the library reads them.

use crate::thrift::{BINARY, Compact, I16, I32, I64, LIST, STRUCT};

/// Groups of columns within groups; the layouts of image data sets nest two or three deep.
const MAX_COLUMN_DEPTH: usize = 64;

/// Structures and lists within each other; the library's own limit on what it skips.
const MAX_DEPTH: usize = 64;

/// A type that the library expects of a field.
enum Shape {
    Bool,
    Byte,
    I16,
    I32,
    I64,
    Double,
    Binary,
    List(&'static Shape),
    Struct(&'static [(i64, Shape)]),
    /// The list of the schema's elements, whose tree is looked at too.
    Schema,
}

const EMPTY: Shape = Shape::Struct(&[]);
const TIME_UNIT: Shape = Shape::Struct(&[(1, EMPTY), (2, EMPTY), (3, EMPTY)]);
const TIME: Shape = Shape::Struct(&[(1, Shape::Bool), (2, TIME_UNIT)]);
const LOGICAL_TYPE: Shape = Shape::Struct(&[
    (1, EMPTY),
    (2, EMPTY),
    (3, EMPTY),
    (4, EMPTY),
    (5, Shape::Struct(&[(1, Shape::I32), (2, Shape::I32)])),
    (6, EMPTY),
    (7, TIME),
    (8, TIME),
    (10, Shape::Struct(&[(1, Shape::Byte), (2, Shape::Bool)])),
    (11, EMPTY),
    (12, EMPTY),
    (13, EMPTY),
    (14, EMPTY),
    (15, EMPTY),
    (16, Shape::Struct(&[(1, Shape::Byte)])),
    (17, Shape::Struct(&[(1, Shape::Binary)])),
    (18, Shape::Struct(&[(1, Shape::Binary), (2, Shape::I32)])),
]);
/// `num_children` of a schema element.
const NUM_CHILDREN: i64 = 5;
const SCHEMA_ELEMENT: [(i64, Shape); 10] = [
    (1, Shape::I32),
    (2, Shape::I32),
    (3, Shape::I32),
    (4, Shape::Binary),
    (NUM_CHILDREN, Shape::I32),
    (6, Shape::I32),
    (7, Shape::I32),
    (8, Shape::I32),
    (9, Shape::I32),
    (10, LOGICAL_TYPE),
];
const KEY_VALUES: Shape = Shape::List(&Shape::Struct(&[(1, Shape::Binary), (2, Shape::Binary)]));
const STATISTICS: Shape = Shape::Struct(&[
    (1, Shape::Binary),
    (2, Shape::Binary),
    (3, Shape::I64),
    (4, Shape::I64),
    (5, Shape::Binary),
    (6, Shape::Binary),
    (7, Shape::Bool),
    (8, Shape::Bool),
    (9, Shape::I64),
]);
const BOX: Shape = Shape::Struct(&[
    (1, Shape::Double),
    (2, Shape::Double),
    (3, Shape::Double),
    (4, Shape::Double),
    (5, Shape::Double),
    (6, Shape::Double),
    (7, Shape::Double),
    (8, Shape::Double),
]);
const COLUMN_METADATA: Shape = Shape::Struct(&[
    (1, Shape::I32),
    (2, Shape::List(&Shape::I32)),
    (3, Shape::List(&Shape::Binary)),
    (4, Shape::I32),
    (5, Shape::I64),
    (6, Shape::I64),
    (7, Shape::I64),
    (8, KEY_VALUES),
    (9, Shape::I64),
    (10, Shape::I64),
    (11, Shape::I64),
    (12, STATISTICS),
    (13, Shape::List(&Shape::Struct(&[(1, Shape::I32), (2, Shape::I32), (3, Shape::I32)]))),
    (14, Shape::I64),
    (15, Shape::I32),
    (16, Shape::Struct(&[(1, Shape::I64), (2, Shape::List(&Shape::I64)), (3, Shape::List(&Shape::I64))])),
    (17, Shape::Struct(&[(1, BOX), (2, Shape::List(&Shape::I32))])),
]);
const COLUMN_CHUNK: Shape = Shape::Struct(&[
    (1, Shape::Binary),
    (2, Shape::I64),
    (3, COLUMN_METADATA),
    (4, Shape::I64),
    (5, Shape::I32),
    (6, Shape::I64),
    (7, Shape::I32),
]);
const ROW_GROUP: Shape = Shape::Struct(&[
    (1, Shape::List(&COLUMN_CHUNK)),
    (2, Shape::I64),
    (3, Shape::I64),
    (4, Shape::List(&Shape::Struct(&[(1, Shape::I32), (2, Shape::Bool), (3, Shape::Bool)]))),
    (5, Shape::I64),
    (6, Shape::I64),
    (7, Shape::I16),
]);
const FILE_METADATA: [(i64, Shape); 7] = [
    (1, Shape::I32),
    (2, Shape::Schema),
    (3, Shape::I64),
    (4, Shape::List(&ROW_GROUP)),
    (5, KEY_VALUES),
    (6, Shape::Binary),
    (7, Shape::List(&Shape::Struct(&[(1, EMPTY), (2, EMPTY)]))),
];

const DATA_PAGE: [(i64, Shape); 5] =
    [(1, Shape::I32), (2, Shape::I32), (3, Shape::I32), (4, Shape::I32), (5, STATISTICS)];
const DICTIONARY_PAGE: [(i64, Shape); 3] = [(1, Shape::I32), (2, Shape::I32), (3, Shape::Bool)];
const DATA_PAGE_V2: [(i64, Shape); 8] = [
    (1, Shape::I32),
    (2, Shape::I32),
    (3, Shape::I32),
    (4, Shape::I32),
    (5, Shape::I32),
    (6, Shape::I32),
    (7, Shape::Bool),
    (8, STATISTICS),
];

/// Refuses a footer (`FileMetaData`, without its length and mark) that the Parquet library would not survive, or that is malformed.
///
/// # Errors
/// What is wrong, in words.
pub fn check_footer(footer: &[u8]) -> Result<(), String> {
    let mut walk = Walk::new(footer);
    match walk.structure(&FILE_METADATA, 0) {
        Some(()) => Ok(()),
        None => Err(walk.refusal.unwrap_or_else(|| format!("its footer is malformed at byte {}", walk.thrift.at))),
    }
}

/// What the header of a page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFacts {
    /// Bytes of the header.
    pub header: usize,
    /// Bytes of the page behind it.
    pub body: usize,
    /// Rows of a data page of a column that is not repeated; `None` for other pages.
    pub rows: Option<usize>,
}

/// Reads the header (`PageHeader`) that `bytes` begin with. `None` if it is malformed, is one that the Parquet library would not survive, or
/// does not end in `bytes`.
pub fn page_facts(bytes: &[u8]) -> Option<PageFacts> {
    // Types of pages in parquet.thrift.
    const DATA: i64 = 0;
    const DATA_V2: i64 = 3;
    let mut walk = Walk::new(bytes);
    let (mut kind, mut body, mut values, mut rows) = (None, None, None, None);
    walk.fields(&mut |walk, id, found| {
        match id {
            1 => kind = Some(walk.thrift.integer(found, I32)?),
            2 | 4 => drop(walk.thrift.integer(found, I32)?),
            3 => body = Some(usize::try_from(walk.thrift.integer(found, I32)?).ok()?),
            5 | 8 if found == STRUCT => {
                let (shapes, number) =
                    if id == 5 { (&DATA_PAGE[..], &mut values) } else { (&DATA_PAGE_V2[..], &mut rows) };
                let of_rows = if id == 5 { 1 } else { 3 };
                walk.fields(&mut |walk, id, found| {
                    if id == of_rows {
                        *number = Some(usize::try_from(walk.thrift.integer(found, I32)?).ok()?);
                        return Some(());
                    }
                    walk.known(shapes, id, found, 1)
                })?;
            }
            6 => walk.value(&EMPTY, found, 1)?,
            7 => walk.value(&Shape::Struct(&DICTIONARY_PAGE), found, 1)?,
            5 | 8 => return None,
            _ => walk.skip(found, 1)?,
        }
        Some(())
    })?;
    let rows = match kind? {
        DATA => Some(values?),
        DATA_V2 => Some(rows?),
        _ => None,
    };
    Some(PageFacts { header: walk.thrift.at, body: body?, rows })
}

struct Walk<'a> {
    thrift: Compact<'a>,
    /// Elements without bytes that may still come. Those that writers mean take a byte each.
    empties: usize,
    /// What is wrong, where it is not the form.
    refusal: Option<String>,
}

// Types of the compact protocol that only occur where a field is skipped.
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const DOUBLE: u8 = 7;
const SET: u8 = 10;
const MAP: u8 = 11;
const UUID: u8 = 13;

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8]) -> Walk<'a> {
        Walk { thrift: Compact::new(bytes), empties: bytes.len(), refusal: None }
    }

    /// Calls `field(self, id, type)` for each field of a structure; it must consume the field.
    fn fields(&mut self, field: &mut dyn FnMut(&mut Self, i64, u8) -> Option<()>) -> Option<()> {
        let mut id = 0;
        loop {
            match self.thrift.field(&mut id)? {
                0 => return Some(()),
                kind => field(self, id, kind)?,
            }
        }
    }

    fn structure(&mut self, shapes: &'static [(i64, Shape)], depth: usize) -> Option<()> {
        self.fields(&mut |walk, id, kind| walk.known(shapes, id, kind, depth))
    }

    /// A field: of the shape that is known for it, else skipped.
    fn known(&mut self, shapes: &'static [(i64, Shape)], id: i64, kind: u8, depth: usize) -> Option<()> {
        match shapes.iter().find(|(known, _)| *known == id) {
            Some((_, shape)) => self.value(shape, kind, depth + 1),
            None => self.skip(kind, depth + 1),
        }
    }

    fn value(&mut self, shape: &'static Shape, kind: u8, depth: usize) -> Option<()> {
        let is = |expected: u8| (kind == expected).then_some(());
        match shape {
            Shape::Bool => (kind == TRUE || kind == FALSE).then_some(()),
            Shape::Byte => is(BYTE).and_then(|()| self.skip(kind, depth)),
            Shape::I16 => is(I16).and_then(|()| self.skip(kind, depth)),
            Shape::I32 => is(I32).and_then(|()| self.skip(kind, depth)),
            Shape::I64 => is(I64).and_then(|()| self.skip(kind, depth)),
            Shape::Double => is(DOUBLE).and_then(|()| self.skip(kind, depth)),
            Shape::Binary => is(BINARY).and_then(|()| self.skip(kind, depth)),
            Shape::Struct(shapes) => is(STRUCT).and_then(|()| self.structure(shapes, depth)),
            Shape::List(element) => {
                let (count, element_kind) = self.thrift.list(kind)?;
                (0..count).try_for_each(|_| self.value(element, element_kind, depth + 1))
            }
            Shape::Schema => self.schema(kind, depth),
        }
    }

    /// The list of the schema's elements, in the order of a walk through their tree.
    fn schema(&mut self, kind: u8, depth: usize) -> Option<()> {
        let (count, element) = self.thrift.list(kind)?;
        // Of each group around the present element, the children that are still to come.
        let mut open: Vec<i64> = Vec::new();
        for _ in 0..count {
            if element != STRUCT {
                return None;
            }
            let mut children = 0;
            self.fields(&mut |walk, id, kind| {
                if id == NUM_CHILDREN {
                    children = walk.thrift.integer(kind, I32)?;
                    return Some(());
                }
                walk.known(&SCHEMA_ELEMENT, id, kind, depth)
            })?;
            if let Some(left) = open.last_mut() {
                *left -= 1;
            }
            if children > 0 {
                open.push(children);
            }
            while open.last().is_some_and(|left| *left <= 0) {
                open.pop();
            }
            if open.len() > MAX_COLUMN_DEPTH {
                self.refusal = Some(format!("its columns nest more than {MAX_COLUMN_DEPTH} deep"));
                return None;
            }
        }
        Some(())
    }

    /// A value that the library does not know, skipped as it does.
    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        match kind {
            TRUE | FALSE => Some(()),
            BYTE => self.thrift.advance(1),
            I16 | I32 | I64 => self.thrift.varint().map(drop),
            DOUBLE => self.thrift.advance(8),
            BINARY => {
                let length = usize::try_from(self.thrift.varint()?).ok()?;
                self.thrift.advance(length)
            }
            LIST | SET => {
                let (count, element) = self.thrift.list(LIST)?;
                self.spend(count, element <= FALSE)?;
                (0..count).try_for_each(|_| self.skip(element, depth + 1))
            }
            MAP => {
                let count = usize::try_from(self.thrift.varint()?).ok()?;
                if count == 0 {
                    return Some(());
                }
                let kinds = self.thrift.byte()?;
                let (key, value) = (kinds >> 4, kinds & 0x0f);
                self.spend(count, key <= FALSE && value <= FALSE)?;
                (0..count).try_for_each(|_| {
                    self.skip(key, depth + 1)?;
                    self.skip(value, depth + 1)
                })
            }
            STRUCT => self.fields(&mut |walk, _, kind| walk.skip(kind, depth + 1)),
            UUID => self.thrift.advance(16),
            _ => None,
        }
    }

    /// Counts elements that take no bytes; `None` if there are more than bytes.
    fn spend(&mut self, count: usize, empty: bool) -> Option<()> {
        if empty {
            let left = self.empties.checked_sub(count);
            if left.is_none() {
                self.refusal = Some(format!("it has a list of {count} values without bytes"));
            }
            self.empties = left?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests;
