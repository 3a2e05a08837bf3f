#!/usr/bin/env python3
"""Draws a synthetic segmentation set for `trainer segment`: textured shapes on textured backgrounds, with masks.

    $(scripts/python-env) scripts/evidence/shapes.py OUT --train 400 --test 100 --size 64

It needs Pillow and NumPy alone, and writes OUT/train and OUT/test, each with images/*.png and masks/*.png. Class 0 is the background, and 1 to 6 are:

    --by shape      disk, square, triangle, ring, cross, star. Colors and textures are drawn without regard to the class.
    --by texture    stripes, checks, dots, rings, grain, plain. Colors and outlines are drawn without regard to the class; the background is
                    a smooth change of colors.

So no color gives a class away, and a classifier of single pixels has little but the background's share. The pixels on either
side of an outline have the label 255, which takes no part, as in PASCAL VOC's masks.

The pictures are synthetic. They show whether tokens know where which form or texture is; they do not show what a network knows about
photographs, and their mIoU must not be compared with that of ADE20K or VOC. The same arguments give the same files.
"""

import argparse
import pathlib
import shutil
import sys

import numpy as np
from PIL import Image

IGNORED = 255
SHAPES = ["disk", "square", "triangle", "ring", "cross", "star"]
TEXTURES = ["stripes", "checks", "dots", "rings", "grain", "plain"]


def inside(shape, u, v):
    """Whether points of the plane lie in a shape of radius 1 around the origin."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    match shape:
        case "disk":
            return radius < 0.9
        case "square":
            return np.maximum(abs(u), abs(v)) < 0.75
        case "triangle":
            return np.max([np.cos(a) * u + np.sin(a) * v for a in 2 * np.pi / 3 * np.arange(3)], axis=0) < 0.5
        case "ring":
            return (radius < 1) & (radius > 0.55)
        case "cross":
            return (np.minimum(abs(u), abs(v)) < 0.28) & (np.maximum(abs(u), abs(v)) < 0.95)
        case "star":
            return radius < 0.65 + 0.35 * np.cos(5 * angle)
    raise ValueError(shape)


def pattern(texture, size, rng):
    """Shares of two colors, 0 to 1, over a square of pixels."""
    y, x = np.mgrid[:size, :size] + rng.uniform(0, size, (2, 1, 1))
    turn, period = rng.uniform(0, np.pi), rng.uniform(4, 8)
    u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x

    def wave(along):
        return np.sin(2 * np.pi * along / period)

    match texture:
        case "stripes":
            return wave(u) > 0
        case "checks":
            return wave(u) * wave(v) > 0
        case "dots":
            return wave(u) + wave(v) > 0.9
        case "rings":
            center = rng.uniform(0, size, 2)
            return wave(np.hypot(x - center[0] - size / 2, y - center[1] - size / 2)) > 0
        case "grain":
            return rng.uniform(0, 1, (size, size))
        case "plain":
            return np.full((size, size), rng.uniform(0.3, 0.7))
    raise ValueError(texture)


def colors(rng):
    """Two colors that can be told apart."""
    while True:
        pair = rng.uniform(20, 235, (2, 3))
        if np.linalg.norm(pair[0] - pair[1]) > 90:
            return pair


def painted(texture, size, rng):
    """`[H, W, 3]` of a texture in two colors."""
    share, pair = pattern(texture, size, rng)[..., None], colors(rng)
    return pair[0] * share + pair[1] * (1 - share)


def smooth(size, rng):
    """`[H, W, 3]` that changes from color to color between its corners."""
    corners = rng.uniform(20, 235, (2, 2, 3))
    t = np.linspace(0, 1, size)
    return np.einsum("ya,xb,abc->yxc", np.stack([1 - t, t], 1), np.stack([1 - t, t], 1), corners)


def draw(size, by, shapes, rng):
    """An image `[H, W, 3]` and its mask `[H, W]`, both u8."""
    image = smooth(size, rng) if by == "texture" else painted(rng.choice(TEXTURES), size, rng)
    mask = np.zeros((size, size), np.uint8)
    y, x = np.mgrid[:size, :size] + 0.5
    for _ in range(rng.integers(1, shapes + 1)):
        label = int(rng.integers(1, 7))
        shape = SHAPES[label - 1] if by == "shape" else rng.choice(SHAPES)
        texture = TEXTURES[label - 1] if by == "texture" else rng.choice(TEXTURES)
        radius, turn = size * rng.uniform(0.18, 0.35), rng.uniform(0, 2 * np.pi)
        center = rng.uniform(0.5 * radius, size - 0.5 * radius, 2)
        a, b = (x - center[0]) / radius, (y - center[1]) / radius
        filled = inside(shape, np.cos(turn) * a + np.sin(turn) * b, np.cos(turn) * b - np.sin(turn) * a)
        image[filled] = painted(texture, size, rng)[filled]
        # The shape and what surrounds it, each up to one pixel from the other.
        near = np.pad(filled, 1, mode="edge")
        moved = [near[1 + dy : size + 1 + dy, 1 + dx : size + 1 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        mask[filled] = label
        mask[np.any(moved, 0) & ~np.all(moved, 0)] = IGNORED
    image = image + rng.normal(0, 4, image.shape)
    return image.clip(0, 255).round().astype(np.uint8), mask


def draw_set(out, by, train, test, size, shapes=3, seed=0):
    """Writes OUT/train and OUT/test. OUT must not exist, and is there only when it is whole."""
    unfinished = out.with_name(out.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    for number, (split, images) in enumerate((("train", train), ("test", test))):
        folders = [unfinished / split / kind for kind in ("images", "masks")]
        for folder in folders:
            folder.mkdir(parents=True)
        for i in range(images):
            rng = np.random.default_rng([seed, number, i])
            for folder, pixels in zip(folders, draw(size, by, shapes, rng)):
                Image.fromarray(pixels).save(folder / f"{i:05}.png")
    unfinished.rename(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, help="folder to write; it must not exist")
    parser.add_argument("--train", type=int, default=400, help="training images")
    parser.add_argument("--test", type=int, default=100, help="test images")
    parser.add_argument("--size", type=int, default=64, help="side of an image in pixels, at least 16")
    parser.add_argument("--by", choices=["shape", "texture"], default="shape", help="what makes a class")
    parser.add_argument("--shapes", type=int, default=3, help="the most shapes in an image")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if min(args.train, args.test, args.shapes) < 1 or args.size < 16 or args.seed < 0:
        parser.error("--train, --test and --shapes must be at least 1, --size at least 16, --seed at least 0")
    try:
        if args.out.exists():
            raise FileExistsError(f"{args.out} exists already")
        draw_set(args.out, args.by, args.train, args.test, args.size, args.shapes, args.seed)
    except OSError as error:
        sys.exit(f"shapes.py: {error}")
    print(f"{args.out}: {args.train} training and {args.test} test images of {args.size} x {args.size} pixels, classes by {args.by}")


if __name__ == "__main__":
    main()
