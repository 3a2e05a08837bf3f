#![allow(clippy::disallowed_methods)] // Damaged files are made by writing them.

use super::*;

fn line(step: u64) -> Line {
    Line {
        step,
        epoch: step as f64 / 4.0,
        lr: 1e-3,
        images_per_s: 10.5,
        wait_share: 0.25,
        device_idle_share: Some(0.125),
        peak_memory_bytes: 123,
        mfu: None,
        world_size: None,
        slowest_rank: None,
        skipped: 0,
        means: BTreeMap::from([("loss".to_owned(), 0.5), ("mimic.clip".to_owned(), 0.1 + 0.2)]),
    }
}

fn steps(run: &Path) -> Vec<u64> {
    crate::train::metrics::read(run).iter().map(|line| line.step).collect()
}

#[test]
fn a_resume_cuts_the_log_back_to_its_step() {
    let run = tempfile::tempdir().unwrap();
    let mut log = StepLog::open(run.path(), METRICS, 0).unwrap();
    for step in [5, 10, 15] {
        log.append(&line(step)).unwrap();
    }
    assert_eq!(crate::train::metrics::read(run.path())[1], line(10), "what was written is what is read, f64s exactly");

    let mut log = StepLog::open(run.path(), METRICS, 12).unwrap();
    log.append(&line(15)).unwrap();
    assert_eq!(steps(run.path()), [5, 10, 15]);

    StepLog::open(run.path(), METRICS, 0).unwrap();
    assert_eq!(steps(run.path()), [] as [u64; 0]);
}

#[test]
fn a_line_cut_short_is_dropped() {
    let run = tempfile::tempdir().unwrap();
    let whole = serde_json::to_string(&line(5)).unwrap();
    std::fs::write(run.path().join(METRICS), format!("{whole}\n{}", &whole[..20])).unwrap();
    let mut log = StepLog::open(run.path(), METRICS, 100).unwrap();
    log.append(&line(10)).unwrap();
    assert_eq!(steps(run.path()), [5, 10]);
}

#[test]
fn a_window_averages_finite_steps_and_counts_the_others() {
    let mut window = Window::default();
    let values = |loss: f64| BTreeMap::from([("loss".to_owned(), loss)]);
    window.add(true, &values(1.0));
    window.add(false, &values(f64::NAN));
    window.add(true, &values(2.0));
    assert_eq!((window.steps, window.skipped), (2, 1));
    assert_eq!(window.means(), values(1.5));

    let mut all_skipped = Window::default();
    all_skipped.add(false, &values(f64::NAN));
    assert!(all_skipped.means().is_empty());
}

#[test]
fn times_read_well() {
    let text = |s| human_time(Duration::from_secs(s));
    assert_eq!(text(59), "59s");
    assert_eq!(text(61), "1m01s");
    assert_eq!(text(3660), "1h01m");
    assert_eq!(text(90_000), "1d01h");
}

/// Three steps of 64 images, a second apart; before the last two the host waited a quarter of a second, of which the device was idle for half.
#[test]
fn speed_is_measured_between_queued_steps() {
    let mut clock = Clock::start();
    let start = clock.started;
    let second = Duration::from_secs(1);
    let lap = |wait_share, device_idle_share| Lap { images_per_s: 64.0, wait_share, device_idle_share };
    clock.step(64, start + second, Duration::ZERO, Duration::ZERO);
    assert_eq!(clock.lap(), lap(0.0, 0.0));
    clock.step(64, start + 2 * second, second / 4, second / 8);
    clock.step(64, start + 3 * second, second / 4, second / 8);
    assert_eq!(clock.lap(), lap(0.25, 0.125));
    assert_eq!(clock.eta(10), 10 * second);
}
