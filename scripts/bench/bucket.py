#!/usr/bin/env python3
"""How long training waits for data that comes from a distant bucket, with the read-through folder empty and full.

    cargo build --release -p pipeline -p trainer --bins && cargo build --release -p storage --example slow_bucket
    scripts/bench/bucket.py SHARD.tar [--consume 5000] [--latency-ms 20] [--batch 64] [--batches 100] [--pixel-cache-mib 0] [--json]

SHARD.tar is a WebDataset tar of photos. A cache of them is built with the demo's teacher clip-tiny on a disk, and a server of this machine then
serves the shard and the cache as a bucket, each answer late by the latency. A consumer takes batches at the pace of a GPU; the figure is the
share of its time that it waits for them. Without a pace (`--consume 0`) the figure is the loader's speed. Nothing here needs torch.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"


def run(*command, env=None):
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    if done.returncode != 0:
        sys.exit(f"{command[1]} failed with exit status {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shard", type=pathlib.Path)
    parser.add_argument("--consume", type=int, default=5000)
    parser.add_argument("--latency-ms", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--pixel-cache-mib", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        shutil.copy(args.shard, folder / "photos.tar")
        teacher = ROOT / "assets/teachers/clip-tiny"
        run(PROGRAMS / "pipeline", "build-cache", "--images", folder / "photos.tar", "--out", folder / "cache", "--teacher", f"clip={teacher}",
            "--grid", "8", "--device", "cpu")
        server = subprocess.Popen([PROGRAMS / "examples/slow_bucket", folder, str(args.latency_ms)], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        port = server.stdout.readline().strip()
        env = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        env |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
                "AWS_REGION": "us-east-1"}
        figures = {}
        url, blocks = "s3://bucket", folder / "blocks"
        for name, place, cache_dir in [
            ("disk", folder, None),
            ("bucket, nothing kept", url, None),
            ("bucket, folder cold", url, blocks),
            ("bucket, folder warm", url, blocks),
        ]:
            command = [PROGRAMS / "trainer", "bench", "--only", "loader", "--json", "--recipe", ROOT / "trainer/recipes/tiny.toml", "--device", "cpu",
                       "--threads", args.threads, "--cache", f"{place}/cache", "--images", f"{place}/photos.tar", "--loader-batches", args.batches,
                       "--set", f"optim.batch_size={args.batch}", "--set", "mimic.teachers=['clip']", "--set", "data.prefetch=8",
                       "--set", f"data.pixel_cache_mib={args.pixel_cache_mib}"]
            if args.consume:
                command += ["--consume", args.consume]
            if cache_dir:
                command += ["--cache-dir", cache_dir]
            figures[name] = json.loads(run(*command, env=env))["loader"]
        server.stdin.close()
        server.wait()
    if args.json:
        print(json.dumps({"consume": args.consume, "latency_ms": args.latency_ms, "load": os.getloadavg()[0], "figures": figures}))
        return
    print(f"consumer {args.consume or 'as fast as it comes'} img/s, latency {args.latency_ms} ms, load {os.getloadavg()[0]:.1f}")
    print("| data | img/s | waits |\n|---|---:|---:|")
    for name, loader in figures.items():
        share = loader.get("wait_share")
        print(f"| {name} | {loader['images_per_s']:.0f} | {'' if share is None else f'{100 * share:.2f} %'} |")


if __name__ == "__main__":
    main()
