"""timm's Mixup in batch mode on a small batch: its draws and its results.

    $(scripts/python-env) scripts/golden/mixup.py              # writes tests/golden/mixup/
    $(scripts/python-env) scripts/golden/mixup.py --out DIR    # writes them elsewhere

Lambda and box are recorded from timm's own functions while it runs, so that other code can apply the same ones.
"""

import argparse
import pathlib

import numpy
import timm.data.mixup
import torch
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLASSES = 7
# (mixup alpha, cutmix alpha, probability)
CASES = [(0.8, 0.0, 1.0)] * 3 + [(0.0, 1.0, 1.0)] * 6 + [(0.8, 1.0, 0.0)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/golden/mixup")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    numpy.random.seed(0)
    generator = torch.Generator().manual_seed(0)
    imgs = torch.randn(4, 3, 6, 9, generator=generator)
    labels = torch.tensor([2, 0, 6, 2])
    tensors = {"imgs": imgs, "labels": labels}
    bbox_and_lam = timm.data.mixup.cutmix_bbox_and_lam
    boxes = []

    def spy(*args, **kwargs):
        boxes.append(bbox_and_lam(*args, **kwargs))
        return boxes[-1]

    timm.data.mixup.cutmix_bbox_and_lam = spy
    for i, (mixup_alpha, cutmix_alpha, prob) in enumerate(CASES):
        mixup = timm.data.mixup.Mixup(mixup_alpha, cutmix_alpha, prob=prob, label_smoothing=0.1, num_classes=CLASSES)
        params, drawn = mixup._params_per_batch, []
        mixup._params_per_batch = lambda: drawn.append(params()) or drawn[-1]
        boxes.clear()
        mixed, targets = mixup(imgs.clone(), labels)
        box, lam = boxes[0] if boxes else ((-1,) * 4, drawn[0][0])
        tensors |= {
            f"{i}/lambda": torch.tensor([drawn[0][0], lam], dtype=torch.float64),
            f"{i}/box": torch.tensor([int(x) for x in box]),
            f"{i}/imgs": mixed,
            f"{i}/targets": targets,
        }
    save_file(tensors, out / "mixup.safetensors")


if __name__ == "__main__":
    main()
