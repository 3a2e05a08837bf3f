//! How fast a cache is written and read, for rows of a B/16 teacher: 196 tokens of 768 channels in f16, 0.3 MB each.
//!
//! ```text
//! cargo run --release -p schemas --example cache_rate [FOLDER] [ROWS]
//! ```
//!
//! Values are drawn from a Gaussian, which compresses about as little as real features do. All work is on one thread, and
//! rates count the features' bytes before compression. Reading comes from the page cache: it is the program's cost, not the disk's.

use std::path::PathBuf;
use std::time::Instant;

use schemas::{
    Batches, Cache, CacheIdentity, Codec, ContentHash, DatasetIdentity, EncodedRow, FORMAT_VERSION, FeatureCodec, Pack,
    Plan, RowFeatures, RowKey, Scalar, TeacherId, TeacherIdentity, TeacherRow, TeacherWriter, ViewIdentity, ViewPolicy,
    add_teacher, create_cache,
};

const TOKENS: usize = 196;
const WIDTH: usize = 768;

#[expect(clippy::print_stdout, reason = "an example is a program")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().map_or_else(|| std::env::temp_dir().join("cache_rate"), PathBuf::from);
    let rows: u64 = args.next().map_or(Ok(1024), |rows| rows.parse())?;
    if dir.exists() {
        return Err(format!("{} is in the way", dir.display()).into());
    }

    let (identity, teacher) = (identity(rows), teacher()?);
    let mut seed = 1;
    let values: Vec<Vec<f32>> = (0..32).map(|_| (0..TOKENS * WIDTH).map(|_| gaussian(&mut seed)).collect()).collect();
    let encoded: Vec<Vec<u8>> = values.iter().map(|values| encode(values)).collect::<Result<_, _>>()?;
    let row_bytes = teacher.tokens_bytes() + teacher.cls_bytes() + teacher.cls_attn_bytes();
    let megabytes = rows as f64 * row_bytes as f64 / 1e6;

    let mut out = Vec::new();
    let clock = Clock::start();
    for i in 0..rows as usize {
        out.clear();
        Scalar::F16.encode(&values[i % 32], WIDTH, &mut out)?;
    }
    println!("encode f16         {}", clock.rate(megabytes));
    let mut floats = vec![0.0; TOKENS * WIDTH];
    let clock = Clock::start();
    for i in 0..rows as usize {
        Scalar::F16.decode_into(&encoded[i % 32], WIDTH, &mut floats)?;
    }
    println!("decode f16         {}", clock.rate(megabytes));

    // What workers do for a row: encode, measure, sum, hash, compress.
    let row = |sample_id: u64| {
        let values = &values[sample_id as usize % 32];
        let key = RowKey { sample_id, view: 0, content_hash: ContentHash::of(&sample_id.to_le_bytes()) };
        let features = RowFeatures { tokens: values, cls: &values[..WIDTH], cls_attn: &values[..TOKENS] };
        EncodedRow::encode(&teacher, key, features)
    };
    let clock = Clock::start();
    for sample_id in 0..rows {
        row(sample_id)?;
    }
    println!("make a row         {}, {:.0} rows/s", clock.rate(megabytes), rows as f64 / clock.wall());

    // What the one writer of a file does: append and hash. Rows are made beforehand, a few at a time.
    create_cache(&dir, &identity)?;
    add_teacher(&dir, &teacher)?;
    let mut writer = TeacherWriter::create(&dir, 0, &identity, &teacher)?;
    let mut spent = Spent::default();
    for start in (0..rows).step_by(64) {
        let made = (start..rows.min(start + 64)).map(row).collect::<Result<Vec<_>, _>>()?;
        let clock = Clock::start();
        made.into_iter().try_for_each(|row| writer.push(row))?;
        spent.add(&clock);
    }
    let clock = Clock::start();
    let commit = writer.finish()?;
    spent.add(&clock);
    let share = commit.file.bytes as f64 / megabytes / 1e4;
    let rows_a_second = rows as f64 / spent.wall;
    println!("write, with fsync  {}, {rows_a_second:.0} rows/s, to {share:.1} % of the size", spent.rate(megabytes));

    let clock = Clock::start();
    let part = Cache::open(&dir)?.teacher_part(&teacher.id, 0)?;
    println!("open a part        {:5.2} ms", clock.wall() * 1e3);
    let mut row = TeacherRow::default();
    let clock = Clock::start();
    for i in 0..part.rows() {
        part.read_row_into(i, &mut row)?;
    }
    println!("read in order      {}", clock.rate(megabytes));
    let mut seed = 2;
    let clock = Clock::start();
    for _ in 0..part.rows() {
        part.read_row_into(next(&mut seed) as usize % part.rows(), &mut row)?;
    }
    println!("read at random     {}, {:.3} ms a row", clock.rate(megabytes), clock.wall() * 1e3 / rows as f64);
    let clock = Clock::start();
    let report = schemas::verify(&dir, &mut |_| {})?;
    println!("verify             {}, {} problems", clock.rate(megabytes), report.problems.len());
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// Time on the wall, and time that the process has had a processor for: on a busy machine only the second says what the work costs.
struct Clock {
    started: Instant,
    cpu: f64,
}

