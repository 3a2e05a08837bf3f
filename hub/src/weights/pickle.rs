//! The pickles of `torch.save`, read without running anything in them.
//!
//! A pickle is a program for a small stack machine, and Python's own reader calls whatever functions the program names. This
//! machine has no functions. It knows how tensors, storages and containers are put together; every other class or call becomes
//! a [`Node::Opaque`], which can only be looked through for the attributes it was given.
//!
//! Opcodes of protocols 2 to 5 as in CPython's `Lib/pickletools.py`; what torch puts into them as in `torch/serialization.py` and
//! `torch/_utils.py`.
//!
//! Nodes live in one list and name each other by index: a pickle that nests or shares without end costs neither stack nor copies.

use std::collections::HashMap;

mod calls;
mod stack;

/// More objects than any state dict has; an optimizer of a ViT-g has about 20 000.
const MAX_NODES: usize = 4 << 20;

/// Bytes of the texts, lists and dictionaries of all nodes. Calls copy what they are given, and a call takes a few bytes of the program:
/// without a limit, a megabyte of it could ask for gigabytes. Those of a state dict take about as much as its pickle.
const MAX_BYTES: usize = 256 << 20;

/// Index of a node.
pub(super) type Id = usize;

/// What a pickle can build here.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// None, booleans, floats, bytes, large integers: nothing that a tensor is made of.
    Plain,
    /// An integer of at most 64 bits.
    Int(i64),
    /// Text.
    Text(String),
    /// A tuple; a `torch.Size` too.
    Tuple(Vec<Id>),
    /// A list or set.
    List(Vec<Id>),
    /// A dictionary in the order of its entries.
    Dict(Vec<(Id, Id)>),
    /// The name of a class or function, `module.name`.
    Global(String),
    /// `('storage', class, key, device, elements)`, the reference to another entry of the archive.
    Storage(Storage),
    /// A view of a storage.
    Tensor(View),
    /// A tensor of a kind that is not read: its type, or what is special about it.
    Unread(String),
    /// An object of another class, or the result of another function, with the state it was given.
    Opaque {
        /// `module.name` of the class or function.
        class: String,
        /// What BUILD set, if it did.
        state: Option<Id>,
    },
}

/// A one-dimensional run of numbers in the archive.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Storage {
    /// Class without its module, such as `FloatStorage`.
    pub(super) class: String,
    /// Name of the entry below `data/`.
    pub(super) key: String,
    /// Elements.
    pub(super) numel: i64,
}

/// What `torch._utils._rebuild_tensor_v2` is given, unchecked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View {
    pub(super) storage: Storage,
    /// First element.
    pub(super) offset: i64,
    pub(super) size: Vec<i64>,
    /// In elements, one for each dimension.
    pub(super) stride: Vec<i64>,
}

/// Why an archive is not read.
#[derive(Debug)]
pub(super) enum Refusal {
    /// What is wrong with it.
    Damaged(String),
    /// What it is or holds, where nothing is wrong but it is not read here; torch can convert it.
    Unsupported(String),
    /// What it is, where torch has no part in it.
    Foreign(String),
    /// The function `module.name` that Python would run when it opens the file.
    Harmful(String),
}

impl Node {
    /// Bytes that it has beside itself.
    fn bytes(&self) -> usize {
        let of_storage = |storage: &Storage| storage.class.len() + storage.key.len();
        match self {
            Node::Plain | Node::Int(_) => 0,
            Node::Text(text) | Node::Global(text) | Node::Unread(text) => text.len(),
            Node::Tuple(items) | Node::List(items) => size_of_val(&items[..]),
            Node::Dict(entries) => size_of_val(&entries[..]),
            Node::Storage(storage) => of_storage(storage),
            Node::Tensor(View { storage, size, stride, .. }) => {
                of_storage(storage) + size_of_val(&size[..]) + size_of_val(&stride[..])
            }
            Node::Opaque { class, .. } => class.len(),
        }
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Refusal {
        Refusal::Damaged(reason)
    }
}

/// A pickle that was read: its nodes, and the one it returns.
#[derive(Debug)]
pub(super) struct Pickle {
    nodes: Vec<Node>,
    pub(super) root: Id,
}

impl Pickle {
    /// The node `id`. Ids come from this pickle only.
    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }

