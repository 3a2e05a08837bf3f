//! The named tensors of a network.
//!
//! A network is built on a [`ParamStore`]: each layer asks its [`Scope`] for tensors by name, and the full name is the name in
//! the reference checkpoint (`blocks.3.attn.qkv.weight`), so that loading is a comparison of names and needs no guessing.
//! `tch::nn::VarStore` is not used: it renames duplicates, iterates in hash order, and takes the file's type on loading.
//!
//! A start value depends on (seed, full name) alone. Adding a layer, or building layers in another order, changes no other
//! layer's start, so an ablation starts every shared parameter from the same numbers.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Display;

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Mismatch, Misshaped, Result};
use crate::init::Init;

/// Named tensors.
pub type Tensors = BTreeMap<String, Tensor>;

/// What a named tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Trained: a leaf that requires a gradient.
    Trainable,
    /// Saved and loaded with the parameters, never trained (fixed position embeddings, frozen networks).
    Buffer,
}

/// A named tensor.
#[derive(Debug)]
pub struct Param {
    /// The values, always f32. Layers hold handles to the same storage.
    pub tensor: Tensor,
    /// Whether it is trained.
    pub role: Role,
}

/// All named tensors of a network, in the order of their names.
#[derive(Debug)]
pub struct ParamStore {
    device: Cell<Device>,
    start: Start,
    params: RefCell<BTreeMap<String, Param>>,
}

#[derive(Debug)]
enum Start {
    Seed(u64),
    Zeros,
    Given(BTreeMap<String, Tensor>),
}

impl ParamStore {
    /// A store for a network that will be trained: parameters start as their [`Init`] says, drawn from (`seed`, name).
    pub fn new(device: Device, seed: u64) -> Self {
        Self { device: Cell::new(device), start: Start::Seed(seed), params: RefCell::default() }
    }

    /// A store for a network whose values come from a file and are not trained: every tensor is a buffer of zeros until
    /// [`ParamStore::load`], whatever its [`Init`], so that no time goes into numbers nobody reads.
    pub fn frozen(device: Device) -> Self {
        Self { device: Cell::new(device), start: Start::Zeros, params: RefCell::default() }
    }

    /// A store over tensors that exist already, on `device`, and are not trained: the network built on it shares their
    /// storage, so that several threads can each have the network and the memory holds one.
    ///
    /// Building a layer panics if its tensor is not given with its shape: compare with what the network needs before.
    pub fn given(device: Device, tensors: BTreeMap<String, Tensor>) -> Self {
        Self { device: Cell::new(device), start: Start::Given(tensors), params: RefCell::default() }
    }

