"""The training step that a user of PyTorch would write: MAE and MR-MAE on a ViT-B, eager and compiled, on data that is on the device.

    scripts/gpu/peer.py [--device cuda] [--batch 256] [--steps 12] [--tiny] [--json]

The same sizes, losses and precision as `trainer bench`: bf16 autocast, fused AdamW, scaled dot-product attention. Both sides count
forward, backward and update, from pixels of 8 bits.
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class MrMae(nn.Module):
    """A masked autoencoder whose visible tokens also mimic teachers."""

    def __init__(self, size, patch, dim, depth, heads, decoder, teachers, fusion=()):
        super().__init__()
        self.patch, self.patches = patch, (size // patch) ** 2
        self.keep = self.patches // 4
        self.fusion = fusion
        decoder_dim, decoder_depth, decoder_heads = decoder
        self.embed = nn.Linear(3 * patch * patch, dim)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("pos", torch.randn(1, self.patches + 1, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.heads = nn.ModuleDict({name: nn.Linear(dim, width) for name, width in teachers.items()})
        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.register_buffer("decoder_pos", torch.randn(1, self.patches + 1, decoder_dim) * 0.02)
        self.decoder_blocks = nn.ModuleList(Block(decoder_dim, decoder_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.pred = nn.Linear(decoder_dim, 3 * patch * patch)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, pixels, noise, targets):
        imgs = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        n, p = imgs.shape[0], self.patch
        side = imgs.shape[2] // p
        patches = imgs.reshape(n, 3, side, p, side, p).permute(0, 2, 4, 3, 5, 1).reshape(n, side * side, -1)
        shuffle = noise.argsort(1)
        restore, ids = shuffle.argsort(1), shuffle[:, : self.keep]

        def visible(rows):
            return rows.gather(1, ids.unsqueeze(2).expand(-1, -1, rows.shape[2]))

        x = self.embed(visible(patches)) + visible(self.pos[:, 1:].expand(n, -1, -1))
        x = torch.cat([(self.cls + self.pos[:, :1]).expand(n, -1, -1), x], 1)
        fused = 0
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.fusion:
                fused = fused + x
        latent = self.norm(x + fused)
        y = self.decoder_embed(latent)
        tokens = torch.cat([y[:, 1:], self.mask_token.expand(n, self.patches - self.keep, -1).to(y.dtype)], 1)
        tokens = tokens.gather(1, restore.unsqueeze(2).expand(-1, -1, y.shape[2]))
        y = torch.cat([y[:, :1], tokens], 1) + self.decoder_pos
        for block in self.decoder_blocks:
            y = block(y)
        pred = self.pred(self.decoder_norm(y))[:, 1:]
        target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        removed = restore >= self.keep
        loss = ((pred.float() - target).square().mean(-1) * removed).sum() / removed.sum()
        for name, head in self.heads.items():
            target = visible(targets[name]).float()
            target = F.layer_norm(target, target.shape[-1:])
            loss = loss + F.mse_loss(head(latent[:, 1:]).float(), target)
        return loss


def rate(args, teachers, fusion, compiled):
    """Images per second, the median of the timed steps."""
    torch.manual_seed(0)
    if args.tiny:
        shape = dict(size=64, patch=8, dim=128, depth=4, heads=4, decoder=(64, 1, 4))
    else:
        shape = dict(size=224, patch=16, dim=768, depth=12, heads=12, decoder=(512, 8, 16))
    model = MrMae(**shape, teachers=teachers, fusion=fusion).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    step_model = torch.compile(model) if compiled else model
    n, size = args.batch, shape["size"]
    pixels = torch.randint(256, (n, size, size, 3), dtype=torch.uint8, device=args.device)
    noise = torch.rand(n, model.patches, device=args.device)
    targets = {name: torch.randn(n, model.patches, width, device=args.device).half() for name, width in teachers.items()}
    times = []
    for step in range(5 + args.steps if not args.tiny else 3):
        if args.device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        # Several steps for each time, so that the host may run ahead as it does in training.
        for _ in range(1 if args.tiny else 3):
            with torch.autocast(args.device, torch.bfloat16, enabled=not args.tiny):
                loss = step_model(pixels, noise, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if args.device == "cuda":
            torch.cuda.synchronize()
        if step >= (1 if args.tiny else 3):
            times.append((time.perf_counter() - began) / (1 if args.tiny else 3))
    return n / statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.tiny:
        args.batch = 8
    width = 128 if args.tiny else 768
    figures = []
    for name, teachers, fusion in (
        ("MAE", {}, ()),
        ("MR-MAE, one teacher", {"clip": width}, (3, 7)),
        ("MR-MAE, two teachers", {"clip": width, "dino": width}, (3, 7)),
    ):
        for compiled in (False, True):
            # The two extremes are enough of the compiled ones: compiling takes half a minute each.
            if compiled and (args.tiny or name.endswith("one teacher")):
                continue
            what = f"PyTorch {name}, {'compiled' if compiled else 'eager'}"
            figures.append({"what": what, "images_per_s": rate(args, teachers, fusion, compiled)})
            if not args.json:
                print(f"{what:<44} {figures[-1]['images_per_s']:10.1f} img/s")
    if args.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
