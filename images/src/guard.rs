//! Runs parsers of other crates on untrusted bytes and turns their panics into errors.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs another crate's parser. Returns a panic as its message; the panic hook has reported it by then.
///
/// Unwind safety: callers pass closures over shared references and over values that are dropped by the unwinding.
pub(crate) fn catch_panics<T>(parser: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(parser)).map_err(|panic| {
        let message =
            panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
        message.unwrap_or_else(|| "a panic without a message".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(catch_panics(|| 7), Ok(7));
        assert_eq!(catch_panics(|| -> u8 { panic!("plain") }), Err("plain".to_owned()));
        let n = 3;
        assert_eq!(catch_panics(|| -> u8 { panic!("formatted {n}") }), Err("formatted 3".to_owned()));
    }
}
