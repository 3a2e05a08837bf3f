//! How many images one core decodes, crops and resamples in a second. `scripts/bench/images.py` runs it beside Pillow.
//!
//!     cargo run --release -p images --example decode_rate -- SOURCE [LIMIT]
//!
//! Reads the images into memory, then times each step over all of them, on one thread: decoding; one MAE crop of each, bicubic to 224;
//! and both. Prints images per second as JSON.

use std::io::Write;
use std::time::Instant;

use images::{ImageSource, RgbImage, decode, draw_view, render};
use schemas::{ContentHash, ViewPolicy};

const SIZE: u32 = 224;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let source = ImageSource::open(&args.next().ok_or("give an image source")?)?;
    let limit = args.next().map_or(Ok(source.len()), |n| n.parse())?.min(source.len());
    let files: Vec<Vec<u8>> = (0..limit).map(|i| source.read(i)).collect::<Result<_, _>>()?;

    let start = Instant::now();
    let decoded: Vec<RgbImage> = files.iter().map(|bytes| decode(bytes)).collect::<Result<_, _>>()?;
    let decoding = start.elapsed().as_secs_f64();

    let start = Instant::now();
    let mut checksum = 0u64;
    for (img, bytes) in decoded.iter().zip(&files) {
        let view =
            draw_view(&ViewPolicy::rrc(), 0, &ContentHash([bytes[bytes.len() / 2]; 16]), 0, img.width, img.height);
        let out = render(img, &view, SIZE)?;
        checksum += u64::from(out.data[out.data.len() / 2]);
    }
    let rendering = start.elapsed().as_secs_f64();

    let rate = |seconds: f64| files.len() as f64 / seconds;
    writeln!(
        std::io::stdout(),
        r#"{{"images": {}, "decode": {:.1}, "crop_resize": {:.1}, "both": {:.1}, "checksum": {checksum}}}"#,
        files.len(),
        rate(decoding),
        rate(rendering),
        rate(decoding + rendering)
    )?;
    Ok(())
}
