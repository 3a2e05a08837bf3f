//! Decodes and resamples what it is told to, for `scripts/golden/images.py --photos`.
//!
//! Reads jobs from standard input until it ends: length of an image file, the file, then x, y, w, h of the crop, both sides of the
//! output, and the filter's number (0 bilinear, 1 bicubic, 2 Lanczos), all numbers little-endian u32. Answers each with the length of the
//! pixels, and the pixels.

use std::io::{self, Read, Write};

use images::{Filter, decode, resample};
use schemas::CropBox;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    loop {
        let mut len = [0; 4];
        match input.read_exact(&mut len) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        let mut bytes = vec![0; u32::from_le_bytes(len) as usize];
        input.read_exact(&mut bytes)?;
        let mut job = [0; 28];
        input.read_exact(&mut job)?;
        let number = |i: usize| u32::from_le_bytes([job[4 * i], job[4 * i + 1], job[4 * i + 2], job[4 * i + 3]]);
        let crop = CropBox { x: number(0), y: number(1), w: number(2), h: number(3) };
        let filter = match number(6) {
            0 => Filter::Bilinear,
            1 => Filter::Bicubic,
            _ => Filter::Lanczos,
        };
        let out = resample(&decode(&bytes)?, crop, number(4), number(5), filter)?;
        output.write_all(&(out.data.len() as u32).to_le_bytes())?;
        output.write_all(&out.data)?;
        output.flush()?;
    }
}
