//! `--png`: views and the features that each teacher has of them, on one sheet.
//!
//! A row of panels is one (sample, view): the crop, then three panels for each teacher. The first three principal components of
//! its tokens as red, green and blue, over all rows of the sheet together, so that equal colors mean similar features; the
//! attention of its CLS token as heat over the crop; and a focused mask as training would draw it from that attention.

mod panels;
mod text;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, ensure};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::imageops::replace;
use image::{Rgb, RgbImage};
use program::words::count;
use schemas::{Cache, TeacherId, TeacherIdentity, atomic};
use serde::Serialize;

use super::pca::{COMPONENTS, pca};
use super::pixels::crops;
use super::rows::{Chosen, for_each_feature};
use text::{CAPITAL, SPACE, shorten};

/// Largest number of rows on a sheet.
const MAX_ROWS: usize = 64;

/// Largest number of values of all teachers' tokens on a sheet: 2 GiB of f32. Sixty-four rows of 1024 tokens of 1024 channels
/// need an eighth of it.
const MAX_VALUES: usize = 1 << 29;

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([28, 30, 36]);
const FADED: Rgb<u8> = Rgb([120, 124, 134]);
const EMPTY: Rgb<u8> = Rgb([240, 241, 244]);
const RULE: Rgb<u8> = Rgb([222, 224, 230]);

/// Margin around the sheet.
const MARGIN: u32 = 28;
/// Gaps between panels, and between teachers.
const GAP: u32 = 8;
const GROUP_GAP: u32 = 28;
/// Height of a line of text with its spacing.
const LINE: u32 = CAPITAL + 12;
/// Gap between rows of panels.
const ROW_GAP: u32 = 20;
/// Gap between the titles and the first row.
const HEADER_GAP: u32 = 16;
/// Number of panels of a teacher.
const PANELS: u32 = 3;

/// The picture in the JSON output.
#[derive(Debug, Serialize)]
pub(super) struct Picture {
    path: String,
    /// Width in pixels.
    width: u32,
    height: u32,
    /// Size of a panel in pixels.
    panel: u32,
    /// Left edge of the crops.
    crop_left: u32,
    rows: Vec<PictureRow>,
    /// Per teacher, in the order of the columns.
    teachers: BTreeMap<TeacherId, PictureTeacher>,
}

#[derive(Debug, Serialize)]
struct PictureRow {
    sample_id: u64,
    view: u16,
    /// Upper edge of its panels.
    top: u32,
}

#[derive(Debug, Serialize)]
struct PictureTeacher {
    /// Left edges of the three panels: components, attention, mask.
    left: [u32; 3],
    /// Share of the tokens' variance that red, green and blue explain.
    explained: [f64; COMPONENTS],
}

impl Picture {
    /// The content in a line of text.
    pub(super) fn summary(&self) -> String {
        let rows: Vec<_> = self.rows.iter().map(|row| format!("{}/{}", row.sample_id, row.view)).collect();
        let teachers: Vec<_> = self.teachers.keys().map(TeacherId::as_str).collect();
        format!(
            "{}: {} x {} pixels, sample/view {}, teachers {}",
            self.path,
            self.width,
            self.height,
            rows.join(" "),
            if teachers.is_empty() { "none".to_owned() } else { teachers.join(" ") }
        )
    }
}

/// The columns of a teacher.
struct Column {
    id: TeacherId,
    grid: usize,
    width: usize,
    /// Tokens by row of the sheet, for rows whose features are built; likewise the attention.
    tokens: BTreeMap<usize, Vec<f32>>,
    attention: BTreeMap<usize, Vec<f32>>,
    colors: BTreeMap<usize, Vec<[f32; COMPONENTS]>>,
    explained: [f64; COMPONENTS],
    left: u32,
}

