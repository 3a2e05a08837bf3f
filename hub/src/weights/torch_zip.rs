//! The zip archives of `torch.save` (`.pth`, `.pt`, `.bin`) as named tensors.
//!
//! | entry below the archive's one folder | holds |
//! |---|---|
//! | `data.pkl` | the saved object, see [`super::pickle`] |
//! | `data/<key>` | the numbers of one storage |
//! | `byteorder` | `little` or `big`; older versions of torch leave it out and write little-endian |
//!
//! A tensor is named by the dictionary keys on the way to it, joined by dots: `{"teacher": {"backbone.norm.weight": ..}}` holds
//! `teacher.backbone.norm.weight`. Objects of other classes (a whole module, a TorchScript archive) are looked through by their
//! attributes; the dictionaries in which modules keep theirs (`_parameters`, `_buffers`, `_modules`) give no part of the name.
//! What is in lists, or under keys that are not text, has no name and is not read: an optimizer's moments, say.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek};

use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Id, Node, Pickle, Refusal, Storage, View};
use super::{Backend, Dtype};

/// The pickle of a ViT-g with its optimizer has about 5 MiB; the numbers are in entries of their own.
const MAX_PICKLE_BYTES: u64 = 64 << 20;

/// Dictionaries within dictionaries; a module of modules nests about ten deep.
const MAX_DEPTH: usize = 64;

/// Places that are looked at in all, since one dictionary can stand in many.
const MAX_VISITS: usize = 1 << 20;

/// Bytes of the names of all tensors: a name joins up to [`MAX_DEPTH`] keys, each of which may be as long as the pickle and stand in many
/// places. Those of the largest networks take less than a megabyte.
const MAX_NAME_BYTES: usize = 64 << 20;

/// Elements that views may have beyond their storages', in all: a view of stride 0 stands for any amount of memory once it is copied.
const MAX_REPEATED: i64 = 16 << 20;

type Outcome<T> = Result<T, String>;

/// Tensors by name; and those that are not read, with their types.
type Found<T> = (BTreeMap<String, T>, BTreeMap<String, String>);

/// Reads the tensors of the archive `file`.
///
/// # Errors
/// The first thing that is wrong with it, naming the tensor where there is one.
pub(super) fn read<B: Backend>(file: File) -> Result<Found<B::Tensor>, Refusal> {
    let file_len = file.metadata().map_err(|e| e.to_string())?.len();
    let mut archive = Archive::open(BufReader::new(file), file_len)?;
    archive.check_byte_order()?;
    let pickle = archive.entry("data.pkl", MAX_PICKLE_BYTES)?;
    let pickle = Pickle::parse(&pickle)?;
    let mut names =
        Names { pickle: &pickle, views: BTreeMap::new(), unread: BTreeMap::new(), visits: 0, name_bytes: 0 };
    names.collect(pickle.root, &mut Vec::new())?;

    let mut storages = HashMap::new();
    let (mut tensors, mut unread) = (BTreeMap::new(), names.unread);
    let mut repeated = 0;
    for (name, view) in names.views {
        let named = |reason: String| format!("tensor {name}: {reason}");
        let Some(dtype) = dtype_of(&view.storage.class) else {
            let class = &view.storage.class;
            let dtype = class.strip_suffix("Storage").unwrap_or(class);
            unread.insert(name, dtype.to_owned());
            continue;
        };
        repeated = check(view).map_err(named)?.saturating_add(repeated);
        if repeated > MAX_REPEATED {
            return Err(Refusal::Unsupported(format!(
                "an archive whose views repeat their elements {repeated} times (tensor {name} has shape {:?} and strides {:?})",
                view.size, view.stride
            )));
        }
        let storage = &view.storage;
        let (loaded, loaded_dtype, loaded_numel) = match storages.get(&storage.key) {
            Some(loaded) => loaded,
            None => {
                let tensor = archive.storage::<B>(storage, dtype).map_err(named)?;
                storages.entry(storage.key.clone()).or_insert((tensor, dtype, storage.numel))
            }
        };
        if *loaded_dtype != dtype || *loaded_numel != storage.numel {
            return Err(Refusal::Damaged(named(format!("storage {} is of two types or lengths", storage.key))));
        }
        let tensor = B::view(loaded, &view.size, &view.stride, view.offset).map_err(named)?;
        tensors.insert(name, tensor);
    }
    Ok((tensors, unread))
}

struct Archive<R> {
    zip: ZipArchive<R>,
    /// With its slash.
    root: String,
    file_len: u64,
    /// Bytes that storages may still have. Entries of a directory may overlap, so each of many can be nearly as long as the file.
    storage_bytes_left: u64,
}

