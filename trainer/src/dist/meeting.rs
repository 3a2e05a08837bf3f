//! How processes find each other: rank 0's address, the store that is kept there, and who is there.

use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use program::signals::{self, Interrupted};

use super::lost::{LostRank, named};
use super::place::Place;
use super::store::Store;

/// How long to wait for processes that start.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// Processes that are on their way to each other.
pub(super) struct Meeting<'a> {
    pub place: &'a Place,
    pub store: &'a Store,
    pub deadline: Instant,
}

impl Meeting<'_> {
    /// A value that another process sets; `None` if it does not in time.
    fn value(&self, key: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(value) = self.store.get(key)? {
                return Ok(Some(value));
            }
            if signals::requested() {
                return Err(Interrupted.into());
            }
            if Instant::now() > self.deadline {
                return Ok(None);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Waits until all are there.
    ///
    /// # Errors
    /// [`LostRank`] with those that are missing.
    pub(super) fn wait_for_all(&self) -> anyhow::Result<()> {
        let Place { rank, world_size, .. } = *self.place;
        let lost = |why: String| LostRank { rank, step: None, why };
        self.store.set(&format!("here/{rank}"), b"")?;
        if rank != 0 {
            let missing = self.value("all-here")?;
            let late = || lost(format!("not all {world_size} processes have come within {} s", PATIENCE.as_secs()));
            ensure!(missing.with_context(late)?.is_empty(), late());
            return Ok(());
        }
        let mut missing = Vec::new();
        for rank in 1..world_size {
            if self.value(&format!("here/{rank}"))?.is_none() {
                missing.push(rank);
            }
        }
        self.store.set("all-here", format!("{missing:?}").trim_matches(['[', ']']).as_bytes())?;
        if !missing.is_empty() {
            let seconds = PATIENCE.as_secs();
            return Err(lost(format!("{} of {world_size} did not come within {seconds} s", named(&missing))).into());
        }
        Ok(())
    }
}

/// Connects to the store by which the processes meet, as soon as it is there.
pub(super) fn open_store(place: &Place) -> anyhow::Result<Store> {
    let (host, port) = (&place.master.0, place.master.1);
    let serves = place.rank == 0 && !place.agent_store;
    // Processes of an attempt that has failed must not be taken for those of this one.
    let prefix = format!("mr-mae/{}/", place.restarts);
    let began = Instant::now();
    loop {
        // Between two attempts a signal may end the wait.
        match torch_ext::Store::open(host, port, serves, Duration::from_secs(5), &prefix) {
            Ok(store) => return Store::new(store, PATIENCE),
            Err(error) if serves => {
                let taken = error.to_string().contains("EADDRINUSE");
                return Err(anyhow::Error::from(error).context(match taken {
                    true => format!("port {port} is in use: set MASTER_PORT to a free one for all processes"),
                    false => format!("{host}:{port} (MASTER_ADDR, MASTER_PORT) cannot be opened"),
                }));
            }
            Err(_) if signals::requested() => return Err(Interrupted.into()),
            Err(error) if began.elapsed() > PATIENCE => {
                return Err(anyhow::Error::from(error).context(format!(
                    "rank {}: nobody answers at {host}:{port} (MASTER_ADDR, MASTER_PORT): rank 0 has not started, or cannot be reached",
                    place.rank
                )));
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// This machine's address on the way to the master.
pub(super) fn local_address(master: &(String, u16)) -> anyhow::Result<IpAddr> {
    let unknown = || format!("no host is known as MASTER_ADDR {:?}", master.0);
    let remote = (master.0.as_str(), master.1).to_socket_addrs().with_context(unknown)?.next().with_context(unknown)?;
    let any = if remote.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    // Sends nothing, and chooses the interface.
    socket.connect(remote).with_context(|| format!("{remote} (MASTER_ADDR) cannot be reached"))?;
    Ok(socket.local_addr()?.ip())
}
