//! The store by which processes meet, with a limit on how long an answer may take.
//!
//! A request to a machine that is cut off would wait as long as TCP does, a quarter of an hour. So a thread asks, and is given up.

use std::cell::Cell;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use crossbeam_channel::{Sender, bounded, unbounded};
use torch_ext::Error;

type Request = Box<dyn FnOnce(&torch_ext::Store) + Send>;

/// A store that answers in time, or with an error.
#[derive(Debug)]
pub(super) struct Store {
    inner: Arc<torch_ext::Store>,
    requests: Sender<Request>,
    limit: Cell<Duration>,
    /// Whether it has failed to answer; then it is not asked again.
    is_lost: Cell<bool>,
}

impl Store {
    /// Asks `inner`, and waits for an answer for `limit` at most.
    pub(super) fn new(inner: torch_ext::Store, limit: Duration) -> anyhow::Result<Store> {
        let inner = Arc::new(inner);
        let asked = Arc::clone(&inner);
        let (requests, received) = unbounded::<Request>();
        let answer = move || received.into_iter().for_each(|request| request(&asked));
        thread::Builder::new().name("store".into()).spawn(answer).context("cannot start a thread for the store")?;
        Ok(Store { inner, requests, limit: Cell::new(limit), is_lost: Cell::new(false) })
    }

    /// The store itself, to make a group.
    pub(super) fn inner(&self) -> &torch_ext::Store {
        &self.inner
    }

    pub(super) fn set_limit(&self, limit: Duration) {
        self.limit.set(limit);
    }

    /// See [`torch_ext::Store::set`].
    pub(super) fn set(&self, key: &str, value: &[u8]) -> torch_ext::Result<()> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.ask(move |store| store.set(&key, &value))
    }

    /// See [`torch_ext::Store::get`].
    pub(super) fn get(&self, key: &str) -> torch_ext::Result<Option<Vec<u8>>> {
        let key = key.to_owned();
        self.ask(move |store| store.get(&key))
    }

    /// See [`torch_ext::Store::delete`].
    pub(super) fn delete(&self, key: &str) -> torch_ext::Result<()> {
        let key = key.to_owned();
        self.ask(move |store| store.delete(&key))
    }

    fn ask<T: Send + 'static>(
        &self,
        request: impl FnOnce(&torch_ext::Store) -> torch_ext::Result<T> + Send + 'static,
    ) -> torch_ext::Result<T> {
        let (reply, answer) = bounded(1);
        let request: Request = Box::new(move |store| drop(reply.send(request(store))));
        let is_asked = !self.is_lost.get() && self.requests.send(request).is_ok();
        let answer = if is_asked { answer.recv_timeout(self.limit.get()).ok() } else { None };
        answer.unwrap_or_else(|| {
            self.is_lost.set(true);
            let message = format!("no answer within {} s", self.limit.get().as_secs());
            Err(Error::Group { operation: "asking the store", message })
        })
    }
}
