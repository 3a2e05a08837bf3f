//! Requests that are made again, and the runtime that makes them.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;
use std::time::Duration;

use object_store::Error;
use tokio::runtime::{Builder, Runtime};

use crate::error::may_pass;

/// Attempts of a whole operation. The client repeats single requests by itself; this is for what it cannot repeat: a body that broke off, a
/// timeout of a request that changes something, an upload that the store has forgotten.
const ATTEMPTS: u32 = 4;

/// The pause before the second attempt; each further one doubles it. Every pause is between half and one and a half times as long.
const PAUSE: Duration = Duration::from_millis(250);

/// Runs an operation that may be repeated, until it succeeds or fails for good.
pub(crate) fn patiently<T, F: Future<Output = Result<T, Error>>>(operation: impl FnMut() -> F) -> Result<T, Error> {
    runtime().block_on(repeated(operation))
}

/// The same within the runtime.
pub(crate) async fn repeated<T, F: Future<Output = Result<T, Error>>>(
    mut operation: impl FnMut() -> F,
) -> Result<T, Error> {
    let mut attempt = 0;
    loop {
        match operation().await {
            Err(error) if attempt + 1 < ATTEMPTS && may_pass(&error) => {
                tracing::debug!("attempt {} failed: {}", attempt + 1, crate::error::explain(error));
                tokio::time::sleep(pause(attempt)).await;
                attempt += 1;
            }
            done => return done,
        }
    }
}

fn pause(attempt: u32) -> Duration {
    // Clients that failed together must not come back together.
    let any = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
    (PAUSE * 2u32.pow(attempt)).mul_f64(0.5 + any)
}

/// The threads that wait for the network. They start with the first URL; a program that has none does without.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let threads = std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 8);
        let runtime = Builder::new_multi_thread().worker_threads(threads).thread_name("storage").enable_all().build();
        runtime.expect("the system lets a program start threads")
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use object_store::client::{HttpError, HttpErrorKind};

    use super::*;

    fn broken() -> Error {
        let cause = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        Error::Generic { store: "S3", source: Box::new(HttpError::new(HttpErrorKind::Interrupted, cause)) }
    }

    #[test]
    fn what_may_pass_is_tried_again_and_what_stays_is_not() {
        let calls = Cell::new(0);
        let mut outcomes = vec![Ok(7), Err(broken()), Err(broken())];
        let result = patiently(|| {
            calls.set(calls.get() + 1);
            std::future::ready(outcomes.pop().unwrap())
        });
        assert_eq!((result.unwrap(), calls.get()), (7, 3));

        calls.set(0);
        let result = patiently(|| {
            calls.set(calls.get() + 1);
            std::future::ready(Err::<(), _>(Error::NotImplemented { operation: "x".into(), implementer: "y".into() }))
        });
        assert!(result.is_err() && calls.get() == 1);
    }

    #[test]
    fn pauses_grow_and_vary() {
        for attempt in 0..ATTEMPTS {
            let plain = PAUSE * 2u32.pow(attempt);
            let pauses: Vec<_> = (0..20).map(|_| pause(attempt)).collect();
            assert!(pauses.iter().all(|p| *p >= plain / 2 && *p <= plain * 3 / 2));
            assert!(pauses.iter().any(|p| *p != pauses[0]));
        }
    }
}