    /// Runs the program `bytes`.
    ///
    /// # Errors
    /// What is wrong, and at which byte.
    pub(super) fn parse(bytes: &[u8]) -> Result<Pickle, Refusal> {
        let mut machine = Machine {
            bytes,
            at: 0,
            nodes: Vec::new(),
            node_bytes: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            harmful: None,
        };
        let root = match machine.run() {
            Ok(root) => root,
            Err(reason) => {
                return Err(match machine.harmful {
                    Some(function) => Refusal::Harmful(function),
                    None => Refusal::Damaged(format!("{reason} (byte {} of the pickle)", machine.at)),
                });
            }
        };
        Ok(Pickle { nodes: machine.nodes, root })
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    /// What [`MAX_BYTES`] limits.
    node_bytes: usize,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// The function that ended the reading, `module.name`.
    harmful: Option<String>,
}

type Step<T = ()> = Result<T, String>;

impl Machine<'_> {
    fn run(&mut self) -> Step<Id> {
        loop {
            let opcode = self.byte()?;
            match opcode {
                // PROTO, FRAME
                0x80 => match self.byte()? {
                    2..=5 => {}
                    other => return Err(format!("pickle protocol {other} is not one of 2 to 5")),
                },
                0x95 => drop(self.take(8)?),
                // EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT, EMPTY_SET
                b')' => self.push(Node::Tuple(Vec::new()))?,
                b']' | 0x8f => self.push(Node::List(Vec::new()))?,
                b'}' => self.push(Node::Dict(Vec::new()))?,
                // MARK, POP, POP_MARK, DUP
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.push_id(top)?;
                }
                // BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
                b'q' => {
                    let key = u32::from(self.byte()?);
                    self.memoize(key)?;
                }
                b'r' => {
                    let key = self.u32()?;
                    self.memoize(key)?;
                }
                0x94 => self.memoize(self.memo.len() as u32)?,
                b'h' => {
                    let key = u32::from(self.byte()?);
                    self.recall(key)?;
                }
                b'j' => {
                    let key = self.u32()?;
                    self.recall(key)?;
                }
                // GLOBAL, STACK_GLOBAL
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.global(&module, &name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop_text()?, self.pop_text()?);
                    self.global(&module, &name)?;
                }
                // Text: BINUNICODE, SHORT_BINUNICODE, BINUNICODE8; BINSTRING and SHORT_BINSTRING of Python 2
                b'X' => self.text(4)?,
                0x8c => self.text(1)?,
                0x8d => self.text(8)?,
                b'T' => self.text(4)?,
                b'U' => self.text(1)?,
                // Bytes: BINBYTES, SHORT_BINBYTES, BINBYTES8, BYTEARRAY8
                b'B' => self.blob(4)?,
                b'C' => self.blob(1)?,
                0x8e | 0x96 => self.blob(8)?,
                // Numbers: BININT, BININT1, BININT2, LONG1, LONG4, BINFLOAT
                b'J' => {
                    let value = self.u32()? as i32;
                    self.push(Node::Int(i64::from(value)))?;
                }
                b'K' => {
                    let value = self.byte()?;
                    self.push(Node::Int(i64::from(value)))?;
                }
                b'M' => {
                    let value = self.length(2)?;
                    self.push(Node::Int(value as i64))?;
                }
                0x8a => self.long(1)?,
                0x8b => self.long(4)?,
                b'G' => {
                    self.take(8)?;
                    self.push(Node::Plain)?;
                }
                // NONE, NEWTRUE, NEWFALSE
                b'N' | 0x88 | 0x89 => self.push(Node::Plain)?,
                // TUPLE, TUPLE1, TUPLE2, TUPLE3, LIST, FROZENSET, DICT
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Tuple(items))?;
                }
                0x85..=0x87 => {
                    let count = usize::from(opcode - 0x84);
                    let start = self.stack.len().checked_sub(count);
                    let start = start
                        .filter(|&start| start >= self.floor())
                        .ok_or("a tuple of more items than the stack holds")?;
                    let items = self.stack.split_off(start);
                    self.push(Node::Tuple(items))?;
                }
                b'l' | 0x91 => {
                    let items = self.pop_mark()?;
                    self.push(Node::List(items))?;
                }
                b'd' => {
                    let entries = self.entries()?;
                    self.push(Node::Dict(entries))?;
                }
                // APPEND, APPENDS, ADDITEMS, SETITEM, SETITEMS
                b'a' => {
                    let item = self.pop()?;
                    self.extend(vec![item])?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_mark()?;
                    self.extend(items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.insert(vec![(key, value)])?;
                }
                b'u' => {
                    let entries = self.entries()?;
                    self.insert(entries)?;
                }
                // REDUCE, NEWOBJ, NEWOBJ_EX, BUILD, BINPERSID
                b'R' | 0x81 => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    let made = self.call(function, arguments)?;
                    self.push(made)?;
                }
                0x92 => {
                    let _named = self.pop()?;
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    let made = self.call(function, arguments)?;
                    self.push(made)?;
                }
                b'b' => {
                    let (given, object) = (self.pop()?, self.top()?);
                    if let Node::Opaque { state, .. } = &mut self.nodes[object] {
                        *state = Some(given);
                    }
                }
                b'Q' => {
                    let reference = self.pop()?;
                    let storage = self.storage(reference)?;
                    self.push(Node::Storage(storage))?;
                }
                // STOP
                b'.' => {
                    let root = self.pop()?;
                    if !self.stack.is_empty() || self.at != self.bytes.len() {
                        return Err("the pickle goes on after its end".to_owned());
                    }
                    return Ok(root);
                }
                other => {
                    return Err(format!("opcode 0x{other:02x} is not one that torch.save writes"));
                }
            }
        }
    }
}
