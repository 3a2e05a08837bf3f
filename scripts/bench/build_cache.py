"""build-cache with two B/16 teachers of random weights, f32 and bf16, beside the rate of a plain matrix product in the same run.

    $(scripts/python-env) scripts/bench/build_cache.py IMAGES [--limit 64] [--threads N] [--out FOLDER]

IMAGES is any source that `pipeline build-cache --images` takes. The floor is what the teachers' multiplications alone would take at
the measured rate: 2 teachers of 35.1 GFLOP an image (17.56 GMACs each, ViT-B/16 at 224 pixels). The product is measured before and
after each build with as many threads as the build has lanes, each on its own, which is how the build computes.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
GFLOP_AN_IMAGE = 2 * 2 * 17.56


def product_rate(dtype, threads, size=2048, seconds=3.0):
    """GFLOP/s of `threads` single-threaded products of size x size at once, by all of them together."""
    torch.set_num_threads(1)
    pairs = [(torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)) for _ in range(threads)]

    def run(pair):
        torch.set_num_threads(1)
        count, began = 0, time.monotonic()
        while time.monotonic() - began < seconds:
            torch.mm(*pair)
            count += 1
        return count / (time.monotonic() - began)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda pair: torch.mm(*pair), pairs))
        return sum(pool.map(run, pairs)) * 2 * size**3 / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "mr-mae-bench")
    args = parser.parse_args()
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    teachers = args.out / "teachers"
    if not (teachers / "dino/model.safetensors").exists():
        maker = ROOT / "scripts/bench/random_teachers.py"
        subprocess.run([os.sys.executable, maker, teachers], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    print(f"{args.limit} images, {args.threads} threads, batches of {args.batch_size}; load {os.getloadavg()[0]:.1f}")
    print(f"{'':<6}{'img/s':>8}{'floor img/s':>13}{'of floor':>10}{'product GFLOP/s':>18}{'peak memory':>14}")
    for precision, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        cache = args.out / f"cache-{precision}"
        shutil.rmtree(cache, ignore_errors=True)
        before = product_rate(dtype, args.threads)
        command = [target / "release/pipeline", "--log-format", "json", "build-cache", "--images", args.images, "--out", cache]
        command += ["--teacher", f"clip={teachers}/clip", "--teacher", f"dino={teachers}/dino", "--limit", args.limit]
        command += ["--precision", precision, "--threads", args.threads, "--batch-size", args.batch_size, "--device", "cpu"]
        done = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        after = product_rate(dtype, args.threads)
        run = json.loads(done.stdout)["run"]
        rate = (before + after) / 2
        floor = rate / GFLOP_AN_IMAGE
        share = run["images_per_second"] / floor
        memory = run["peak_memory_bytes"] / 1e9
        print(
            f"{precision:<6}{run['images_per_second']:>8.2f}{floor:>13.2f}{share:>10.0%}"
            f"{before:>9.0f}, {after:>5.0f}  {memory:>11.2f} GB"
        )
        for stage in run["stages"]:
            print(f"        {stage['stage']:<20}{stage['busy_seconds']:>9.2f} s{stage['share']:>6.0%}")


if __name__ == "__main__":
    main()
