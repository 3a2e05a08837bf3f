//! Measures how long a device was idle between one piece of a run's work and the next.
//!
//! The host is a step ahead of a GPU: a wait for data that is shorter than the queued work costs nothing, and the host alone cannot tell
//! which was longer. Events in the device's own queue can. A GPU may also be idle between two kernels of one piece, if the host launches
//! them more slowly than the GPU runs them; that is not counted here.

use std::time::Duration;

use tch::Device;
use torch_ext::Event;

/// Marks the pieces of a run's work on a device, in order.
#[derive(Debug)]
pub(crate) struct IdleMeter {
    device: Device,
    /// The end of the last piece, until the next begins.
    end: Option<Event>,
    gaps: Gaps,
}

/// The times without work before and within a step.
#[derive(Debug, Default)]
pub(crate) struct Gaps(Vec<(Event, Event)>);

impl IdleMeter {
    /// A meter for `device`, before the run has queued any work on it.
    pub(crate) fn new(device: Device) -> IdleMeter {
        IdleMeter { device, end: None, gaps: Gaps::default() }
    }

    /// Begins a piece of work. The device was idle from when it finished the piece before.
    pub(crate) fn begin(&mut self) -> anyhow::Result<()> {
        if let Some(end) = self.end.take() {
            self.gaps.0.push((end, Event::record(self.device)?));
        }
        Ok(())
    }

    /// Ends a piece of work: the host queues nothing more until the next [`IdleMeter::begin`].
    pub(crate) fn end(&mut self) -> anyhow::Result<()> {
        self.end = Some(Event::record(self.device)?);
        Ok(())
    }

    /// Waits for something by calling `wait`, between two pieces of work.
    pub(crate) fn pause<T, E>(&mut self, wait: impl FnOnce() -> Result<T, E>) -> anyhow::Result<T>
    where
        anyhow::Error: From<E>,
    {
        if self.end.is_none() {
            self.end()?;
        }
        let result = wait()?;
        self.begin()?;
        Ok(result)
    }

    /// The gaps before every piece begun since the last call.
    pub(crate) fn take(&mut self) -> Gaps {
        std::mem::take(&mut self.gaps)
    }
}

impl Gaps {
    /// The sum of all gaps. The work that followed them must be done.
    pub(crate) fn total(&self) -> anyhow::Result<Duration> {
        let mut total = Duration::ZERO;
        for (end, begin) in &self.0 {
            total += end.time_until(begin)?;
        }
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_gap_between_two_pieces_and_none_before_the_first() {
        let mut idle = IdleMeter::new(Device::Cpu);
        let mut gaps = |marks: &[bool]| {
            for &begins in marks {
                match begins {
                    true => idle.begin().unwrap(),
                    false => idle.end().unwrap(),
                }
            }
            let gaps = idle.take();
            gaps.total().unwrap();
            gaps.0.len()
        };
        assert_eq!(gaps(&[true, false]), 0);
        // The gap belongs to the step that follows it, together with those within that step.
        assert_eq!(gaps(&[true, false, true, false]), 2);
        // A piece that continues adds no gap.
        assert_eq!(gaps(&[true, true, false]), 1);
        assert_eq!(gaps(&[true, false]), 1);
    }
}
