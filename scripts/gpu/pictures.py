"""Pictures for the GPU check: photographs, scaled down, or drawn pictures.

    scripts/gpu/pictures.py SOURCE OUT [--count 400]

SOURCE is a tar or a folder. OUT gets class folders of JPEGs with a short side of 256.
"""

import argparse
import io
import pathlib
import sys
import tarfile

import numpy as np
from PIL import Image

SHORT_SIDE = 256


def photographs(source):
    """The bytes of each picture of a tar or a folder, in order of name."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
                yield path.read_bytes()
        return
    with tarfile.open(source) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            if member.name.lower().endswith((".jpg", ".jpeg", ".png", ".webp")):
                yield tar.extractfile(member).read()


def drawn(count, seed=0):
    """Colored noise of several scales: compresses and decodes about as a photograph does."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        layers = [
            np.asarray(Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).resize((320, 256), Image.Resampling.BICUBIC), np.float32)
            for side in (3, 9, 30, 100)
        ]
        mean = sum(weight * layer for weight, layer in zip((0.5, 0.25, 0.15, 0.1), layers))
        out = io.BytesIO()
        Image.fromarray(mean.astype(np.uint8)).save(out, "JPEG", quality=90)
        yield out.getvalue()


def write(pictures, out, count, classes=10):
    """Class folders of at most `count` JPEGs."""
    written = 0
    for data in pictures:
        if written == count:
            break
        number = written
        try:
            image = Image.open(io.BytesIO(data)).convert("RGB")
        except (OSError, ValueError) as damage:
            print(f"pictures: one is left out: {damage}", file=sys.stderr)
            continue
        scale = SHORT_SIDE / min(image.size)
        if scale < 1:
            image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
        folder = out / f"class-{number % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number:05}.jpg", quality=90)
        written += 1
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=400)
    args = parser.parse_args()
    try:
        written = write(photographs(args.source), args.out, args.count)
    except (OSError, tarfile.TarError) as error:
        sys.exit(f"pictures: {args.source}: is neither a folder nor a tar that can be read: {error}")
    if written == 0:
        sys.exit(f"pictures: {args.source}: holds no picture (jpg, jpeg, png, webp)")
    print(f"{written} pictures in {args.out}")
