//! A teacher's features in a codec that takes less space, from a more exact one, without the teacher.

use std::io::Write;

use anyhow::{Context, ensure};
use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};
use program::words::count;
use program::{ExitStatus, terminal};
use schemas::{Cache, Calibrator, Codec, EncodedRow, RowFeatures, TeacherId, TeacherIdentity, TeacherWriter};

use crate::build_cache::{Ended, Stop, calibrated, is_being_built, join_builders, map_in_order, spread, unfinished};
use crate::cli::RecodeArgs;
use crate::recipe::CALIBRATION_IMAGES;

/// `pipeline recode`: one more teacher of the cache, with the same network and another codec. Interrupted, it goes on where it was.
pub fn recode(args: &RecodeArgs, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let cache = Cache::open(&args.cache)?;
    let from = cache.teacher(&args.teacher)?;
    let id: TeacherId = match &args.id {
        Some(id) => id.clone(),
        None => format!("{}-{}", args.teacher, args.codec).parse()?,
    };
    ensure!(id != from.id, "--as {id}: that is the teacher to be recoded; give its copy another name");
    let exactness = Codec::NAMES.iter().rev().position(|name| *name == args.codec).unwrap_or(0);
    ensure!(
        exactness < from.codec.exactness(),
        "teacher {} is stored in {}, and {} keeps no less than that: recode makes features smaller, from f32 to f16, bf16 or i8",
        from.id,
        from.codec,
        args.codec
    );

    // While a build is at work, features that are missing are still to come.
    for part in 0..cache.identity().parts() {
        if !cache.part_state(part)?.teachers.contains_key(&from.id) && is_being_built(&args.cache) {
            let problem =
                format!("{}: part {part} does not have the features of {} yet", args.cache.display(), from.id);
            return Err(unfinished(&args.cache, problem));
        }
    }
    let _lock = join_builders(&args.cache)?;
    let images = args.calibration_images.unwrap_or(CALIBRATION_IMAGES);
    let codec = match &*args.codec {
        "f16" => Codec::F16,
        "bf16" => Codec::Bf16,
        _ => match calibrated(&args.cache, &id, images)? {
            Some(affine) => Codec::I8(affine),
            None => calibrate(&cache, from, images)?,
        },
    };
    let teacher = TeacherIdentity { id: id.clone(), codec, ..from.clone() };
    schemas::add_teacher(&args.cache, &teacher)?;

    // ---- each part by a thread -----------------------------------------------------------------------------------------------
    let cache = Cache::open(&args.cache)?;
    let (mut todo, mut unbuilt) = (Vec::new(), 0u64);
    for part in 0..cache.identity().parts() {
        let state = cache.part_state(part)?;
        match (state.teachers.contains_key(&from.id), state.teachers.contains_key(&id)) {
            (true, false) => todo.push(part),
            (false, _) => unbuilt += 1,
            (true, true) => {}
        }
    }
    let bar = terminal::bars().add(ProgressBar::new(todo.len() as u64));
    bar.set_style(
        ProgressStyle::with_template("{elapsed_precise} {wide_bar} {human_pos}/{human_len} parts, ETA {eta}")
            .expect("a constant template"),
    );
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get())).max(1);
    let (mut rows, mut bytes) = (0, 0);
    let ended = map_in_order(
        todo.iter().copied().map(Ok),
        vec![(); threads.min(todo.len().max(1))],
        |(), part, stop| recode_part(&cache, from, &teacher, part, stop),
        |(part_rows, part_bytes)| {
            (rows, bytes) = (rows + part_rows, bytes + part_bytes);
            bar.inc(1);
            Ok(())
        },
    );
    bar.finish_and_clear();
    if ended? == Ended::Interrupted {
        tracing::warn!("interrupted; run the same command to go on");
        return Ok(ExitStatus::Interrupted);
    }
    writeln!(
        out,
        "{}: teacher {id}, {} of {} in {} ({}){}",
        args.cache.display(),
        count(rows, "row"),
        from.id,
        teacher.codec,
        DecimalBytes(bytes),
        match unbuilt {
            0 => String::new(),
            parts =>
                format!("; {} of {} not built yet: finish the cache and run this again", count(parts, "part"), from.id),
        }
    )?;
    Ok(if unbuilt == 0 { ExitStatus::Fine } else { ExitStatus::Problems })
}

/// The parameters of `i8` for a teacher, from the stored features of the images that a build calibrates on.
fn calibrate(cache: &Cache, from: &TeacherIdentity, images: u64) -> anyhow::Result<Codec> {
    let identity = cache.identity();
    let mut calibrator = Calibrator::new(from.width as usize);
    let mut tokens = Vec::new();
    let mut open = None;
    for sample_id in spread(identity.samples(), images) {
        let part = identity.part_of(sample_id);
        let features = match &mut open {
            Some((number, features)) if *number == part => features,
            slot => {
                let features = cache
                    .teacher_part(&from.id, part)
                    .with_context(|| format!("codec i8 is calibrated over all of {}", cache.dir().display()))?;
                &mut slot.insert((part, features)).1
            }
        };
        // View 0 of the sample; one that was rejected has no row.
        let rows = 0..features.rows();
        let keys = rows.map(|row| Ok((row, features.key(row)?))).collect::<schemas::Result<Vec<_>>>()?;
        let at = keys.partition_point(|(_, key)| key.sample_id < sample_id);
        if let Some((row, key)) = keys.get(at)
            && key.sample_id == sample_id
            && key.view == 0
        {
            from.decode_tokens(&features.read_row(*row)?.tokens, &mut tokens)?;
            calibrator.add(&tokens)?;
        }
    }
    let affine = calibrator.finish().with_context(|| {
        format!("teacher {} has no row to calibrate codec i8 on in {}", from.id, cache.dir().display())
    })?;
    tracing::info!(
        "i8 calibrated over {}; {} of {} channels have heavy tails and stay f16",
        count(affine.images, "image"),
        affine.outliers.len(),
        affine.width()
    );
    Ok(Codec::I8(affine))
}

/// Writes a part of `teacher` from the features of `from`; returns its rows and bytes.
fn recode_part(
    cache: &Cache,
    from: &TeacherIdentity,
    teacher: &TeacherIdentity,
    part: u32,
    stop: &Stop,
) -> anyhow::Result<(u64, u64)> {
    let features = cache.teacher_part(&from.id, part)?;
    schemas::remove_stale(cache.dir(), part)?;
    let mut writer = TeacherWriter::create(cache.dir(), part, cache.identity(), teacher)?;
    let (mut tokens, mut cls, mut cls_attn) = (Vec::new(), Vec::new(), Vec::new());
    for row in features.iter() {
        stop.check()?;
        let row = row?;
        from.decode_tokens(&row.tokens, &mut tokens)?;
        from.decode_cls(&row.cls, &mut cls)?;
        from.decode_cls_attn(&row.cls_attn, &mut cls_attn)?;
        let features = RowFeatures { tokens: &tokens[..], cls: &cls, cls_attn: &cls_attn };
        let encoded = EncodedRow::encode(teacher, row.key, features);
        writer.push(encoded.with_context(|| format!("sample {}, view {}", row.key.sample_id, row.key.view))?)?;
    }
    let commit = writer.finish()?;
    Ok((commit.file.rows, commit.file.bytes))
}
