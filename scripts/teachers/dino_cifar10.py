"""Trains `cifar-dino`: a 32-pixel ViT by self-distillation, without labels or words, whose patch tokens know what they are part of.

    dino_cifar10.py --train cifar10-train.parquet --out assets/teachers/cifar-dino

DINO as in dino_openclipart.py, with the same loss a second time on the mean of the patch tokens, by a head of its own: a teacher whose
knowledge is in its class token alone has none to give to a student that mimics patches. All epochs but the last see crops of 24 and 12
pixels (positions are interpolated), which costs half as much.
"""

import argparse
import copy
import time
from pathlib import Path

import torch
from torch import nn

import augment
import cifar10
import teacher
from dino import Head, dino_loss, sinkhorn_targets
from schedule import decay_groups, warmup_cosine


class Network(nn.Module):
    def __init__(self, n_prototypes: int):
        super().__init__()
        self.backbone = teacher.new_dino(teacher.CIFAR10)
        self.heads = nn.ModuleList(Head(teacher.CIFAR10.width, n_prototypes) for _ in ("cls", "patch mean"))

    def forward(self, imgs: torch.Tensor) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            tokens = self.backbone(imgs, interpolate_pos_encoding=True).last_hidden_state
        features = tokens[:, 0].float(), tokens[:, 1:].float().mean(1)
        return [head(x) for head, x in zip(self.heads, features)]  # [N, n_prototypes] each


def draw_crops(imgs: torch.Tensor, large: int, small: int, n_small: int) -> list[torch.Tensor]:
    """`[N, 3, large, large]` twice, then `[N, 3, small, small]` `n_small` times. Only the second crop is solarized."""
    square = torch.ones(len(imgs))
    wanted = [(large, (0.3, 1.0), 0.0), (large, (0.3, 1.0), 0.2)] + [(small, (0.1, 0.4), 0.0)] * n_small
    crops = []
    for size, scale, p_solarize in wanted:
        crop = augment.random_resized_crop(imgs, square, size, scale)
        crop = augment.color_jitter(crop, strength=1.0, p_gray=0.2, p_solarize=p_solarize)
        crops.append(teacher.normalize(crop, teacher.IMAGENET_MEAN, teacher.IMAGENET_STD))
    return crops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="the training images' Parquet file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--full-epochs", type=int, default=3, help="last epochs, with crops of 32 and 16 pixels")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--n-small", type=int, default=4, help="small crops of an image")
    parser.add_argument("--n-prototypes", type=int, default=1024)
    parser.add_argument("--teacher-temperature", type=float, default=0.04)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.04)
    parser.add_argument("--momentum", type=float, default=0.99, help="of the moving average at the start; it ends at 1")
    parser.add_argument("--threads", type=int, default=1, help="of libtorch; another number gives other last bits")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    imgs, _ = cifar10.read(args.train)
    student = Network(args.n_prototypes).train()
    ema = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(decay_groups(student, args.weight_decay), lr=args.lr)
    per_epoch = len(imgs) // args.batch_size
    total, warmup = args.epochs * per_epoch, args.epochs * per_epoch // 10

    started, step = time.monotonic(), 0
    for epoch in range(args.epochs):
        large, small = (24, 12) if epoch < args.epochs - args.full_epochs else (32, 16)
        loss_sum = 0.0
        order = torch.randperm(len(imgs))[: per_epoch * args.batch_size]
        for batch in order.split(args.batch_size):
            lr = warmup_cosine(step, total, warmup, args.lr, 1e-6)
            for group in optimizer.param_groups:
                group["lr"] = lr
            momentum = 1 - warmup_cosine(step, total, 0, 1 - args.momentum, 0.0)

            crops = draw_crops(imgs[batch], large, small, args.n_small)
            with torch.no_grad():
                assigned = [sinkhorn_targets(logits, args.teacher_temperature).chunk(2) for logits in ema(torch.cat(crops[:2]))]
            of_large, of_small = student(torch.cat(crops[:2])), student(torch.cat(crops[2:]))
            out = [[*a.chunk(2), *b.chunk(args.n_small)] for a, b in zip(of_large, of_small)]
            loss = sum(dino_loss(logits, targets, temperature=0.1) for logits, targets in zip(out, assigned)) / 2

            optimizer.zero_grad()
            loss.backward()
            if epoch == 0:
                for head in student.heads:
                    head.prototypes.grad = None  # DINO's freeze_last_layer: steadies the start.
            nn.utils.clip_grad_norm_(student.parameters(), 3.0)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(list(ema.parameters()), list(student.parameters()), 1 - momentum)
            loss_sum += loss.item()
            step += 1
        # A student that has learned nothing stays at ln(n_prototypes): the targets' mean is uniform.
        print(f"epoch {epoch + 1} loss {loss_sum / per_epoch:.4f} lr {lr:.2e} {time.monotonic() - started:.0f} s", flush=True)
        teacher.save(ema.backbone, args.out)


if __name__ == "__main__":
    main()