impl Clock {
    fn start() -> Clock {
        Clock { started: Instant::now(), cpu: cpu_seconds() }
    }

    fn wall(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    fn rate(&self, megabytes: f64) -> String {
        let mut spent = Spent::default();
        spent.add(self);
        spent.rate(megabytes)
    }
}

/// Time of several clocks, in seconds.
#[derive(Default)]
struct Spent {
    wall: f64,
    cpu: f64,
}

impl Spent {
    fn add(&mut self, clock: &Clock) {
        self.wall += clock.wall();
        self.cpu += cpu_seconds() - clock.cpu;
    }

    fn rate(&self, megabytes: f64) -> String {
        format!("{:6.0} MB/s, {:6.0} MB per processor second", megabytes / self.wall, megabytes / self.cpu.max(0.01))
    }
}

/// User and system time so far, from `/proc` (in hundredths of a second); not known elsewhere.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

fn encode(values: &[f32]) -> schemas::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    Scalar::F16.encode(values, WIDTH, &mut bytes).map(|()| bytes)
}

/// splitmix64.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Box and Muller's.
fn gaussian(seed: &mut u64) -> f32 {
    let mut uniform = || (next(seed) >> 11) as f64 / (1u64 << 53) as f64;
    ((-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32
}

fn identity(samples: u64) -> CacheIdentity {
    CacheIdentity {
        format_version: FORMAT_VERSION,
        dataset: DatasetIdentity { kind: "made-up".to_string(), samples, digest: "00".repeat(32) },
        image_code: "none".to_string(),
        views: ViewIdentity { policy: ViewPolicy::Center, views: 1, seed: 0, filter: "bicubic".to_string() },
        plan: Plan { samples, part_samples: samples },
        pack: Pack::None,
        depth_window: schemas::DepthWindow::HighByte,
        label_names: Vec::new(),
        dedup: false,
        generations: Vec::new(),
    }
}

fn teacher() -> schemas::Result<TeacherIdentity> {
    Ok(TeacherIdentity {
        format_version: FORMAT_VERSION,
        id: TeacherId::new("gauss")?,
        arch: "gauss".to_string(),
        source: String::new(),
        assumed: Vec::new(),
        weights_sha256: "00".repeat(32),
        layer: "last".to_string(),
        activation: "gelu".to_string(),
        norm_eps: 1e-6,
        input_size: 224,
        patch_size: 16,
        mean: [0.5; 3],
        std: [0.5; 3],
        grid: 14,
        width: WIDTH as u32,
        codec: Codec::F16,
        precision: "f32".to_string(),
        batch_size: 1,
        batches: Batches::Samples,
        device: "cpu".to_string(),
        device_name: None,
        runtime: "none".to_string(),
    })
}
