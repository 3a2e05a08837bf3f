"""Trains `clip-tiny`: a 64-pixel vision tower, contrastively against the words of file and folder names.

    clip_openclipart.py --png oc/usr/share/openclipart/png --out assets/teachers/clip-tiny

CLIP (Radford et al. 2021) with two changes that this data asks for. The text tower is a bag of words: a caption here is a
handful of words without grammar. And captions repeat (a thousand "shapes stars star"), so every pair with the same caption
counts as a match, not only the diagonal. The text tower is thrown away; only the vision tower is saved.
"""

import argparse
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import augment
import openclipart
import teacher
from schedule import decay_groups, warmup_cosine


class BagOfWords(nn.Module):
    """Mean of word vectors, then one hidden layer. Word 0 stands for an empty caption."""

    def __init__(self, n_words: int, width: int = 256, out: int = 128):
        super().__init__()
        self.words = nn.EmbeddingBag(n_words, width, mode="mean")
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))

    def forward(self, captions: list[list[int]], p_drop: float) -> torch.Tensor:
        kept = [[w for w, r in zip(c, torch.rand(len(c)).tolist()) if r >= p_drop] or c for c in captions]
        offsets = torch.tensor([0] + [len(c) for c in kept[:-1]]).cumsum(0)
        return self.mlp(self.words(torch.tensor([w for c in kept for w in c]), offsets))


def read_captions(files: list[str]) -> tuple[list[list[int]], int]:
    counts = Counter(w for path in files for w in set(openclipart.words_of(path)))
    known = {w: i for i, w in enumerate(sorted(w for w, n in counts.items() if n >= openclipart.MIN_WORD_COUNT), start=1)}
    return [sorted({known[w] for w in openclipart.words_of(path) if w in known}) or [0] for path in files], len(known) + 1


def clip_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy; `same` `[N, N]` marks equal captions, which share the target evenly."""
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    target = same.float() / same.sum(-1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--png", type=Path, required=True, help="the package's png folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/demo-teachers"), help="where decoded images are kept")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--save-every", type=int, default=5, help="epochs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # One thread: the two teachers train side by side, and sums keep one order.
    torch.manual_seed(args.seed)

    # --- data -------------------------------------------------------------------------------------------------------
    files = openclipart.training_files(args.png, openclipart.split_files(args.png))
    imgs, aspect = openclipart.cached_images(args.png, files, openclipart.CACHE_SIZE, args.cache)
    captions, n_words = read_captions(files)
    ids = {caption: i for i, caption in enumerate(sorted({tuple(c) for c in captions}))}
    caption_id = torch.tensor([ids[tuple(c)] for c in captions])
    print(f"{len(files)} images, {n_words - 1} words, {len(ids)} different captions", flush=True)

    # --- model ------------------------------------------------------------------------------------------------------
    vision, text = teacher.new_clip(teacher.OPENCLIPART).train(), BagOfWords(n_words)
    log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
    groups = decay_groups(vision, args.weight_decay) + decay_groups(text, args.weight_decay)
    groups.append({"params": [log_scale], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    params = [p for group in groups for p in group["params"]]
    per_epoch = len(files) // args.batch_size
    total = args.epochs * per_epoch

    # --- loop -------------------------------------------------------------------------------------------------------
    started, step = time.monotonic(), 0
    for epoch in range(args.epochs):
        loss_sum = 0.0
        order = torch.randperm(len(files))[: per_epoch * args.batch_size]
        for batch in order.split(args.batch_size):
            lr = warmup_cosine(step, total, total // 20, args.lr, 1e-6)
            for group in optimizer.param_groups:
                group["lr"] = lr
            views = augment.random_resized_crop(imgs[batch], aspect[batch], teacher.OPENCLIPART.img_size, scale=(0.3, 1.0))
            views = augment.color_jitter(views, strength=0.5, p_gray=0.05, p_solarize=0.0)
            views = teacher.normalize(views, teacher.CLIP_MEAN, teacher.CLIP_STD)
            with torch.autocast("cpu", torch.bfloat16):
                image = vision(views).image_embeds
            same = caption_id[batch][:, None] == caption_id[batch][None, :]
            loss = clip_loss(image.float(), text([captions[i] for i in batch], p_drop=0.2), log_scale.exp(), same)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            log_scale.data.clamp_(max=4.6052)  # CLIP's bound: a scale of 100.
            loss_sum += loss.item()
            step += 1
        done = epoch + 1
        seconds = time.monotonic() - started
        print(f"epoch {done} loss {loss_sum / per_epoch:.4f} lr {lr:.2e} scale {log_scale.exp():.1f} {seconds:.0f} s", flush=True)
        if done % args.save_every == 0 or done == args.epochs:
            teacher.save(vision, args.out)


if __name__ == "__main__":
    main()
