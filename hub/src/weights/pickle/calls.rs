//! What the classes and functions that a pickle names stand for.

use super::{Id, Machine, Node, Step, Storage, View};

impl Machine<'_> {
    /// What calling `function` makes, as far as it is known here without running it.
    pub(super) fn call(&self, function: Id, arguments: Id) -> Step<Node> {
        let mut function = match &self.nodes[function] {
            Node::Global(name) => name.as_str(),
            _ => return Err("a call of something that is not a class or function".to_owned()),
        };
        let Node::Tuple(arguments) = &self.nodes[arguments] else {
            return Err(format!("{function} is called without a tuple"));
        };
        let mut arguments = &arguments[..];
        // A subclass of tensors saves the function that makes the tensor, and its arguments.
        if function == "torch._tensor._rebuild_from_type_v2"
            && let &[inner, _, given, ..] = arguments
            && let (Node::Global(name), Node::Tuple(given)) = (&self.nodes[inner], &self.nodes[given])
        {
            function = name;
            arguments = given;
        }
        let bad = || format!("{function} is called with arguments that make no tensor");
        match function {
            "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor" => {
                let &[storage, offset, size, stride, ..] = arguments else {
                    return Err(bad());
                };
                let (Node::Storage(storage), Node::Int(offset)) = (&self.nodes[storage], &self.nodes[offset]) else {
                    return Err(bad());
                };
                Ok(Node::Tensor(View {
                    storage: storage.clone(),
                    offset: *offset,
                    size: self.ints(size).ok_or_else(bad)?,
                    stride: self.ints(stride).ok_or_else(bad)?,
                }))
            }
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                match arguments.first().map(|&data| &self.nodes[data]) {
                    Some(tensor @ (Node::Tensor(_) | Node::Unread(_))) => Ok(tensor.clone()),
                    // A subclass of tensors, made by a function of its own.
                    Some(Node::Opaque { class, .. }) => Ok(Node::Unread(class.clone())),
                    _ => Err(bad()),
                }
            }
            // Types without a class of storages: 8-bit floats, unsigned integers.
            "torch._utils._rebuild_tensor_v3" => {
                let dtype = match arguments.get(6).map(|&dtype| &self.nodes[dtype]) {
                    Some(Node::Global(name)) => name.strip_prefix("torch.").unwrap_or(name),
                    _ => "of an unknown type",
                };
                Ok(Node::Unread(dtype.to_owned()))
            }
            "torch._utils._rebuild_qtensor" => Ok(Node::Unread("quantized".to_owned())),
            "torch._utils._rebuild_sparse_tensor" | "torch._utils._rebuild_sparse_csr_tensor" => {
                Ok(Node::Unread("sparse".to_owned()))
            }
            "torch._utils._rebuild_meta_tensor_no_storage" => Ok(Node::Unread("meta, which has no values,".to_owned())),
            "collections.defaultdict" => Ok(Node::Dict(Vec::new())),
            // Python 2 gives the entries here; later versions set them afterwards.
            "collections.OrderedDict" | "builtins.dict" => {
                let Some(&given) = arguments.first() else {
                    return Ok(Node::Dict(Vec::new()));
                };
                let entries = match &self.nodes[given] {
                    Node::Dict(entries) => Some(entries.clone()),
                    Node::List(pairs) => pairs.iter().map(|&pair| self.pair(pair)).collect(),
                    _ => None,
                };
                entries
                    .map(Node::Dict)
                    .ok_or_else(|| format!("{function} is called with something that is not a list of pairs"))
            }
            "torch.Size" => match arguments.first().map(|&size| &self.nodes[size]) {
                Some(Node::Tuple(size) | Node::List(size)) => Ok(Node::Tuple(size.clone())),
                _ => Err(bad()),
            },
            other if other.starts_with("torch._utils._rebuild_") || other.starts_with("torch._tensor._rebuild_") => {
                Ok(Node::Unread(other.to_owned()))
            }
            _ => Ok(Node::Opaque { class: function.to_owned(), state: None }),
        }
    }

    fn pair(&self, id: Id) -> Option<(Id, Id)> {
        match &self.nodes[id] {
            Node::Tuple(pair) | Node::List(pair) if pair.len() == 2 => Some((pair[0], pair[1])),
            _ => None,
        }
    }

    fn ints(&self, tuple: Id) -> Option<Vec<i64>> {
        let Node::Tuple(items) = &self.nodes[tuple] else {
            return None;
        };
        items
            .iter()
            .map(|&item| match self.nodes[item] {
                Node::Int(value) => Some(value),
                _ => None,
            })
            .collect()
    }

    /// `('storage', class, key, device, elements)`.
    pub(super) fn storage(&self, reference: Id) -> Step<Storage> {
        let bad = || "a persistent id that names no storage".to_owned();
        let Node::Tuple(parts) = &self.nodes[reference] else {
            return Err(bad());
        };
        let [tag, class, key, _, numel] = parts[..] else {
            return Err(bad());
        };
        match (&self.nodes[tag], &self.nodes[class], &self.nodes[key], &self.nodes[numel]) {
            (Node::Text(tag), Node::Global(class), Node::Text(key), Node::Int(numel)) if tag == "storage" => {
                let class = class
                    .strip_prefix("torch.storage.")
                    .or_else(|| class.strip_prefix("torch.cuda."))
                    .or_else(|| class.strip_prefix("torch."))
                    .ok_or_else(bad)?;
                Ok(Storage { class: class.to_owned(), key: key.clone(), numel: *numel })
            }
            _ => Err(bad()),
        }
    }

    pub(super) fn global(&mut self, module: &str, name: &str) -> Step {
        // Nothing would be run. A file that asks for these is meant to harm those who open it with another reader, and its owner
        // should hear of that.
        const HARMFUL: [&str; 16] = [
            "os",
            "posix",
            "nt",
            "subprocess",
            "sys",
            "shutil",
            "socket",
            "importlib",
            "runpy",
            "pickle",
            "_pickle",
            "ctypes",
            "webbrowser",
            "pty",
            "code",
            "commands",
        ];
        let package = module.split('.').next().unwrap_or_default();
        let runs_code = ["eval", "exec", "execfile", "compile", "__import__", "open", "input"];
        let builtin = matches!(package, "builtins" | "__builtin__" | "__builtins__");
        if HARMFUL.contains(&package) || (builtin && runs_code.contains(&name)) {
            self.harmful = Some(format!("{module}.{name}"));
            return Err(format!("{module}.{name} is not part of a tensor"));
        }
        let module = if builtin { "builtins" } else { module };
        self.push(Node::Global(format!("{module}.{name}")))
    }
}
