"""Small masked convolution autoencoders (ConvMAE, MCMAE) with random weights, and their outputs by the published definition.

    $(scripts/python-env) scripts/golden/mcmae.py              # writes tests/golden/mcmae/
    $(scripts/python-env) scripts/golden/mcmae.py --out DIR    # writes them elsewhere

No package has this network, so it is written here from its definition, with PyTorch's own layers: every convolution is a
convolution over the whole map, and the mask is laid over the input of the depthwise one. Parameters are written under the names of
the reference code (Alpha-VL/ConvMAE), in f16, whose values f32 and f64 hold exactly. Every one is random, norms and biases
included, so that a missing one is noticed; gradients are of the loss, for every parameter. Everything is computed in f64 and written
in f32.
"""

import argparse
import json
import pathlib

import numpy
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Names follow the fields of McmaeEncoderConfig (models/src/mcmae/config.rs) and DecoderConfig (models/src/decoder.rs).
CASES = {
    "grid3x4": dict(
        img_size=[48, 64], embed_dims=[8, 12, 20], depths=[2, 1, 2], num_heads=5, mlp_ratios=[3, 2, 2], cls_token=False, fusion=True,
        decoder_embed_dim=12, decoder_depth=1, decoder_num_heads=3, decoder_mlp_ratio=3, norm_pix_loss=True,
        mask_ratio=0.75, batch=2,
    ),
    "grid4x4-cls": dict(
        img_size=[64, 64], embed_dims=[12, 8, 16], depths=[1, 2, 1], num_heads=4, mlp_ratios=[2, 4, 3], cls_token=True, fusion=True,
        decoder_embed_dim=8, decoder_depth=2, decoder_num_heads=1, decoder_mlp_ratio=2, norm_pix_loss=False,
        mask_ratio=0.5, batch=2,
    ),
}  # fmt: skip


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map [N, C, h, w]."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    def __init__(self, in_dim, dim, side):
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, kernel_size=side, stride=side)
        self.norm = ChannelNorm(dim, eps=1e-5)

    def forward(self, x):
        return F.gelu(self.norm(self.proj(x)))


class ConvMlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class ConvBlock(nn.Module):
    def __init__(self, dim, mlp_ratio):
        super().__init__()
        self.norm1 = ChannelNorm(dim, eps=1e-5)
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.attn = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv2 = nn.Conv2d(dim, dim, 1)
        self.norm2 = ChannelNorm(dim, eps=1e-5)
        self.mlp = ConvMlp(dim, dim * mlp_ratio)

    def forward(self, x, keep):
        x = x + self.conv2(self.attn(keep * self.conv1(self.norm1(x))))
        return x + self.mlp(self.norm2(x))


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        n, t, dim = x.shape
        q, k, v = (part.view(n, t, self.num_heads, -1).transpose(1, 2) for part in self.qkv(x).split(dim, dim=-1))
        weights = (q @ k.transpose(2, 3) / (dim / self.num_heads) ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, dim))