/// Draws the chosen rows and publishes the sheet as a PNG file at `path`.
pub(super) fn draw(
    cache: &Cache,
    chosen: &[Chosen],
    source: Option<&str>,
    panel: Option<u32>,
    path: &Path,
) -> anyhow::Result<Picture> {
    ensure!(
        chosen.len() <= MAX_ROWS,
        "{} rows are too many for one picture: choose {MAX_ROWS} or fewer by --row and --view",
        chosen.len()
    );
    let row_values = |teacher: &TeacherIdentity| teacher.n_tokens() * teacher.width as usize;
    let values: usize = cache.teachers().values().map(row_values).sum();
    ensure!(
        values.saturating_mul(chosen.len()) <= MAX_VALUES,
        "the tokens of {} rows are more than {MAX_VALUES} values: choose fewer by --row and --view",
        chosen.len()
    );
    let mut columns = read_columns(cache, chosen)?;
    let panel = panel_side(panel, &columns);
    let crops = crops(cache, chosen, source, panel)?;
    let mut left = MARGIN + panel + GROUP_GAP;
    for column in &mut columns {
        column.color()?;
        column.left = left;
        left += PANELS * panel + (PANELS - 1) * GAP + GROUP_GAP;
    }
    let header = MARGIN + 3 * LINE + HEADER_GAP;
    let row_height = LINE + panel + GAP + LINE + ROW_GAP;
    let width = left - GROUP_GAP + MARGIN;
    let height = header + row_height * chosen.len() as u32 - ROW_GAP + MARGIN - (LINE - CAPITAL);
    let mut sheet = RgbImage::from_pixel(width, height, PAPER);
    draw_header(cache, &columns, panel, &mut sheet);
    let mut rows = Vec::new();
    for (i, (chosen, crop)) in chosen.iter().zip(&crops).enumerate() {
        let top = header + row_height * i as u32;
        draw_caption(cache, chosen, top, &mut sheet);
        let top = top + LINE;
        rows.push(PictureRow { sample_id: chosen.sample.sample_id, view: chosen.sample.view.index, top });
        paste(&mut sheet, crop, MARGIN, top);
        let size = chosen.sample.view.crop;
        let flip = if chosen.sample.view.flip { " flip" } else { "" };
        let legend = format!("{} × {}{flip}", size.w, size.h);
        text::draw(&mut sheet, MARGIN, top + panel + GAP, &shorten(&legend, panel), FADED);
        for column in &columns {
            let place = (chosen.sample.sample_id, chosen.sample.view.index);
            column.draw(i, place, crop, top, &mut sheet);
        }
    }
    atomic::remove_stale(path)?;
    atomic::write(path, &png(&sheet)?)?;
    let step = panel + GAP;
    Ok(Picture {
        path: path.display().to_string(),
        width,
        height,
        panel,
        crop_left: MARGIN,
        rows,
        teachers: columns
            .into_iter()
            .map(|column| {
                let teacher =
                    PictureTeacher { left: [0, 1, 2].map(|i| column.left + i * step), explained: column.explained };
                (column.id, teacher)
            })
            .collect(),
    })
}

fn read_columns(cache: &Cache, chosen: &[Chosen]) -> anyhow::Result<Vec<Column>> {
    let mut columns: BTreeMap<&TeacherId, Column> = cache
        .teachers()
        .iter()
        .map(|(id, teacher)| {
            let column = Column {
                id: id.clone(),
                grid: teacher.grid as usize,
                width: teacher.width as usize,
                tokens: BTreeMap::new(),
                attention: BTreeMap::new(),
                colors: BTreeMap::new(),
                explained: [0.0; COMPONENTS],
                left: 0,
            };
            (id, column)
        })
        .collect();
    for_each_feature(cache, chosen, |position, teacher, row| {
        let (mut tokens, mut attention) = (Vec::new(), Vec::new());
        teacher.decode_tokens(&row.tokens, &mut tokens)?;
        teacher.decode_cls_attn(&row.cls_attn, &mut attention)?;
        ensure!(
            tokens.iter().chain(&attention).all(|v| v.is_finite()),
            "the features of sample {} view {}, teacher {}, are not all finite: run `pipeline verify`",
            row.key.sample_id,
            row.key.view,
            teacher.id
        );
        let column = columns.get_mut(&teacher.id).context("every teacher has a column")?;
        column.tokens.insert(position, tokens);
        column.attention.insert(position, attention);
        Ok(())
    })?;
    Ok(columns.into_values().collect())
}

