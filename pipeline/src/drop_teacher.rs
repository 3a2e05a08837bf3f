//! Removing a teacher's features from a cache.

use std::io::Write;

use anyhow::bail;
use indicatif::DecimalBytes;
use program::ExitStatus;
use schemas::Cache;

use crate::build_cache::refuse_builders;
use crate::cli::DropTeacherArgs;

/// `pipeline drop-teacher`. Interrupted, it leaves a teacher without some of its parts; the same command goes on.
pub fn drop_teacher(args: &DropTeacherArgs, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let cache = Cache::open(&args.cache)?;
    cache.teacher(&args.id)?;
    if cache.teachers().len() == 1 && !args.last {
        bail!(
            "{}: {} is its only teacher, and its features may be what the cache is for; --last removes them all the same",
            args.cache.display(),
            args.id
        );
    }
    let _alone = refuse_builders(&args.cache)?;
    let freed = schemas::drop_teacher(&args.cache, &args.id)?;
    writeln!(out, "{}: teacher {} removed, {} freed", args.cache.display(), args.id, DecimalBytes(freed))?;
    Ok(ExitStatus::Fine)
}
