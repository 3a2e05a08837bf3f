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
import torch.nn.functional as F
from torch import nn

import augment
import cifar10
import teacher
from schedule import decay_groups, warmup_cosine


class BagOfWords(nn.Module):
    """Mean of word vectors, then one hidden layer."""

    def __init__(self, vocabulary: list[str], width: int = 128, out: int = 128):
        super().__init__()
        self.ids = {word: i for i, word in enumerate(vocabulary)}
        self.words = nn.EmbeddingBag(len(vocabulary), width, mode="mean")
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))

    def forward(self, captions: list[list[str]]) -> torch.Tensor:
        offsets = torch.tensor([0] + [len(c) for c in captions[:-1]]).cumsum(0)
        return self.mlp(self.words(torch.tensor([self.ids[word] for c in captions for word in c]), offsets))


def vocabulary() -> list[str]:
    sentences = [template.format(name) for template in cifar10.TEMPLATES for name in cifar10.CLASSES + cifar10.KINDS]
    return sorted({word for sentence in sentences for word in sentence.split()})


def contrast(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy; an image's target is shared evenly by the captions `true [image, caption]` of it, and the reverse."""
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    true = true.float()
    over_captions = F.cross_entropy(logits, true / true.sum(1, keepdim=True))
    over_images = F.cross_entropy(logits.T, (true / true.sum(0, keepdim=True)).T)
    return (over_captions + over_images) / 2


def tokens(model: nn.Module, pixels: torch.Tensor, keep: int) -> torch.Tensor:
    """The tower's output after the last norm, of the class token and `keep` random patches: `[N, 1 + keep, width]`."""
    vision = model.vision_model
    hidden = vision.embeddings(pixels)  # [N, 1 + L, width]
    n, length, width = hidden.shape
    if keep < length - 1:
        kept = 1 + torch.rand(n, length - 1).argsort(1)[:, :keep]
        hidden = torch.cat([hidden[:, :1], hidden.gather(1, kept[..., None].expand(-1, -1, width))], 1)
    return vision.post_layernorm(vision.encoder(inputs_embeds=vision.pre_layrnorm(hidden)).last_hidden_state)


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
    vision, text = teacher.new_clip(teacher.CIFAR10).train(), BagOfWords(vocabulary())
    of_patches = nn.Linear(teacher.CIFAR10.width, 128, bias=False)
    log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
    groups = [g for module in (vision, text, of_patches) for g in decay_groups(module, args.weight_decay)]
    groups.append({"params": [log_scale], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    params = [p for group in groups for p in group["params"]]
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
            with torch.autocast("cpu", torch.bfloat16):
                seen = tokens(vision, teacher.normalize(views, teacher.CLIP_MEAN, teacher.CLIP_STD), keep)
                cls, mean = vision.visual_projection(seen[:, 0]), of_patches(seen[:, 1:].mean(1))
            words, true = cifar10.captions(labels[batch].tolist(), rng, args.p_kind)
            caption = text(words)
            loss = (contrast(cls.float(), caption, log_scale.exp(), true) + contrast(mean.float(), caption, log_scale.exp(), true)) / 2
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            log_scale.data.clamp_(max=4.6052)  # CLIP's bound: a scale of 100.
            loss_sum += loss.item()
            step += 1
        seconds = time.monotonic() - started
        print(f"epoch {epoch + 1} loss {loss_sum / per_epoch:.4f} lr {lr:.2e} scale {log_scale.exp():.1f} {seconds:.0f} s", flush=True)
        teacher.save(vision, args.out)


if __name__ == "__main__":
    main()
