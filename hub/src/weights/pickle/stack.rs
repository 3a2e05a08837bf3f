//! The machine's stack and memo, and the operands in its program.

use super::{Id, MAX_BYTES, MAX_NODES, Machine, Node, Step};

impl Machine<'_> {
    pub(super) fn extend(&mut self, items: Vec<Id>) -> Step {
        let list = self.top()?;
        match &mut self.nodes[list] {
            Node::List(list) => list.extend(items),
            Node::Opaque { .. } => {}
            _ => return Err("items are added to something that is not a list".to_owned()),
        }
        Ok(())
    }

    pub(super) fn insert(&mut self, entries: Vec<(Id, Id)>) -> Step {
        let dict = self.top()?;
        match &mut self.nodes[dict] {
            Node::Dict(dict) => dict.extend(entries),
            Node::Opaque { .. } => {}
            _ => return Err("entries are added to something that is not a dictionary".to_owned()),
        }
        Ok(())
    }

    pub(super) fn entries(&mut self) -> Step<Vec<(Id, Id)>> {
        let items = self.pop_mark()?;
        if items.len() % 2 != 0 {
            return Err("a dictionary has a key without a value".to_owned());
        }
        Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    pub(super) fn push(&mut self, node: Node) -> Step {
        if self.nodes.len() >= MAX_NODES {
            return Err(format!("more than {MAX_NODES} objects"));
        }
        self.node_bytes += node.bytes();
        if self.node_bytes > MAX_BYTES {
            return Err(format!("objects of more than {MAX_BYTES} bytes"));
        }
        self.nodes.push(node);
        self.push_id(self.nodes.len() - 1)
    }

    /// The stack needs no limit of its own: each opcode, a byte at least, pushes once.
    pub(super) fn push_id(&mut self, id: Id) -> Step {
        self.stack.push(id);
        Ok(())
    }

    /// Below this height the stack belongs to the objects before the last mark.
    pub(super) fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    pub(super) fn pop(&mut self) -> Step<Id> {
        if self.stack.len() <= self.floor() {
            return Err("the stack is empty".to_owned());
        }
        self.stack.pop().ok_or_else(|| "the stack is empty".to_owned())
    }

    pub(super) fn pop_text(&mut self) -> Step<String> {
        let id = self.pop()?;
        match &self.nodes[id] {
            Node::Text(text) => Ok(text.clone()),
            _ => Err("a class is named by something that is not text".to_owned()),
        }
    }

    pub(super) fn top(&self) -> Step<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => Err("the stack is empty".to_owned()),
        }
    }

    pub(super) fn pop_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("there is no mark on the stack")?;
        Ok(self.stack.split_off(mark))
    }

    pub(super) fn memoize(&mut self, key: u32) -> Step {
        let top = self.top()?;
        self.memo.insert(key, top);
        if self.memo.len() > MAX_NODES {
            return Err(format!("a memo of more than {MAX_NODES} objects"));
        }
        Ok(())
    }

    pub(super) fn recall(&mut self, key: u32) -> Step {
        let id = self.memo.get(&key).copied();
        self.push_id(id.ok_or_else(|| format!("memo {key} is empty"))?)
    }

    pub(super) fn text(&mut self, width: usize) -> Step {
        let len = self.length(width)?;
        let text = std::str::from_utf8(self.take(len)?);
        let text = text.map_err(|_| "text that is not UTF-8")?.to_owned();
        self.push(Node::Text(text))
    }

    pub(super) fn blob(&mut self, width: usize) -> Step {
        let len = self.length(width)?;
        self.take(len)?;
        self.push(Node::Plain)
    }

    /// A little-endian two's complement integer of any length; those beyond 64 bits are not sizes.
    pub(super) fn long(&mut self, width: usize) -> Step {
        let len = self.length(width)?;
        let digits = self.take(len)?;
        let node = match digits.last() {
            None => Node::Int(0),
            Some(&last) if digits.len() <= 8 => {
                let mut bytes = [if last & 0x80 == 0 { 0 } else { 0xff }; 8];
                bytes[..digits.len()].copy_from_slice(digits);
                Node::Int(i64::from_le_bytes(bytes))
            }
            Some(_) => Node::Plain,
        };
        self.push(node)
    }

    pub(super) fn byte(&mut self) -> Step<u8> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u32(&mut self) -> Step<u32> {
        Ok(self.length(4)? as u32)
    }

    /// An unsigned integer of `width` bytes.
    pub(super) fn length(&mut self, width: usize) -> Step<usize> {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(self.take(width)?);
        usize::try_from(u64::from_le_bytes(bytes)).map_err(|_| "an impossible length".to_owned())
    }

    pub(super) fn take(&mut self, len: usize) -> Step<&[u8]> {
        let rest = &self.bytes[self.at..];
        if len > rest.len() {
            return Err(format!("{len} bytes are claimed where {} are left", rest.len()));
        }
        self.at += len;
        Ok(&rest[..len])
    }

    pub(super) fn line(&mut self) -> Step<String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n');
        let line = &rest[..end.ok_or("a name without an end")?];
        let line = std::str::from_utf8(line).map_err(|_| "a name that is not UTF-8")?.to_owned();
        self.at += line.len() + 1;
        Ok(line)
    }
}
