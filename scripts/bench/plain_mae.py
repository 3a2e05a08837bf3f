"""Networks that a user of PyTorch would write, as peers in benches: MAE and MR-MAE on a ViT, and the dense MCMAE as published."""

import pathlib
import sys

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))


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


class Pixels(nn.Module):
    """8-bit pixels [N, S, S, 3] normalized by ImageNet's constants, [N, 3, S, S]."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, pixels):
        return (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std


class DenseMcmae(nn.Module):
    """MCMAE-B as published, computed densely: the network of scripts/golden/mcmae.py with PyTorch's fused attention."""

    def __init__(self, size=224, dims=(256, 384, 768), depths=(2, 2, 11)):
        super().__init__()
        import mcmae

        class FusedAttention(mcmae.Attention):
            def forward(self, x):
                n, t, dim = x.shape
                q, k, v = self.qkv(x).view(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
                return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, dim))

        mcmae.Attention = FusedAttention
        case = dict(
            img_size=[size, size], embed_dims=list(dims), depths=list(depths), num_heads=dims[2] // 64, mlp_ratios=[4, 4, 4], cls_token=False,
            fusion=True, decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16, decoder_mlp_ratio=4, norm_pix_loss=True, mask_ratio=0.75,
        )  # fmt: skip
        self.pixels, self.network = Pixels(), mcmae.MaskedConvAutoencoder(case)

    def forward(self, pixels, noise, targets):
        return self.network(self.pixels(pixels), noise)["loss"].sum()


class TransformersMae(nn.Module):
    """transformers' ViTMAEForPreTraining at ViT-B size, with MAE's normalized pixels as target."""

    def __init__(self):
        super().__init__()
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        config = ViTMAEConfig(norm_pix_loss=True, mask_ratio=0.75, attn_implementation="sdpa")
        self.pixels, self.network = Pixels(), ViTMAEForPreTraining(config)

    def forward(self, pixels, noise, targets):
        return self.network(self.pixels(pixels), noise=noise).loss
