"""Trains `dino-tiny`: a 64-pixel ViT by self-distillation, without labels or words.

    dino_openclipart.py --png oc/usr/share/openclipart/png --out assets/teachers/dino-tiny

DINO (Caron et al. 2021): two large and several small crops of an image; the student must give every crop the distribution
over prototypes that its own moving average gives the *other* large crops. A low teacher temperature and a centering that
gives every prototype its share keep the outputs from collapsing. The moving average is what is saved, without its head.

Two departures for a run of minutes on a few thousand pieces of clip art. Centering is Sinkhorn-Knopp's, as in DINOv2: with
DINO's running mean and rising teacher temperature a first run stalled (loss 6.06 after 16 epochs; a uniform guess over its
1024 prototypes has 6.93). And the color distortion is half of DINO's, since flat colors are much of what clip art has to
tell (an assumption, not measured alone).

The first epochs use smaller crops (positions are interpolated): they cost half as much. The last ones use the size that
the teacher is made for.
"""

import argparse
import copy
import time
from pathlib import Path

import torch
from torch import nn

import augment
import openclipart
import teacher
from dino import Head, dino_loss, sinkhorn_targets
from schedule import decay_groups, warmup_cosine


class Network(nn.Module):
    def __init__(self, n_prototypes: int):
        super().__init__()
        self.backbone = teacher.new_dino(teacher.OPENCLIPART)
        self.head = Head(self.backbone.config.hidden_size, n_prototypes)

    def forward(self, imgs: torch.Tensor) -> torch.Tensor:
        with teacher.autocast():
            cls = self.backbone(imgs, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        return self.head(cls.float())  # [N, n_prototypes]


def draw_crops(imgs: torch.Tensor, aspect: torch.Tensor, large: int, small: int, n_small: int) -> list[torch.Tensor]:
    """`[N, 3, large, large]` twice, then `[N, 3, small, small]` `n_small` times. Only the second crop is solarized.

    Crops are larger than DINO's (5-40 % and 40-100 % there): a small piece of clip art is often blank paper.
    """
    wanted = [(large, (0.4, 1.0), 0.0), (large, (0.4, 1.0), 0.1)] + [(small, (0.15, 0.5), 0.0)] * n_small
    crops = []
    for size, scale, p_solarize in wanted:
        crop = augment.random_resized_crop(imgs, aspect, size, scale)
        crop = augment.color_jitter(crop, strength=0.5, p_gray=0.1, p_solarize=p_solarize)
        crops.append(teacher.normalize(crop, teacher.IMAGENET_MEAN, teacher.IMAGENET_STD))
    return crops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--png", type=Path, required=True, help="the package's png folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/demo-teachers"), help="where decoded images are kept")
    parser.add_argument("--epochs", type=int, default=22)
    parser.add_argument("--small-epochs", type=int, default=18, help="first epochs, with crops of 48 and 24 pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--n-small", type=int, default=4, help="small crops of an image")
    parser.add_argument("--n-prototypes", type=int, default=512)
    parser.add_argument("--teacher-temperature", type=float, default=0.03)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.04)
    parser.add_argument("--momentum", type=float, default=0.99, help="of the moving average at the start; it ends at 1")
    parser.add_argument("--save-every", type=int, default=5, help="epochs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # Sums keep one order, and so small a network gains little from a second thread.
    torch.manual_seed(args.seed)

    # --- data and model ---------------------------------------------------------------------------------------------
    files = openclipart.training_files(args.png, openclipart.split_files(args.png))
    imgs, aspect = openclipart.cached_images(args.png, files, openclipart.CACHE_SIZE, args.cache)
    student = Network(args.n_prototypes).train()
    ema = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(decay_groups(student, args.weight_decay), lr=args.lr)
    per_epoch = len(files) // args.batch_size
    total, warmup = args.epochs * per_epoch, args.epochs * per_epoch // 10
    print(f"{len(files)} images, {total} steps", flush=True)

    # --- loop -------------------------------------------------------------------------------------------------------
    started, step = time.monotonic(), 0
    for epoch in range(args.epochs):
        large, small = (48, 24) if epoch < args.small_epochs else (teacher.OPENCLIPART.img_size, teacher.OPENCLIPART.img_size // 2)
        loss_sum = 0.0
        order = torch.randperm(len(files))[: per_epoch * args.batch_size]
        for batch in order.split(args.batch_size):
            lr = warmup_cosine(step, total, warmup, args.lr, 1e-6)
            for group in optimizer.param_groups:
                group["lr"] = lr
            momentum = 1 - warmup_cosine(step, total, 0, 1 - args.momentum, 0.0)

            crops = draw_crops(imgs[batch], aspect[batch], large, small, args.n_small)
            with torch.no_grad():
                targets = sinkhorn_targets(ema(torch.cat(crops[:2])), args.teacher_temperature).chunk(2)
            out = [*student(torch.cat(crops[:2])).chunk(2), *student(torch.cat(crops[2:])).chunk(args.n_small)]
            loss = dino_loss(out, targets, temperature=0.1)

            optimizer.zero_grad()
            loss.backward()
            if epoch == 0:
                student.head.prototypes.grad = None  # DINO's freeze_last_layer: steadies the start.
            nn.utils.clip_grad_norm_(student.parameters(), 3.0)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(list(ema.parameters()), list(student.parameters()), 1 - momentum)
            loss_sum += loss.item()
            step += 1
        done = epoch + 1
        # A student that has learned nothing stays at ln(n_prototypes), 6.24: the targets' mean is uniform.
        seconds = time.monotonic() - started
        print(f"epoch {done} loss {loss_sum / per_epoch:.4f} lr {lr:.2e} {seconds:.0f} s", flush=True)
        if done % args.save_every == 0 or done == args.epochs:
            teacher.save(ema.backbone, args.out)


if __name__ == "__main__":
    main()
