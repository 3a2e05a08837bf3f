"""Trains `clip-tiny`: a 64-pixel vision tower, contrastively against the words of file and folder names.

    clip_openclipart.py --png oc/usr/share/openclipart/png --out assets/teachers/clip-tiny

CLIP (Radford et al. 2021) with four changes that this data asks for:

- The text tower is a bag of words: a caption here is a handful of words without grammar.
- Captions repeat (a thousand "shapes stars star"), and some say no more than the first folder. A caption matches every image that it is
  true of, not only the one it comes with.
- The mean of the patch tokens is held against the captions as well as the class token: a student mimics patches.
- Half of the patches are left out in all epochs but the last (FLIP, Li et al. 2023), which makes an epoch half as long.

Only the vision tower is saved.
"""

import argparse
import time
from collections import Counter
from pathlib import Path

import torch
from torch import nn

import augment
import openclipart
import teacher
from clip import BagOfWords, Towers
from schedule import decay_groups, warmup_cosine


class Captions:
    """What is said of each file: the words of its path, or only those of its first folder. Word 0 stands for an empty caption."""

    def __init__(self, files: list[str]):
        counts = Counter(w for path in files for w in set(openclipart.words_of(path)))
        known = {w: i for i, w in enumerate(sorted(w for w, n in counts.items() if n >= openclipart.MIN_WORD_COUNT), start=1)}
        self.n_words = len(known) + 1
        ids_of = lambda path: sorted({known[w] for w in openclipart.words_of(path) if w in known}) or [0]
        self.whole = [ids_of(path) for path in files]
        self.folder = [ids_of(openclipart.label_of(path)) for path in files]
        self.same_whole, self.same_folder = (self._numbered(captions) for captions in (self.whole, self.folder))

    @staticmethod
    def _numbered(captions: list[list[int]]) -> torch.Tensor:
        numbers = {caption: i for i, caption in enumerate(sorted({tuple(c) for c in captions}))}
        return torch.tensor([numbers[tuple(c)] for c in captions])

    def draw(self, batch: torch.Tensor, p_folder: float, p_drop: float) -> tuple[list[list[int]], torch.Tensor]:
        """Captions of these files, each word of a whole one left out with `p_drop`, and which are true of which: bool `[image, caption]`."""
        only_folder = torch.rand(len(batch)) < p_folder
        captions = []
        for i, vague in zip(batch.tolist(), only_folder.tolist()):
            kept = [word for word, r in zip(self.whole[i], torch.rand(len(self.whole[i])).tolist()) if r >= p_drop]
            captions.append(self.folder[i] if vague else kept or self.whole[i])
        equal = lambda numbers: numbers[batch][:, None] == numbers[batch][None, :]
        return captions, torch.where(only_folder[None, :], equal(self.same_folder), equal(self.same_whole))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--png", type=Path, required=True, help="the package's png folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/demo-teachers"), help="where decoded images are kept")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--full-epochs", type=int, default=5, help="last epochs, which see all patches")
    parser.add_argument("--keep", type=int, default=32, help="patches of 64 that the other epochs see")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--p-folder", type=float, default=0.3, help="share of captions that say only the first folder")
    parser.add_argument("--p-drop", type=float, default=0.2, help="share of the other captions' words that are left out")
    parser.add_argument("--save-every", type=int, default=5, help="epochs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # Sums keep one order, and so small a network gains little from a second thread.
    torch.manual_seed(args.seed)

    # --- data -------------------------------------------------------------------------------------------------------
    files = openclipart.training_files(args.png, openclipart.split_files(args.png))
    imgs, aspect = openclipart.cached_images(args.png, files, openclipart.CACHE_SIZE, args.cache)
    captions = Captions(files)
    print(f"{len(files)} images, {captions.n_words - 1} words, {captions.same_whole.max() + 1} different captions", flush=True)

    # --- model ------------------------------------------------------------------------------------------------------
    towers = Towers(teacher.new_clip(teacher.OPENCLIPART), BagOfWords(captions.n_words, width=256, out=128)).train()
    optimizer = torch.optim.AdamW(decay_groups(towers, args.weight_decay), lr=args.lr, betas=(0.9, 0.98))
    per_epoch = len(files) // args.batch_size
    total = args.epochs * per_epoch
    patches = (teacher.OPENCLIPART.img_size // teacher.OPENCLIPART.patch_size) ** 2

    # --- loop -------------------------------------------------------------------------------------------------------
    started, step = time.monotonic(), 0
    for epoch in range(args.epochs):
        keep = patches if epoch >= args.epochs - args.full_epochs else args.keep
        loss_sum = 0.0
        order = torch.randperm(len(files))[: per_epoch * args.batch_size]
        for batch in order.split(args.batch_size):
            lr = warmup_cosine(step, total, total // 20, args.lr, 1e-6)
            for group in optimizer.param_groups:
                group["lr"] = lr
            views = augment.random_resized_crop(imgs[batch], aspect[batch], teacher.OPENCLIPART.img_size, scale=(0.3, 1.0))
            views = augment.color_jitter(views, strength=0.5, p_gray=0.05, p_solarize=0.0)
            views = teacher.normalize(views, teacher.CLIP_MEAN, teacher.CLIP_STD)
            said, true = captions.draw(batch, args.p_folder, args.p_drop)
            loss = towers(views, keep, said, true)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
            optimizer.step()
            towers.clamp_scale()
            loss_sum += loss.item()
            step += 1
        done = epoch + 1
        seconds = time.monotonic() - started
        print(f"epoch {done} loss {loss_sum / per_epoch:.4f} lr {lr:.2e} scale {towers.log_scale.exp():.1f} {seconds:.0f} s", flush=True)
        if done % args.save_every == 0 or done == args.epochs:
            teacher.save(towers.vision, args.out)


if __name__ == "__main__":
    main()
