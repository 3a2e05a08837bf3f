"""Trains `cifar-clip`: a 32-pixel vision tower, contrastively against short captions, whose patch tokens know what they are part of.

    clip_cifar10.py --train cifar10-train.parquet --out assets/teachers/cifar-clip

CLIP (Radford et al. 2021) with four changes that this data asks for:

- A caption names the class, or only that it is an animal or a vehicle, in one of six sentences. A caption matches every image that it
  is true of, so that pictures of one class do not push each other's captions away.
- The mean of the patch tokens is held against the captions as well, by a projection of its own that is thrown away: a teacher whose
  knowledge is in its class token alone has none to give to a student that mimics patches.
- Half of the patches are left out in all epochs but the last (FLIP, Li et al. 2023), which makes an epoch half as long.
- The text tower is a bag of words. It is thrown away; only the vision tower is saved.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import augment
import cifar10
import teacher
from clip import BagOfWords, Towers
from schedule import decay_groups, warmup_cosine


def vocabulary() -> list[str]:
    sentences = [template.format(name) for template in cifar10.TEMPLATES for name in cifar10.CLASSES + cifar10.KINDS]
    return sorted({word for sentence in sentences for word in sentence.split()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="the training images' Parquet file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--full-epochs", type=int, default=3, help="last epochs, which see all patches")
    parser.add_argument("--keep", type=int, default=32, help="patches of 64 that the other epochs see")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--p-kind", type=float, default=0.1, help="share of captions that say only animal or vehicle")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # Sums keep one order, and so small a network gains little from a second thread.
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)

    # --- data and model ---------------------------------------------------------------------------------------------
    imgs, labels = cifar10.read(args.train)
    square = torch.ones(len(imgs))
    ids = {word: i for i, word in enumerate(vocabulary())}
    towers = Towers(teacher.new_clip(teacher.CIFAR10), BagOfWords(len(ids), width=128, out=128)).train()
    optimizer = torch.optim.AdamW(decay_groups(towers, args.weight_decay), lr=args.lr, betas=(0.9, 0.98))
    per_epoch = len(imgs) // args.batch_size
    total = args.epochs * per_epoch
    patches = (teacher.CIFAR10.img_size // teacher.CIFAR10.patch_size) ** 2

    # --- loop -------------------------------------------------------------------------------------------------------
    started, step = time.monotonic(), 0
    for epoch in range(args.epochs):
        keep = patches if epoch >= args.epochs - args.full_epochs else args.keep
        loss_sum = 0.0
        order = torch.randperm(len(imgs))[: per_epoch * args.batch_size]
        for batch in order.split(args.batch_size):
            lr = warmup_cosine(step, total, total // 20, args.lr, 1e-6)
            for group in optimizer.param_groups:
                group["lr"] = lr
            views = augment.random_resized_crop(imgs[batch], square[batch], teacher.CIFAR10.img_size, scale=(0.4, 1.0))
            views = augment.color_jitter(views, strength=0.5, p_gray=0.05, p_solarize=0.0)
            words, true = cifar10.captions(labels[batch].tolist(), rng, args.p_kind)
            pixels = teacher.normalize(views, teacher.CLIP_MEAN, teacher.CLIP_STD)
            loss = towers(pixels, keep, [[ids[word] for word in caption] for caption in words], true)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
            optimizer.step()
            towers.clamp_scale()
            loss_sum += loss.item()
            step += 1
        seconds = time.monotonic() - started
        print(f"epoch {epoch + 1} loss {loss_sum / per_epoch:.4f} lr {lr:.2e} scale {towers.log_scale.exp():.1f} {seconds:.0f} s", flush=True)
        teacher.save(towers.vision, args.out)


if __name__ == "__main__":
    main()
