"""CIFAR-10 as tensors, and what can be said about its pictures in words.

Data: the Parquet files of Hugging Face's `uoft-cs/cifar10`: columns `img` (a PNG) and `label` (0 to 9), 50,000 training and 10,000
test images of 32 x 32 pixels.
"""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch
from PIL import Image

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
KINDS = ["animal" if name in ("bird", "cat", "deer", "dog", "frog", "horse") else "vehicle" for name in CLASSES]
TEMPLATES = ["a photo of a {}", "a small picture of one {}", "this is a {}", "the {} in the middle", "a blurry {}", "a {} seen from near"]


def read(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """All images, uint8 `[N, 3, 32, 32]`, and their labels `[N]`."""
    table = parquet.read_table(path, columns=["img", "label"])
    imgs = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in table["img"].to_pylist()])
    return torch.from_numpy(imgs).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(table["label"].to_numpy().copy())


def captions(labels: list[int], rng: np.random.Generator, p_kind: float) -> tuple[list[list[str]], torch.Tensor]:
    """A caption for each image as words, and which captions are true of which images, bool `[image, caption]`.

    A caption names the class, or, with probability `p_kind`, only whether it is an animal or a vehicle.
    """
    only_kind = rng.random(len(labels)) < p_kind
    template = rng.integers(len(TEMPLATES), size=len(labels))
    said = [KINDS[label] if vague else CLASSES[label] for label, vague in zip(labels, only_kind)]
    words = [TEMPLATES[t].format(name).split() for t, name in zip(template, said)]
    true = [[name in (CLASSES[label], KINDS[label]) for name in said] for label in labels]
    return words, torch.tensor(true)