/// Size of a panel: the multiple of the first grid that is nearest to the requested size, or to a default that leaves room for many
/// teachers. So all patches have the same size.
fn panel_side(asked: Option<u32>, columns: &[Column]) -> u32 {
    let wanted = asked.unwrap_or(if columns.len() <= 2 { 224 } else { 176 });
    let Some(grid) = columns.first().and_then(|c| u32::try_from(c.grid).ok()) else {
        return wanted;
    };
    if grid == 0 || grid > wanted {
        return wanted;
    }
    grid * ((wanted + grid / 2) / grid)
}

fn draw_header(cache: &Cache, columns: &[Column], panel: u32, sheet: &mut RgbImage) {
    let titles = MARGIN + 2 * LINE + 4;
    let name = cache
        .dir()
        .canonicalize()
        .ok()
        .and_then(|dir| Some(dir.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_else(|| cache.dir().display().to_string());
    text::draw(sheet, MARGIN, MARGIN, &shorten(&name, panel), INK);
    let images = count(cache.identity().samples(), "image");
    text::draw(sheet, MARGIN, MARGIN + LINE, &shorten(&images, panel), FADED);
    text::draw(sheet, MARGIN, titles, "crop", INK);
    for column in columns {
        let width = PANELS * panel + (PANELS - 1) * GAP;
        let left = column.left;
        text::draw(sheet, left, MARGIN, &shorten(column.id.as_str(), width), INK);
        let shape = format!("{} × {} × {}", column.grid, column.grid, column.width);
        let mut about = shape.clone();
        if let Some(teacher) = cache.teachers().get(&column.id) {
            let codec = &teacher.codec;
            let full = format!("{shape}, {codec}, {}", teacher.arch);
            let fits = text::width(&full) <= width;
            about = if fits { full } else { format!("{shape}, {codec}") };
        }
        text::draw(sheet, left, MARGIN + LINE, &shorten(&about, width), FADED);
        fill(sheet, [left, titles + CAPITAL + 8, width, 1], RULE);
        let shares = column.explained.map(|share| format!("{:.0}", 100.0 * share));
        let components = format!("PCA {}%", shares.join("+"));
        let titles_of = [[components.as_str(), "PCA"], ["CLS attention", "attention"], ["75 % masked", "75% mask"]];
        // All long or all short, so that there is space between them.
        let room = panel.saturating_sub(SPACE);
        let long = titles_of.iter().all(|[long, _]| text::width(long) <= room);
        for (i, title) in titles_of.into_iter().enumerate() {
            let left = left + i as u32 * (panel + GAP);
            let title = title[usize::from(!long)];
            text::draw(sheet, left, titles, &shorten(title, panel), INK);
        }
    }
    fill(sheet, [MARGIN, titles + CAPITAL + 8, panel, 1], RULE);
}

fn draw_caption(cache: &Cache, chosen: &Chosen, top: u32, sheet: &mut RgbImage) {
    let sample = &chosen.sample;
    let room = sheet.width() - 2 * MARGIN;
    let mut about = format!("sample {} view {}", sample.sample_id, sample.view.index);
    if let Some(label) = sample.label {
        let name = usize::try_from(label).ok().and_then(|label| cache.identity().all_label_names().get(label));
        about += &match name {
            // A key in class folders already begins with the class.
            Some(name) if sample.key.starts_with(&format!("{name}/")) => String::new(),
            Some(name) => format!(", {name}"),
            None => format!(", label {label}"),
        };
    }
    let about = shorten(&about, room / 2);
    let gap = 2 * SPACE;
    let key = shorten(&sample.key, room.saturating_sub(text::width(&about) + gap));
    text::draw(sheet, MARGIN, top, &key, INK);
    text::draw(sheet, MARGIN + text::width(&key) + gap, top, &about, FADED);
}

impl Column {
    /// Computes the colors of all rows together.
    fn color(&mut self) -> anyhow::Result<()> {
        let tokens = std::mem::take(&mut self.tokens);
        if tokens.is_empty() {
            return Ok(());
        }
        let positions: Vec<usize> = tokens.keys().copied().collect();
        let all: Vec<f32> = tokens.into_values().flatten().collect();
        let found = pca(&all, self.width).with_context(|| format!("teacher {}", self.id))?;
        self.explained = found.explained;
        self.colors = positions
            .into_iter()
            .zip(found.colors.chunks_exact(self.grid * self.grid))
            .map(|(position, colors)| (position, colors.to_vec()))
            .collect();
        Ok(())
    }

    /// Draws the three panels of a row, with a line below each.
    fn draw(&self, row: usize, place: (u64, u16), crop: &RgbImage, top: u32, sheet: &mut RgbImage) {
        let panel = crop.width();
        let legend = top + panel + GAP;
        let left = [0, 1, 2].map(|i| self.left + i * (panel + GAP));
        let (Some(colors), Some(attention)) = (self.colors.get(&row), self.attention.get(&row)) else {
            for left in left {
                fill(sheet, [left, top, panel, panel], EMPTY);
            }
            let text = "not built";
            let middle = left[1] + (panel.saturating_sub(text::width(text))) / 2;
            text::draw(sheet, middle, top + panel / 2 - CAPITAL / 2, text, FADED);
            return;
        };
        paste(sheet, &panels::components(colors, self.grid, panel), left[0], top);
        let (heat_map, highest) = panels::attention(attention, self.grid, crop);
        paste(sheet, &heat_map, left[1], top);
        draw_scale(left[1], legend, panel, highest, sheet);
        let (masked, seen) = panels::focused_mask(attention, self.grid, place, crop);
        paste(sheet, &masked, left[2], top);
        let mut text = format!("{seen} of {} visible", attention.len());
        if text::width(&text) > panel {
            text = format!("{seen} of {}", attention.len());
        }
        text::draw(sheet, left[2], legend, &shorten(&text, panel), FADED);
    }
}

/// A color bar between 0 and `highest`, linear in value.
fn draw_scale(left: u32, top: u32, width: u32, highest: f32, sheet: &mut RgbImage) {
    let most = if highest >= 0.0995 { format!("{highest:.2}") } else { format!("{highest:.3}") };
    let from = left + text::width("0") + 8;
    let to = left + width.saturating_sub(text::width(&most) + 8 + SPACE);
    text::draw(sheet, left, top, "0", FADED);
    text::draw(sheet, to + 8, top, &most, FADED);
    for x in from..to {
        let value = f64::from(x - from) / f64::from((to - from).max(2) - 1);
        fill(sheet, [x, top + 2, 1, CAPITAL - 4], panels::heat(value));
    }
}

fn paste(sheet: &mut RgbImage, img: &RgbImage, x: u32, y: u32) {
    replace(sheet, img, x.into(), y.into());
}

fn fill(sheet: &mut RgbImage, [x, y, width, height]: [u32; 4], color: Rgb<u8>) {
    paste(sheet, &RgbImage::from_pixel(width, height, color), x, y);
}

/// `share` of the second color in the first.
fn mix(Rgb(first): Rgb<u8>, Rgb(second): Rgb<u8>, share: f64) -> Rgb<u8> {
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * share).round().clamp(0.0, 255.0) as u8;
    Rgb(std::array::from_fn(|i| mix(first[i], second[i])))
}

fn png(img: &RgbImage) -> anyhow::Result<Vec<u8>> {
    let mut file = Cursor::new(Vec::new());
    let encoder = PngEncoder::new_with_quality(&mut file, CompressionType::Best, FilterType::Adaptive);
    img.write_with_encoder(encoder).context("cannot encode the picture")?;
    Ok(file.into_inner())
}
