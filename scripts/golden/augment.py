"""RandAugment's operations by timm on Pillow, at several strengths, on small images of every awkward shape.

    $(scripts/python-env) scripts/golden/augment.py              # writes tests/golden/augment/
    $(scripts/python-env) scripts/golden/augment.py --out DIR    # writes them elsewhere

ops.tsv has a row for each image, operation, magnitude and sign: the argument that timm derives, and digests of the result with
bilinear and bicubic interpolation. The digest is the first 128 bits of the SHA-256 of the RGB bytes.
"""

import argparse
import hashlib
import pathlib
import random

import numpy
from PIL import Image
from timm.data import auto_augment

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZES = [(1, 1), (1, 9), (9, 1), (2, 2), (3, 3), (2, 40), (33, 21), (24, 24), (48, 40)]
MAGNITUDES = [0.0, 6.7, 9.31, 10.0]
FILL = (124, 116, 104)
SIGNED = ("Rotate", "Color", "Contrast", "Brightness", "Sharpness", "Shear", "Translate")


def images():
    generator = numpy.random.default_rng(0)
    for width, height in SIZES:
        yield f"noise-{width}x{height}", generator.integers(0, 256, (height, width, 3), numpy.uint8)
    # Smooth, with a narrow range of levels, for autocontrast and equalize. The second has a channel with a single level.
    y, x = numpy.mgrid[0:36, 0:44]
    smooth = numpy.stack([60 + 2 * x + y // 2, 90 + x // 3 + y, 200 - 2 * y - x // 2], -1)
    yield "smooth-44x36", smooth.astype(numpy.uint8)
    smooth[..., 1] = 77
    yield "one-level-44x36", smooth.astype(numpy.uint8)
    yield "flat-20x20", numpy.full((20, 20, 3), (250, 3, 128), numpy.uint8)


def digest(img):
    return hashlib.sha256(img.tobytes()).hexdigest()[:32]


def posterize(img, bits, **kwargs):
    # Pillow 13, and with it timm at magnitude 10, refuses to keep 0 bits. Earlier versions gave black.
    if bits == 0:
        return Image.new("RGB", img.size)
    return auto_augment.posterize(img, bits, **kwargs)


def rows(name, img):
    for op in auto_augment._RAND_INCREASING_TRANSFORMS:
        level_fn, fn = auto_augment.LEVEL_TO_ARG[op], auto_augment.NAME_TO_OP[op]
        if op == "PosterizeIncreasing":
            fn = posterize
        for magnitude in MAGNITUDES if level_fn else MAGNITUDES[:1]:
            for negate in [False, True] if op.startswith(SIGNED) else [False]:
                # timm negates if its generator returns more than a half.
                random.random = lambda: float(negate)
                args = level_fn(magnitude, {}) if level_fn else ()
                results = [
                    digest(fn(img, *args, fillcolor=FILL, resample=resample))
                    for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
                ]
                arg = repr(args[0]) if args else "-"
                yield "\t".join([name, str(img.width), str(img.height), op, repr(magnitude), str(int(negate)), arg, *results])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/golden/augment")
    out = parser.parse_args().out
    (out / "inputs").mkdir(parents=True, exist_ok=True)
    table = ["image\twidth\theight\top\tmagnitude\tnegate\targ\tbilinear\tbicubic"]
    for name, pixels in images():
        (out / "inputs" / f"{name}.rgb").write_bytes(pixels.tobytes())
        table += rows(name, Image.fromarray(pixels))
    (out / "ops.tsv").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
