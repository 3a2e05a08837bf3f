//! Events in a device's queue of work.
//!
//! Reading a scalar back waits for everything queued. A loop that records an event after step s and waits for it before
//! it reads step s's losses lets the device continue with step s + 1.

use std::ffi::c_int;
use std::ptr::NonNull;
use std::thread;
use std::time::{Duration, Instant};

use tch::Device;

use crate::error::{Error, Result};
use crate::ffi;

/// The work queued on a device up to a moment. On the CPU nothing is queued, so an event is done when it is recorded.
#[derive(Debug)]
pub struct Event {
    event: Option<NonNull<ffi::CEvent>>,
    /// Time of recording, at which the CPU's work is done.
    recorded: Instant,
}

// SAFETY: a c10::Event belongs to no thread; CUDA events may be queried, waited for and freed from any.
unsafe impl Send for Event {}

impl Event {
    /// Marks the work queued so far on the current stream of `device`.
    ///
    /// # Errors
    /// If the device does not exist.
    pub fn record(device: Device) -> Result<Self> {
        let Device::Cuda(index) = device else {
            return Ok(Self { event: None, recorded: Instant::now() });
        };
        let mut event = std::ptr::null_mut();
        // SAFETY: the pointer is to a live local variable.
        let code = unsafe { ffi::te_event_record(index as i64, &mut event) };
        ffi::check("recording an event", code)?;
        Ok(Self::of(event))
    }

    /// Takes ownership of an event from the C++ side.
    pub(crate) fn of(event: *mut ffi::CEvent) -> Self {
        Self { event: NonNull::new(event), recorded: Instant::now() }
    }

    /// Whether the marked work is done. Does not wait.
    ///
    /// # Errors
    /// If that work has failed.
    pub fn is_done(&self) -> Result<bool> {
        let Some(event) = self.event else {
            return Ok(true);
        };
        let mut done: c_int = 0;
        // SAFETY: the event lives until this is dropped; the other pointer is to a live local variable.
        ffi::check("asking for an event", unsafe { ffi::te_event_query(event.as_ptr(), &mut done) })?;
        Ok(done != 0)
    }

    /// Waits until the marked work is done. The thread sleeps, up to 100 µs too long, because the driver's own wait keeps a core
    /// busy that could decode images.
    ///
    /// # Errors
    /// If that work has failed.
    pub fn synchronize(&self) -> Result<()> {
        self.synchronize_with(|| Ok(()))
    }

    /// Like [`Event::synchronize`], and calls `check` some ten times a second meanwhile, since work that waits for another process may never be
    /// done.
    ///
    /// # Errors
    /// If that work has failed, and those of `check`, which end the wait.
    pub fn synchronize_with<E: From<Error>>(&self, mut check: impl FnMut() -> Result<(), E>) -> Result<(), E> {
        let mut checked = Instant::now();
        while !self.is_done()? {
            thread::sleep(Duration::from_micros(100));
            if checked.elapsed() > Duration::from_millis(100) {
                check()?;
                checked = Instant::now();
            }
        }
        Ok(())
    }

    /// From the end of this event's work to the end of `later`'s, on the device's clock (0.5 µs on a GPU); zero if `later` was recorded
    /// first.
    ///
    /// # Errors
    /// If one of the two is not done yet, or they are on different devices.
    pub fn time_until(&self, later: &Event) -> Result<Duration> {
        let (Some(event), Some(later_event)) = (self.event, later.event) else {
            return Ok(later.recorded.saturating_duration_since(self.recorded));
        };
        let mut milliseconds = 0.0;
        // SAFETY: both events live until their owners are dropped; the other pointer is to a live local variable.
        ffi::check("asking for the time between events", unsafe {
            ffi::te_event_elapsed(event.as_ptr(), later_event.as_ptr(), &mut milliseconds)
        })?;
        Ok(Duration::try_from_secs_f64(milliseconds / 1e3).unwrap_or_default())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            // SAFETY: it came from the C++ side and is freed only here.
            unsafe { ffi::te_event_free(event.as_ptr()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_the_cpu_everything_is_done_at_once() {
        let event = Event::record(Device::Cpu).unwrap();
        assert!(event.is_done().unwrap());
        event.synchronize().unwrap();
    }

    #[test]
    fn the_time_between_two_events_is_the_devices() {
        let first = Event::record(Device::Cpu).unwrap();
        let second = Event { event: None, recorded: first.recorded + Duration::from_millis(5) };
        assert_eq!(first.time_until(&second).unwrap(), Duration::from_millis(5));
        assert_eq!(second.time_until(&first).unwrap(), Duration::ZERO);
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error() {
        if crate::resolve_device("cuda").is_ok() {
            println!("skipped: there is a GPU");
            return;
        }
        assert!(matches!(Event::record(Device::Cuda(0)), Err(Error::Torch { operation: "recording an event", .. })));
    }
}