    /// The scope of full names.
    pub fn root(&self) -> Scope<'_> {
        Scope { store: self, prefix: String::new() }
    }

    /// Where the tensors are.
    pub fn device(&self) -> Device {
        self.device.get()
    }

    /// Moves all tensors, in place: layers built on this store follow. Build optimizers afterwards, since theirs do not.
    pub fn to(&self, device: Device) {
        tch::no_grad(|| {
            for param in self.params.borrow_mut().values_mut() {
                let moved = param.tensor.detach().to_device(device);
                param.tensor.set_data(&moved);
            }
        });
        self.device.set(device);
    }

    /// A handle on the tensor called `name`.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.params.borrow().get(name).map(|p| p.tensor.shallow_clone())
    }

    /// Handles on all tensors, ordered by name.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.collect(|_| true)
    }

    /// Handles on the tensors that are trained, ordered by name.
    pub fn trainable(&self) -> BTreeMap<String, Tensor> {
        self.collect(|role| role == Role::Trainable)
    }

    fn collect(&self, keep: impl Fn(Role) -> bool) -> BTreeMap<String, Tensor> {
        let params = self.params.borrow();
        params.iter().filter(|(_, p)| keep(p.role)).map(|(n, p)| (n.clone(), p.tensor.shallow_clone())).collect()
    }

    /// Trains the buffer called `name` from here on, as fine-tuning does with positions that were fixed before. Does nothing on a
    /// store that is not trained.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn train(&self, name: &str) {
        if !matches!(self.start, Start::Seed(_)) {
            return;
        }
        let mut params = self.params.borrow_mut();
        let param = params.get_mut(name).unwrap_or_else(|| panic!("no tensor is called {name}"));
        param.tensor = param.tensor.set_requires_grad(true);
        param.role = Role::Trainable;
    }

    /// Takes the tensors whose names start with `prefix` out of the store: parts of a network that a use of it leaves out are neither
    /// trained nor saved nor asked for. Layers keep their handles.
    pub fn remove(&self, prefix: &str) {
        self.params.borrow_mut().retain(|name, _| !name.starts_with(prefix));
    }

    /// Count of trained numbers.
    pub fn num_trainable(&self) -> usize {
        self.params.borrow().values().filter(|p| p.role == Role::Trainable).map(|p| p.tensor.numel()).sum()
    }

    /// What keeps `tensors` from being loaded.
    pub fn mismatch(&self, tensors: &BTreeMap<String, Tensor>) -> Mismatch {
        let params = self.params.borrow();
        let mut mismatch = Mismatch::default();
        for (name, param) in params.iter() {
            let expected = param.tensor.size();
            match tensors.get(name) {
                None => mismatch.missing.push((name.clone(), expected)),
                Some(t) if t.size() != expected => {
                    mismatch.misshaped.push(Misshaped { name: name.clone(), found: t.size(), expected })
                }
                Some(t) if !is_float(t.kind()) => mismatch.not_float.push((name.clone(), t.kind())),
                Some(_) => {}
            }
        }
        let unexpected = tensors.iter().filter(|(name, _)| !params.contains_key(*name));
        mismatch.unexpected = unexpected.map(|(name, t)| (name.clone(), t.size())).collect();
        mismatch
    }

    /// Copies `tensors` over all values, converted to f32. `origin` names them in the error.
    ///
    /// # Errors
    /// [`Error::WeightsMismatch`] unless names and shapes are exactly the network's; then nothing has been changed.
    pub fn load(&self, origin: &str, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let mismatch = self.mismatch(tensors);
        if !mismatch.is_empty() {
            return Err(Error::WeightsMismatch { origin: origin.to_owned(), mismatch });
        }
        tch::no_grad(|| {
            for (name, param) in self.params.borrow_mut().iter_mut() {
                param.tensor.copy_(&tensors[name]);
            }
        });
        Ok(())
    }
}

fn is_float(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16)
}

/// A prefix of names in a [`ParamStore`].
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    store: &'a ParamStore,
    prefix: String,
}

impl Scope<'_> {
    /// The scope one level down: `scope.sub("blocks").sub(3)` holds `blocks.3.*`.
    pub fn sub(&self, name: impl Display) -> Self {
        Self { store: self.store, prefix: self.full_name(&name.to_string()) }
    }

    /// Where the tensors are.
    pub fn device(&self) -> Device {
        self.store.device()
    }

    /// Adds a trained f32 tensor.
    ///
    /// # Panics
    /// If the name is taken: two layers would be one parameter. On [`ParamStore::given`], if the tensor is not there.
    pub fn param(&self, name: &str, shape: &[i64], init: Init) -> Tensor {
        let full_name = self.full_name(name);
        let (tensor, role) = match &self.store.start {
            Start::Seed(seed) => (init.tensor(shape, *seed, &full_name), Role::Trainable),
            Start::Zeros => (Tensor::zeros(shape, (Kind::Float, Device::Cpu)), Role::Buffer),
            Start::Given(tensors) => {
                let given = tensors.get(&full_name).unwrap_or_else(|| panic!("no tensor {full_name} was given"));
                assert_eq!(given.size(), shape, "shape of {full_name}");
                (given.shallow_clone(), Role::Buffer)
            }
        };
        self.insert(full_name, tensor, role)
    }

    /// Adds a tensor that is saved and loaded but not trained.
    ///
    /// # Panics
    /// If the name is taken.
    pub fn buffer(&self, name: &str, value: &Tensor) -> Tensor {
        self.insert(self.full_name(name), value.to_kind(Kind::Float), Role::Buffer)
    }

    fn insert(&self, full_name: String, tensor: Tensor, role: Role) -> Tensor {
        let tensor = tensor.to_device(self.device()).set_requires_grad(role == Role::Trainable);
        let handle = tensor.shallow_clone();
        let before = self.store.params.borrow_mut().insert(full_name.clone(), Param { tensor, role });
        assert!(before.is_none(), "two tensors are called {full_name}");
        handle
    }

    fn full_name(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

#[cfg(test)]
mod tests;