class Block(nn.Module):
    def __init__(self, dim, num_heads, mlp_ratio):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, dim * mlp_ratio)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def axis(positions, dim):
    angles = positions[:, None] * 10000.0 ** (-numpy.arange(dim // 2) / (dim / 2))
    return numpy.concatenate([numpy.sin(angles), numpy.cos(angles)], axis=1)


def sincos(dim, height, width, cls_token):
    """Fixed positions, the column in the first half of the channels and the row in the second."""
    rows, columns = numpy.divmod(numpy.arange(height * width), width)
    table = numpy.concatenate([axis(columns, dim // 2), axis(rows, dim // 2)], axis=1)
    if cls_token:
        table = numpy.concatenate([numpy.zeros((1, dim)), table])
    return nn.Parameter(torch.from_numpy(table).float()[None], requires_grad=False)


def gather(tokens, ids):
    return tokens.gather(1, ids[:, :, None].expand(-1, -1, tokens.shape[2]))


class MaskedConvAutoencoder(nn.Module):
    def __init__(self, case):
        super().__init__()
        self.case = case
        self.grid = [side // 16 for side in case["img_size"]]
        (dim1, dim2, dim), (depth1, depth2, depth3), ratios = case["embed_dims"], case["depths"], case["mlp_ratios"]
        self.patch_embed1 = PatchEmbed(3, dim1, 4)
        self.patch_embed2 = PatchEmbed(dim1, dim2, 2)
        self.patch_embed3 = PatchEmbed(dim2, dim, 2)
        self.patch_embed4 = nn.Linear(dim, dim)
        self.pos_embed = sincos(dim, *self.grid, case["cls_token"])
        if case["cls_token"]:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks1 = nn.ModuleList(ConvBlock(dim1, ratios[0]) for _ in range(depth1))
        self.blocks2 = nn.ModuleList(ConvBlock(dim2, ratios[1]) for _ in range(depth2))
        self.blocks3 = nn.ModuleList(Block(dim, case["num_heads"], ratios[2]) for _ in range(depth3))
        if case["fusion"]:
            self.stage1_output_decode = nn.Conv2d(dim1, dim, 4, stride=4)
            self.stage2_output_decode = nn.Conv2d(dim2, dim, 2, stride=2)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

        ddim, heads = case["decoder_embed_dim"], case["decoder_num_heads"]
        self.decoder_embed = nn.Linear(dim, ddim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, ddim))
        self.decoder_pos_embed = sincos(ddim, *self.grid, case["cls_token"])
        decoder = (Block(ddim, heads, case["decoder_mlp_ratio"]) for _ in range(case["decoder_depth"]))
        self.decoder_blocks = nn.ModuleList(decoder)
        self.decoder_norm = nn.LayerNorm(ddim, eps=1e-6)
        self.decoder_pred = nn.Linear(ddim, 16 * 16 * 3)

    def forward(self, imgs, noise):
        """The output of each module by name."""
        seen = {}

        def note(name, value):
            seen[name] = value
            return value

        # Visible tokens have the smallest noise.
        prefix = int(self.case["cls_token"])
        num_patches = noise.shape[1]
        len_keep = int(num_patches * (1 - self.case["mask_ratio"]))
        ids_shuffle = noise.argsort(dim=1)
        ids_restore = ids_shuffle.argsort(dim=1)
        ids_keep = ids_shuffle[:, :len_keep]
        mask = note("mask", (ids_restore >= len_keep).to(imgs.dtype))
        note("ids_restore", ids_restore)
        keep = (1 - mask).view(-1, 1, *self.grid)

        x = note("patch_embed1", self.patch_embed1(imgs))
        keep1 = keep.repeat_interleave(4, 2).repeat_interleave(4, 3)
        for block in self.blocks1:
            x = block(x, keep1)
        stage1 = note("blocks1", x)
        x = note("patch_embed2", self.patch_embed2(x))
        keep2 = keep.repeat_interleave(2, 2).repeat_interleave(2, 3)
        for block in self.blocks2:
            x = block(x, keep2)
        stage2 = note("blocks2", x)
        x = note("patch_embed3", self.patch_embed3(x))
        x = note("patch_embed4", self.patch_embed4(x.flatten(2).transpose(1, 2)))
        x = gather(x + self.pos_embed[:, prefix:], ids_keep)
        if prefix:
            cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
            x = torch.cat([cls, x], dim=1)
        for block in self.blocks3:
            x = block(x)
        note("blocks3", x)
        if self.case["fusion"]:
            for projection, stage in [(self.stage1_output_decode, stage1), (self.stage2_output_decode, stage2)]:
                fused = gather(projection(stage).flatten(2).transpose(1, 2), ids_keep)
                x = x + F.pad(fused, (0, 0, prefix, 0))  # nothing for CLS
        latent = note("latent", self.norm(x))

        x = self.decoder_embed(latent)
        fill = self.mask_token.expand(len(x), num_patches - len_keep, -1)
        patches = gather(torch.cat([x[:, prefix:], fill], dim=1), ids_restore)
        x = torch.cat([x[:, :prefix], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        pred = note("pred", self.decoder_pred(self.decoder_norm(x))[:, prefix:])
        note("loss", self.loss(imgs, pred, mask).reshape(1))
        return seen

    def loss(self, imgs, pred, mask):
        n, (h, w) = len(imgs), self.grid
        target = imgs.view(n, 3, h, 16, w, 16).permute(0, 2, 4, 3, 5, 1).reshape(n, h * w, 16 * 16 * 3)
        if self.case["norm_pix_loss"]:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        per_patch = ((pred - target) ** 2).mean(-1)
        return (per_patch * mask).sum() / mask.sum()


def randomize(model, generator):
    for name, p in sorted(model.named_parameters()):
        if not p.requires_grad:
            continue  # the fixed positions
        noise = torch.randn(p.shape, generator=generator)
        if "token" in name:
            value = 0.3 * noise
        elif name.endswith("bias"):
            value = 0.2 * noise
        elif "norm" in name:
            value = 1 + 0.2 * noise
        else:
            value = noise * p[0].numel() ** -0.5
        p.data.copy_(value.half())


def make(name, case, out):
    generator = torch.Generator().manual_seed(sum(name.encode()))
    model = MaskedConvAutoencoder(case)
    randomize(model, generator)
    params = {n: p.detach().clone() for n, p in model.named_parameters()}
    fixed = {n for n, p in model.named_parameters() if not p.requires_grad}
    imgs = torch.randn((case["batch"], 3, *case["img_size"]), generator=generator).half()
    num_patches = model.grid[0] * model.grid[1]
    # A permutation per row, so that no two values are equal.
    noise = torch.stack([torch.randperm(num_patches, generator=generator) for _ in range(case["batch"])]) / num_patches

    seen = model.double()(imgs.double(), noise)
    seen["loss"].backward()

    tensors = {f"param/{n}": (p if n in fixed else p.half()) for n, p in params.items()}
    tensors |= {f"grad/{n}": p.grad for n, p in model.named_parameters() if n not in fixed}
    tensors |= dict(imgs=imgs, noise=noise) | seen
    tensors = {n: (t.float() if t.dtype == torch.float64 else t).detach().contiguous() for n, t in tensors.items()}
    path = out / f"{name}.safetensors"
    save_file(tensors, path, {"case": json.dumps(case)})
    path.chmod(0o644)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/golden/mcmae")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, case in CASES.items():
        make(name, case, out)
    print(f"{out}: torch {torch.__version__}")


if __name__ == "__main__":
    main()
