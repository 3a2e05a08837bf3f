"""The demo's images: which files, which split, which pixels, which words.

Data: Debian's `openclipart-png` (public domain). No root rights and no installation needed:

    apt-get download openclipart-png && dpkg -x openclipart-png_*.deb oc
    # the images are then below oc/usr/share/openclipart/png

The label of an image is the first folder of its path. `unsorted/` is left out, since it has no label.

Many files are byte copies of others (the package links one picture into several folders). The split rule below is about
*paths*, so copies fall on both sides. `training_files` therefore leaves out of training whatever the held-out side also
holds, and `evaluate_openclipart.py` reports the held-out images without a copy on the train side as a column of their own.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CACHE_SIZE = 96  # A training image is kept as 96 x 96: enough for sharp 64-pixel crops, small enough to hold all in memory.
HELD_OUT_EVERY = 5
Image.MAX_IMAGE_PIXELS = None  # The package holds honest images of more than Pillow's limit of 179 million pixels.
MIN_WORD_COUNT = 3  # Rarer words are mostly contributors' names.


@dataclass(frozen=True)
class Split:
    train: list[str]  # paths relative to the png folder, sorted bytewise
    held_out: list[str]


def split_files(png_dir: Path) -> Split:
    """All `*.png` outside `unsorted/`, sorted bytewise (`LC_ALL=C sort`); every fifth line is held out."""
    paths = []
    for folder, _, names in os.walk(png_dir):
        paths += [os.path.relpath(os.path.join(folder, name), png_dir) for name in names if name.endswith(".png")]
    paths = sorted((p for p in paths if not p.startswith("unsorted/")), key=os.fsencode)
    if not paths:
        raise SystemExit(f"{png_dir}: no *.png below it; it should be the folder usr/share/openclipart/png of the package")
    held_out = [p for line, p in enumerate(paths, start=1) if line % HELD_OUT_EVERY == 0]
    train = [p for line, p in enumerate(paths, start=1) if line % HELD_OUT_EVERY != 0]
    return Split(train, held_out)


def content_hashes(png_dir: Path, paths: list[str]) -> list[str]:
    return [hashlib.sha256((png_dir / p).read_bytes()).hexdigest() for p in paths]


def training_files(png_dir: Path, split: Split) -> list[str]:
    """The train side without byte copies: the first path of each content, and none that the held-out side holds too."""
    seen = set(content_hashes(png_dir, split.held_out))
    files = []
    for path, digest in zip(split.train, content_hashes(png_dir, split.train)):
        if digest not in seen:
            seen.add(digest)
            files.append(path)
    return files


def label_of(path: str) -> str:
    return path.split("/", 1)[0]


def words_of(path: str) -> list[str]:
    """The caption: the words of folder and file names, e.g. `animals/birds/red_cock_02.png` -> animals birds red cock."""
    return [w for w in re.findall(r"[a-z]+", path.removesuffix(".png").lower()) if len(w) > 1]


def decode_rgb(path: Path) -> Image.Image:
    """First frame, alpha over white, RGB: the same color policy as the cache builder's."""
    with Image.open(path) as img:
        rgba = img.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def decode_all(png_dir: Path, paths: list[str], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every image whole, squeezed to `size` x `size` (bicubic). Returns uint8 `[N, 3, size, size]` and width / height `[N]`."""
    imgs = np.empty((len(paths), size, size, 3), np.uint8)
    aspect = np.empty(len(paths), np.float32)
    for i, path in enumerate(paths):
        img = decode_rgb(png_dir / path)
        aspect[i] = img.width / img.height
        imgs[i] = np.asarray(img.resize((size, size), Image.Resampling.BICUBIC))
    return torch.from_numpy(imgs).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(aspect)


def cached_images(png_dir: Path, paths: list[str], size: int, cache_dir: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """`decode_all`, done once and then read from `cache_dir`."""
    key = hashlib.sha256("\n".join([str(size), str(png_dir.resolve()), *paths]).encode()).hexdigest()[:16]
    cached = cache_dir / f"openclipart-{key}.pt"
    if not cached.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        unfinished = cached.with_suffix(f".{os.getpid()}.tmp")  # Two trainings may start at once; each publishes a whole file.
        torch.save(decode_all(png_dir, paths, size), unfinished)
        unfinished.replace(cached)
    return torch.load(cached)
