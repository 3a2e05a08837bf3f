"""Trains `cifar-simclr`: a 32-pixel ViT that knows pictures without labels or words, in the place of DINO and in its layout.

    simclr_cifar10.py --train cifar10-train.parquet --out assets/teachers/cifar-simclr

A ViT learns little from so few images without labels: self-distillation of one would need hours here. So a small residual network learns
first, by SimCLR (Chen et al. 2020): two crops of one picture must be told from all others of the batch. Then distill.py gives its knowledge
to the ViT: the map of 8 x 8 places and the one of 4 x 4 to the patch tokens, the pooled output to the class token.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import augment
import cifar10
import distill
import teacher
from schedule import decay_groups, warmup_cosine

WIDTHS = (32, 64, 192)


class Block(nn.Module):
    """A residual block of two 3 x 3 convolutions."""

    def __init__(self, width: int, out: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.skip = nn.Identity() if width == out else nn.Conv2d(width, out, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.skip(x))


class ResNet(nn.Module):
    """32 pixels in, maps of 16, 8 and 4."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTHS[0], 4, 2, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
        self.stages = nn.ModuleList([Block(WIDTHS[0], WIDTHS[0], 1), Block(WIDTHS[0], WIDTHS[1], 2), Block(WIDTHS[1], WIDTHS[2], 2)])
        self.projection = nn.Sequential(nn.Linear(WIDTHS[2], 256), nn.ReLU(), nn.Linear(256, 128))
        self.to(memory_format=torch.channels_last)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem(teacher.normalize(x, teacher.IMAGENET_MEAN, teacher.IMAGENET_STD).contiguous(memory_format=torch.channels_last))
        maps = [x := stage(x) for stage in self.stages]
        return maps


def nt_xent(a: torch.Tensor, b: torch.Tensor, temperature: float) -> torch.Tensor:
    """SimCLR's loss: `a[i]` and `b[i]` are of one picture; every other row of both is one that they must be told from."""
    z = F.normalize(torch.cat([a, b]), dim=-1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    n = len(a)
    return F.cross_entropy(logits, torch.cat([torch.arange(n, 2 * n), torch.arange(n)]))


def train_resnet(imgs: torch.Tensor, args: argparse.Namespace) -> ResNet:
    model, square = ResNet().train(), torch.ones(args.resnet_batch_size)
    optimizer = torch.optim.AdamW(decay_groups(model, 1e-2), lr=args.resnet_lr)
    per_epoch = len(imgs) // args.resnet_batch_size
    total = args.resnet_epochs * per_epoch
    started, step = time.monotonic(), 0
    for epoch in range(args.resnet_epochs):
        loss_sum = 0.0
        for batch in torch.randperm(len(imgs))[: per_epoch * args.resnet_batch_size].split(args.resnet_batch_size):
            lr = warmup_cosine(step, total, total // 20, args.resnet_lr, 1e-6)
            for group in optimizer.param_groups:
                group["lr"] = lr
            crops = [augment.random_resized_crop(imgs[batch], square, 32, scale=(0.2, 1.0)) for _ in range(2)]
            crops = [augment.color_jitter(crop, strength=1.0, p_gray=0.2, p_solarize=0.0) for crop in crops]
            pooled = model.maps(torch.cat(crops))[-1].mean((2, 3))
            loss = nt_xent(*model.projection(pooled).chunk(2), args.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item()
            step += 1
        print(f"simclr: epoch {epoch + 1} loss {loss_sum / per_epoch:.4f} lr {lr:.2e} {time.monotonic() - started:.0f} s", flush=True)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="the training images' Parquet file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resnet-epochs", type=int, default=14)
    parser.add_argument("--resnet-batch-size", type=int, default=256)
    parser.add_argument("--resnet-lr", type=float, default=2e-3)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    distill.add_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)  # Sums keep one order.
    torch.manual_seed(args.seed)
    imgs, _ = cifar10.read(args.train)
    resnet = train_resnet(imgs, args)

    @torch.no_grad()
    def draw(batch: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        crops = augment.random_resized_crop(imgs[batch], torch.ones(len(batch)), 32, scale=(0.4, 1.0))
        _, middle, last = resnet.maps(crops)
        return crops, *distill.map_and_pooled([middle, last], last.mean((2, 3)))

    distill.distill(len(imgs), draw, args)


if __name__ == "__main__":
    main()
