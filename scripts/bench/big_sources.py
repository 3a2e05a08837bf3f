#!/usr/bin/env python3
"""scripts/bench/big_sources.py FOLDER [MILLIONS..]: time and memory of `pipeline build-cache --dry-run` on sources of many images.

Makes Parquet files of a million rows each in FOLDER (one 1-pixel PNG, dictionary-encoded: 0.2 MB a file) and, for each number of millions, runs
a dry run over that many files with one random teacher (scripts/bench/random_teachers.py makes it). Prints seconds and peak memory, whole
and per million images. PIPELINE names another program than target/release/pipeline, TEACHER a folder of weights.
"""

import base64
import os
import pathlib
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
ROWS = 1_000_000


def make(folder: pathlib.Path, files: int) -> None:
    """Files of one name scheme; those that are there are kept. All have the same contents, so all but the first are links to it."""
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / f"train-{0:05}-of-{files:05}.parquet"
    if not first.exists():
        image = pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), pa.array([PIXEL], pa.binary()))
        column = pa.StructArray.from_arrays([image.cast(pa.binary())], names=["bytes"])
        labels = pa.array([i % 1000 for i in range(ROWS)], pa.int64())
        pq.write_table(pa.table({"image": column, "label": labels}), first, row_group_size=100_000)
    for number in range(1, files):
        path = folder / f"train-{number:05}-of-{files:05}.parquet"
        if not path.exists():
            os.link(first, path)


def main() -> None:
    root = pathlib.Path(sys.argv[1])
    program = os.environ.get("PIPELINE", "target/release/pipeline")
    teacher = os.environ["TEACHER"]
    print("| images | seconds | per million | peak memory, MB | per million |\n|---:|---:|---:|---:|---:|")
    for millions in map(int, sys.argv[2:] or ["1", "10", "100"]):
        folder = root / str(millions)
        make(folder, millions)
        command = [program, "build-cache", "--dry-run", "--images", str(folder), "--out", str(root / "cache"), "--teacher", teacher]
        began = time.monotonic()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        seconds, peak = time.monotonic() - began, usage.ru_maxrss / 1000
        # 1 says that the cache would not fit the disk, which it says after all the work.
        if os.waitstatus_to_exitcode(status) not in (0, 1):
            sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
        print(f"| {millions} M | {seconds:.1f} | {seconds / millions:.2f} | {peak:.0f} | {peak / millions:.0f} |", flush=True)


if __name__ == "__main__":
    main()
