//! How far the build is: a bar on a terminal, a line now and then elsewhere.

use std::ops::Range;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use program::terminal;

/// Time between two progress lines in a log file: rare enough for a build of days, often enough to see that it is running.
pub(super) const LINE_EVERY: Duration = Duration::from_secs(10);

/// Counts images that are through.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    views: u64,
    total: u64,
    before: u64,
    rows: u64,
    rejected: u64,
    skipped: u64,
    began: Instant,
    last_line: Instant,
}

impl Progress {
    /// `total` images, `before` of them done by earlier runs; an image has `views` rows. `skipped` pictures of the source are not in the data
    /// set: they are shown beside the rejected ones, and are no part of the total.
    pub(crate) fn new(total: u64, before: u64, views: u16, skipped: u64) -> Progress {
        let bar = terminal::bars().add(ProgressBar::new(total));
        let style = "{elapsed_precise} {wide_bar} {human_pos}/{human_len} images {msg}";
        bar.set_style(ProgressStyle::with_template(style).expect("a constant template"));
        bar.set_position(before);
        if !bar.is_hidden() {
            // A batch takes seconds on a CPU; the clock goes on meanwhile.
            bar.enable_steady_tick(Duration::from_secs(1));
        }
        let now = Instant::now();
        Progress { bar, views: views.into(), total, before, rows: 0, rejected: 0, skipped, began: now, last_line: now }
    }

    /// A batch of `samples` has been handed to its writers: this many rows, and this many images that cannot be used. The others were
    /// rejected by an earlier run: nothing was to be done for them.
    pub(crate) fn batch(&mut self, samples: Range<u64>, rows: usize, rejected: usize) {
        let (rows, rejected) = (rows as u64, rejected as u64);
        self.rows += rows;
        self.rejected += rejected;
        self.before += samples.end - samples.start - rows / self.views - rejected;
        self.show();
    }

    /// Images that this run has dealt with.
    pub(crate) fn images(&self) -> u64 {
        self.rows / self.views + self.rejected
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Images a second of this run.
    pub(crate) fn rate(&self) -> f64 {
        self.images() as f64 / self.elapsed().as_secs_f64().max(1e-9)
    }

    fn show(&mut self) {
        let (done, rate) = (self.before + self.images(), self.rate());
        // Nothing is known before the first image is through.
        let eta = (rate > 0.0).then(|| {
            let left = (self.total - done.min(self.total)) as f64;
            Duration::from_secs_f64((left / rate).min(1e9))
        });
        self.bar.set_position(done);
        self.bar.set_message(format!(
            "{rate:.1} img/s, ETA {}, {} rejected{}",
            eta.map_or("unknown".to_owned(), |eta| indicatif::HumanDuration(eta).to_string()),
            self.rejected,
            match self.skipped {
                0 => String::new(),
                skipped => format!(", {skipped} skipped"),
            }
        ));
        if self.bar.is_hidden() && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            tracing::info!(
                images = done,
                of = self.total,
                img_per_s = (rate * 10.0).round() / 10.0,
                eta_s = eta.map(|eta| eta.as_secs()),
                rejected = self.rejected,
                skipped = self.skipped,
                "building"
            );
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