impl<R: Read + Seek> Archive<R> {
    fn open(reader: R, file_len: u64) -> Result<Archive<R>, Refusal> {
        // torch writes nothing before its archive, but records of 76 bytes between its directory and the end. A reader that looks
        // for the beginning counts back from the end, lands 76 bytes late, and takes what it finds there for the first entry
        // where the true first has 76 bytes: in every file that was saved under a name as long as mae_pretrain_vit_base.
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let mut zip =
            ZipArchive::with_config(config, reader).map_err(|e| format!("the zip archive is damaged: {e}"))?;
        let mut roots = Vec::new();
        let mut names = Vec::new();
        for name in zip.file_names() {
            let name = name.map_err(|e| format!("the zip archive is damaged: {e}"))?;
            names.push(name.to_string());
            let root = name.strip_suffix("data.pkl");
            roots.extend(root.filter(|root| root.ends_with('/') && root.matches('/').count() == 1).map(str::to_owned));
        }
        for i in 0..zip.len() {
            let entry = zip.by_index_raw(i);
            let entry = entry.map_err(|e| format!("the zip archive is damaged: {e}"))?;
            let name = entry.name().unwrap_or_default();
            // TorchScript compresses its code.
            let is_read = name.ends_with("/data.pkl") || name.contains("/data/");
            if is_read && entry.compression() != CompressionMethod::Stored {
                return Err(Refusal::Unsupported(format!(
                    "a zip archive with compressed entries ({name:?}), which torch.save does not write"
                )));
            }
        }
        match (roots.pop(), roots.is_empty()) {
            (Some(root), true) => Ok(Archive { root, file_len, zip, storage_bytes_left: file_len }),
            _ => {
                let any = |end: &str| names.iter().any(|name| name.ends_with(end));
                Err(Refusal::Foreign(
                    if any(".npy") {
                        "a NumPy archive (.npz)"
                    } else if any(".weights.h5") {
                        "a Keras archive (.keras)"
                    } else if any(".pth") || any(".pt") || any(".bin") || any(".safetensors") {
                        "a zip archive with weights files in it, to be unpacked first,"
                    } else {
                        "a zip archive with no single data.pkl, so not one of torch.save,"
                    }
                    .to_owned(),
                ))
            }
        }
    }

    fn check_byte_order(&mut self) -> Result<(), Refusal> {
        if self.zip.index_for_name(&format!("{}byteorder", self.root)).is_none() {
            return Ok(());
        }
        match &self.entry("byteorder", 16)?[..] {
            b"little" => Ok(()),
            other => Err(Refusal::Unsupported(format!(
                "an archive whose numbers are in byte order {:?}",
                String::from_utf8_lossy(other)
            ))),
        }
    }

    /// Opens a stored entry. Reading to its end checks its CRC.
    fn open_entry(&mut self, name: &str) -> Outcome<zip::read::ZipFile<'_, R>> {
        let entry = self.zip.by_name(&format!("{}{name}", self.root));
        let entry = entry.map_err(|e| format!("entry {name}: {e}"))?;
        if entry.size() != entry.compressed_size() || entry.size() > self.file_len {
            return Err(format!("entry {name} claims {} bytes in a file of {}", entry.size(), self.file_len));
        }
        Ok(entry)
    }

    fn entry(&mut self, name: &str, limit: u64) -> Outcome<Vec<u8>> {
        let mut entry = self.open_entry(name)?;
        let len = entry.size();
        if len > limit {
            return Err(format!("entry {name} has {len} bytes, more than {limit}"));
        }
        let mut bytes = Vec::with_capacity(len as usize);
        entry.read_to_end(&mut bytes).map_err(|e| format!("entry {name}: {e}"))?;
        if bytes.len() as u64 != len {
            return Err(format!("entry {name} is cut short"));
        }
        Ok(bytes)
    }

    fn storage<B: Backend>(&mut self, storage: &Storage, dtype: Dtype) -> Outcome<B::Tensor> {
        let name = format!("data/{}", storage.key);
        let left = self.storage_bytes_left;
        let mut entry = self.open_entry(&name)?;
        let element_bytes = dtype.bitsize() as u64 / 8;
        let len = u64::try_from(storage.numel).ok().and_then(|numel| numel.checked_mul(element_bytes));
        if len != Some(entry.size()) {
            return Err(format!(
                "storage {} of {} elements of {} has {} bytes",
                storage.key,
                storage.numel,
                storage.class,
                entry.size()
            ));
        }
        let Some(left) = left.checked_sub(entry.size()) else {
            return Err(format!("entry {name} overlaps others: the storages have more bytes than the file"));
        };
        let mut tensor = B::empty(dtype, &[storage.numel])?;
        let bytes = B::bytes(&mut tensor)?;
        entry.read_exact(bytes).map_err(|e| format!("entry {name}: {e}"))?;
        // The CRC is compared at the end of the entry, which reading exactly its length does not reach.
        match entry.read(&mut [0]) {
            Ok(0) => {}
            Ok(_) => return Err(format!("entry {name} is longer than it says")),
            Err(e) => return Err(format!("entry {name}: {e}")),
        }
        if dtype == Dtype::BOOL && bytes.iter().any(|&byte| byte > 1) {
            return Err(format!("storage {} has booleans that are neither 0 nor 1", storage.key));
        }
        drop(entry);
        self.storage_bytes_left = left;
        Ok(tensor)
    }
}

