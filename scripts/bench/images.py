"""Decoding and resampling compared with Pillow and torchvision: images per second on one core, in one run.

    $(scripts/python-env) scripts/bench/images.py SHARD.tar [--limit N] [--rounds N]

The three take turns, round by round, on the same core and the same photos, so that disturbances affect all. Each round
times, per program: decoding to RGB; one random crop of a photo (MAE's: 20 to 100 % of the area), bicubic to 224 x 224; and both.
torchvision resamples with antialiasing in uint8 and does not give Pillow's bytes; ours does.
"""

import argparse
import io
import json
import os
import pathlib
import statistics
import subprocess
import tarfile
import time

import PIL
import torch
import torchvision
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import resized_crop

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE = 224


def read_photos(shard, limit):
    with tarfile.open(shard) as archive:
        members = [m for m in archive if m.name.endswith(".jpg")][:limit]
        return [archive.extractfile(m).read() for m in members]


def time_steps(decode, crop_resize, photos):
    start = time.perf_counter()
    decoded = [decode(photo) for photo in photos]
    middle = time.perf_counter()
    for image in decoded:
        crop_resize(image)
    end = time.perf_counter()
    n = len(photos)
    return {"decode": n / (middle - start), "crop_resize": n / (end - middle), "both": n / (end - start)}


def mae_crop(image):
    """(top, left, height, width) of the crop that MAE pretrains on."""
    return RandomResizedCrop.get_params(image, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3))


def with_pillow(photos):
    def crop_resize(image):
        top, left, height, width = mae_crop(image)
        return image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)

    return time_steps(lambda photo: Image.open(io.BytesIO(photo)).convert("RGB"), crop_resize, photos)


def with_torchvision(photos):
    def crop_resize(image):
        return resized_crop(image, *mae_crop(image), [SIZE, SIZE], InterpolationMode.BICUBIC, antialias=True)

    return time_steps(lambda photo: decode_jpeg(torch.frombuffer(photo, dtype=torch.uint8), mode=ImageReadMode.RGB), crop_resize, photos)


def with_ours(shard, limit):
    binary = ROOT / "target/release/examples/decode_rate"
    out = subprocess.run([binary, shard, str(limit)], check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shard", type=pathlib.Path, help="a WebDataset tar of JPEG photos")
    parser.add_argument("--limit", type=int, default=200, help="photos per round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    photos = [bytearray(photo) for photo in read_photos(args.shard, args.limit)]
    subprocess.run(["cargo", "build", "--quiet", "--release", "-p", "images", "--example", "decode_rate"], cwd=ROOT, check=True)

    programs = {
        f"Pillow {PIL.__version__}": lambda: with_pillow(photos),
        f"torchvision {torchvision.__version__}": lambda: with_torchvision(photos),
        "images (ours)": lambda: with_ours(args.shard, args.limit),
    }
    rounds = {name: [] for name in programs}
    for number in range(args.rounds):
        torch.manual_seed(number)
        for name, run in programs.items():
            rounds[name].append(run())
    print(f"{len(photos)} photos of {sum(map(len, photos)) / len(photos) / 1000:.0f} kB, core {core}, {args.rounds} rounds: best (median) img/s")
    print(f"{'':24}{'decode':>16}{'crop + resize':>16}{'both':>16}")
    for name, results in rounds.items():
        cells = [[r[step] for r in results] for step in ("decode", "crop_resize", "both")]
        print(f"{name:24}" + "".join(f"{max(c):8.0f} ({statistics.median(c):5.0f})" for c in cells))


if __name__ == "__main__":
    main()
