"""Teaches a 32-pixel ViT in DINO's layout to give the features of another network: its map of 8 x 8 places by the patch tokens, its pooled
output by the class token.

Half of the patches are left out in all epochs but the last (FLIP, Li et al. 2023), which makes an epoch half as long.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import teacher
from schedule import decay_groups, warmup_cosine

# Images by number, and the epoch -> f32 crops [N, 3, 32, 32] in 0..1, the source's patches [N, 64, P] and pooled output [N, C].
Draw = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
PATCHES = 64


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--full-epochs", type=int, default=1, help="last epochs, which see all patches")
    parser.add_argument("--keep", type=int, default=32, help="patches of 64 that the other epochs see")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)


def map_and_pooled(maps: list[torch.Tensor], pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps `[N, C, h, w]` of several stages as one `[N, 64, sum of C]`, coarse ones repeated, and the pooled output as it is."""
    as_grid = [x if x.shape[-1] == 8 else F.interpolate(x, size=8, mode="nearest") for x in maps]
    return torch.cat(as_grid, 1).flatten(2).transpose(1, 2), pooled


def distill(n: int, draw: Draw, args: argparse.Namespace) -> None:
    """Trains on `n` images and saves to `args.out` after every epoch."""
    # --- targets with mean 0 and variance 1 in each channel ---------------------------------------------------------
    _, patch_sample, cls_sample = draw(torch.randperm(n)[:4096], 0)
    patch_mean, patch_std = patch_sample.mean((0, 1)), patch_sample.std((0, 1)).clamp(min=1e-3)
    cls_mean, cls_std = cls_sample.mean(0), cls_sample.std(0).clamp(min=1e-3)

    # --- model ------------------------------------------------------------------------------------------------------
    vit = teacher.new_dino(teacher.CIFAR10).train()
    width = teacher.CIFAR10.width
    to_patch, to_cls = nn.Linear(width, len(patch_mean)), nn.Linear(width, len(cls_mean))
    groups = [g for module in (vit, to_patch, to_cls) for g in decay_groups(module, args.weight_decay)]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95))
    per_epoch = n // args.batch_size
    total = args.epochs * per_epoch

    # --- loop -------------------------------------------------------------------------------------------------------
    started, step = time.monotonic(), 0
    for epoch in range(args.epochs):
        keep = PATCHES if epoch >= args.epochs - args.full_epochs else args.keep
        sums = torch.zeros(2)
        for batch in torch.randperm(n)[: per_epoch * args.batch_size].split(args.batch_size):
            lr = warmup_cosine(step, total, total // 20, args.lr, 1e-6)
            for group in optimizer.param_groups:
                group["lr"] = lr
            crops, patch_target, cls_target = draw(batch, epoch)
            places = torch.rand(len(batch), PATCHES).argsort(1)[:, :keep]
            gather = lambda x: x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))
            with teacher.autocast():
                hidden = vit.embeddings(teacher.normalize(crops, teacher.IMAGENET_MEAN, teacher.IMAGENET_STD))  # [N, 1 + L, width]
                hidden = torch.cat([hidden[:, :1], gather(hidden[:, 1:])], 1)
                for block in vit.layers:
                    hidden = block(hidden)
                seen = vit.layernorm(hidden)
                patches, cls = to_patch(seen[:, 1:]), to_cls(seen[:, 0])
            patch_loss = F.mse_loss(patches.float(), (gather(patch_target) - patch_mean) / patch_std)
            cls_loss = F.mse_loss(cls.float(), (cls_target - cls_mean) / cls_std)
            optimizer.zero_grad()
            (patch_loss + cls_loss).div(2).backward()
            nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
            optimizer.step()
            sums += torch.stack([patch_loss, cls_loss]).detach()
            step += 1
        of_patches, of_cls = (sums / per_epoch).tolist()
        seconds = time.monotonic() - started
        # A ViT that has learned nothing stays at 1: the targets' variance.
        print(f"distill: epoch {epoch + 1} patches {of_patches:.4f} cls {of_cls:.4f} lr {lr:.2e} {seconds:.0f} s", flush=True)
        teacher.save(vit, args.out)