/// Finds the tensors that have names.
struct Names<'a> {
    pickle: &'a Pickle,
    views: BTreeMap<String, &'a View>,
    unread: BTreeMap<String, String>,
    visits: usize,
    name_bytes: usize,
}

impl<'a> Names<'a> {
    fn collect(&mut self, id: Id, path: &mut Vec<&'a str>) -> Result<(), Refusal> {
        self.visits += 1;
        if path.len() > MAX_DEPTH || self.visits > MAX_VISITS {
            return Err(Refusal::Damaged(format!(
                "its dictionaries nest more than {MAX_DEPTH} deep or hold more than {MAX_VISITS} entries"
            )));
        }
        match self.pickle.node(id) {
            tensor @ (Node::Tensor(_) | Node::Unread(_)) => {
                self.name_bytes += path.iter().map(|part| part.len() + 1).sum::<usize>();
                if self.name_bytes > MAX_NAME_BYTES {
                    return Err(Refusal::Damaged(format!(
                        "the names of its tensors have more than {MAX_NAME_BYTES} bytes"
                    )));
                }
                // An empty path is a file of one tensor alone.
                let name = path.iter().filter(|part| !part.is_empty());
                let name = name.copied().collect::<Vec<_>>().join(".");
                if name.is_empty() {
                    return Err(Refusal::Unsupported("an archive of one tensor without a name".to_owned()));
                }
                match tensor {
                    Node::Tensor(view) => {
                        if self.views.get(&name).is_some_and(|other| *other != view) {
                            return Err(Refusal::Unsupported(format!("an archive with two tensors called {name}")));
                        }
                        self.views.insert(name, view);
                    }
                    Node::Unread(what) => drop(self.unread.insert(name, what.clone())),
                    _ => {}
                }
            }
            Node::Dict(entries) => {
                for &(key, value) in entries {
                    if let Node::Text(key) = self.pickle.node(key) {
                        path.push(key);
                        self.collect(value, path)?;
                        path.pop();
                    }
                }
            }
            Node::Opaque { state: Some(state), .. } => {
                // Objects with slots have a pair of dictionaries.
                let states = match self.pickle.node(*state) {
                    Node::Tuple(states) => states.as_slice(),
                    _ => std::slice::from_ref(state),
                };
                for &state in states {
                    let Node::Dict(entries) = self.pickle.node(state) else {
                        continue;
                    };
                    for &(key, value) in entries {
                        if let Node::Text(key) = self.pickle.node(key) {
                            let kept = matches!(&key[..], "_parameters" | "_buffers" | "_modules");
                            path.push(if kept { "" } else { key });
                            self.collect(value, path)?;
                            path.pop();
                        }
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether a view lies within its storage; and how many elements more it has, where it repeats some.
fn check(view: &View) -> Outcome<i64> {
    let View { storage, offset, size, stride } = view;
    let outside = || {
        format!(
            "shape {size:?} with strides {stride:?} from {offset} does not fit into its storage of {} elements",
            storage.numel
        )
    };
    let negative = |values: &[i64]| values.iter().any(|&value| value < 0);
    if size.len() != stride.len() || *offset < 0 || negative(size) || negative(stride) || storage.numel < 0 {
        return Err(outside());
    }
    let numel = size.iter().try_fold(1i64, |all, &n| all.checked_mul(n));
    if size.contains(&0) {
        // No element is read, and the other dimensions matter only to the backend, which may multiply them.
        return if size.iter().all(|&n| n <= i64::from(u32::MAX)) && *offset <= storage.numel && size.len() <= 8 {
            Ok(0)
        } else {
            Err(outside())
        };
    }
    let last = size
        .iter()
        .zip(stride)
        .try_fold(*offset, |at, (&n, &step)| (n - 1).checked_mul(step).and_then(|span| at.checked_add(span)));
    match numel {
        Some(numel) if last.is_some_and(|last| last < storage.numel) => Ok((numel - storage.numel).max(0)),
        _ => Err(outside()),
    }
}

fn dtype_of(class: &str) -> Option<Dtype> {
    Some(match class {
        "DoubleStorage" => Dtype::F64,
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}
