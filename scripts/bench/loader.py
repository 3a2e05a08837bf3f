"""The loader compared with PyTorch's DataLoader: decodes and crops photos, and reads a teacher's cached features with them.

    $(scripts/python-env) scripts/bench/loader.py SHARD.tar [--limit 500] [--batches 64] [--rounds 3] [--json]

SHARD.tar is a WebDataset tar of JPEG photos, such as scripts/gpu/pictures.py packs. Ours reads the tar and a cache of one B/16 teacher.
The DataLoader reads the same photos by position in the tar, applies MAE's random crop to 224 x 224 and a flip, with Pillow or with
torchvision, and reads a row [196, 768] of a memory-mapped array of f16 features for each. Batches have 32 images, and there are as many
workers as processors; ours and the peers take turns, and the result is the median of the rounds.
"""

import argparse
import io
import os
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from rows import ROOT, at_least_one, finish, machine, needs_file, programs, quiet, row, run

SIZE, BATCH, TOKENS, WIDTH = 224, 32, 196, 768


class Photos(Dataset):
    """Photos of a tar, cropped, with a row of features each, repeated up to `length`."""

    def __init__(self, shard, limit, features, with_pillow, length):
        with tarfile.open(shard) as archive:
            members = [m for m in archive if m.name.endswith((".jpg", ".jpeg"))][:limit]
        self.shard, self.places = shard, [(m.offset_data, m.size) for m in members]
        self.features, self.with_pillow, self.length = features, with_pillow, length
        self.file = self.rows = None

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if self.file is None:
            self.file = open(self.shard, "rb")
            self.rows = np.memmap(self.features, np.float16, "r", shape=(len(self.places), TOKENS, WIDTH))
        index %= len(self.places)
        place, size = self.places[index]
        self.file.seek(place)
        data = self.file.read(size)
        flipped = bool(torch.rand(()) < 0.5)
        if self.with_pillow:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            top, left, height, width = RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3))
            image = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(np.array(image))
            pixels = pixels.flip(1) if flipped else pixels
        else:
            image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
            crop = RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3))
            image = resized_crop(image, *crop, [SIZE, SIZE], InterpolationMode.BICUBIC, antialias=True)
            pixels = (image.flip(2) if flipped else image).permute(1, 2, 0)
        return pixels, torch.from_numpy(np.array(self.rows[index]))


def peer_rate(args, features, with_pillow):
    """Images per second of the DataLoader without its first batches, during which workers start."""
    warm_up = 4
    photos = Photos(args.shard, args.limit, features, with_pillow, BATCH * (args.batches + warm_up))
    loader = DataLoader(photos, batch_size=BATCH, shuffle=True, num_workers=args.workers, prefetch_factor=3, drop_last=True)
    torch.set_num_threads(1)
    for number, (pixels, rows) in enumerate(loader):
        assert pixels.shape == (BATCH, SIZE, SIZE, 3) and rows.shape == (BATCH, TOKENS, WIDTH)
        if number == warm_up - 1:
            began = time.perf_counter()
    return BATCH * args.batches / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shard", type=pathlib.Path)
    parser.add_argument("--limit", type=at_least_one, default=500, help="photos of the shard")
    parser.add_argument("--batches", type=at_least_one, default=64, help="batches that are timed")
    parser.add_argument("--rounds", type=at_least_one, default=3)
    parser.add_argument("--workers", type=at_least_one, default=os.cpu_count())
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "mr-mae-bench")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    needs_file(parser, args.shard)
    print(machine(), file=sys.stderr)
    teachers, cache, features = args.out / "teachers", args.out / f"loader-cache-{args.limit}-{zlib.crc32(os.fsencode(args.shard.resolve())):08x}", args.out / "features.f16"
    if not (teachers / "dino/model.safetensors").exists():
        subprocess.run([sys.executable, ROOT / "scripts/bench/random_teachers.py", teachers], check=True, stdout=subprocess.DEVNULL)
    # A finished cache is left alone.
    build = [programs() / "pipeline", "build-cache", "--images", args.shard, "--out", cache, "--teacher", f"clip={teachers}/clip"]
    build += ["--limit", args.limit, "--precision", "bf16", "--device", "cpu"]
    quiet(*build)
    np.random.default_rng(0).standard_normal((args.limit, TOKENS, WIDTH), np.float32).astype(np.float16).tofile(features)

    def ours():
        found = run(
            programs() / "trainer", "bench", "--recipe", ROOT / "trainer/recipes/mr_mae_vit_base_200ep.toml", "--cache", cache, "--images", args.shard,
            "--only", "loader", "--loader-batches", args.batches, "--set", f"optim.batch_size={BATCH}", "--set", "optim.accum_iter=1",
            "--threads", args.workers, "--device", "cpu", "--json",
        )  # fmt: skip
        return found["loader"]["images_per_s"]

    programs_of = {"ours": ours, "DataLoader, Pillow": lambda: peer_rate(args, features, True), "DataLoader, torchvision": lambda: peer_rate(args, features, False)}
    rounds = {name: [] for name in programs_of}
    for _ in range(args.rounds):
        for name, measure in programs_of.items():
            rounds[name].append(measure())
    found = {name: statistics.median(rates) for name, rates in rounds.items()}
    finish([row(f"Loader, {args.workers} workers", found.pop("ours"), found)], args)


if __name__ == "__main__":
    main()
