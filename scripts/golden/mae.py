"""Small masked autoencoders with random weights, and what transformers computes with them for given noise.

    $(scripts/python-env) scripts/golden/mae.py              # writes tests/golden/mae/
    $(scripts/python-env) scripts/golden/mae.py --out DIR    # writes them elsewhere

Parameters are written under the names of the reference code (facebookresearch/mae), in f16, whose values f32 holds exactly. Every
one is random, norms and biases included, so that a missing one is noticed; gradients are of the loss, for every parameter.
"""

import argparse
import json
import pathlib
import re

import torch
import transformers
from safetensors.torch import save_file
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Names follow the fields of MaeConfig (models/src/mae.rs).
CASES = {
    "img32-patch8": dict(
        img_size=[32, 32], patch_size=8, embed_dim=48, depth=2, num_heads=3,
        decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4, mlp_ratio=4, norm_pix_loss=False,
        mask_ratio=0.75, batch=3,
    ),
    "img48-patch16": dict(
        img_size=[48, 48], patch_size=16, embed_dim=48, depth=3, num_heads=4,
        decoder_embed_dim=24, decoder_depth=1, decoder_num_heads=2, mlp_ratio=2, norm_pix_loss=True,
        mask_ratio=0.6, batch=2,
    ),
}  # fmt: skip


def positions(height, width, dim):
    """The reference's layout: column before row."""
    rows, columns = build_2d_sinusoidal_position_embedding(height, width, dim, cls_token=True).chunk(2, dim=-1)
    return torch.cat([columns, rows], dim=-1)


def build(case):
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=case["img_size"][0],
            patch_size=case["patch_size"],
            hidden_size=case["embed_dim"],
            num_hidden_layers=case["depth"],
            num_attention_heads=case["num_heads"],
            intermediate_size=case["embed_dim"] * case["mlp_ratio"],
            decoder_hidden_size=case["decoder_embed_dim"],
            decoder_num_hidden_layers=case["decoder_depth"],
            decoder_num_attention_heads=case["decoder_num_heads"],
            decoder_intermediate_size=case["decoder_embed_dim"] * case["mlp_ratio"],
            norm_pix_loss=case["norm_pix_loss"],
            mask_ratio=case["mask_ratio"],
            layer_norm_eps=1e-6,  # transformers' default is 1e-12; the reference and its weights have 1e-6
            hidden_act="gelu",
            qkv_bias=True,
        )
    ).eval()
    # transformers 5.23 leaves the positions of a model without a checkpoint at zero.
    grid = [side // case["patch_size"] for side in case["img_size"]]
    for fixed in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        fixed.data.copy_(positions(*grid, fixed.shape[-1]))
    return model


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


RENAMES = [
    (r"^vit\.embeddings\.cls_token$", "cls_token"),
    (r"^vit\.embeddings\.position_embeddings$", "pos_embed"),
    (r"^vit\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^vit\.layernorm\.", "norm."),
    (r"^vit\.layers\.", "blocks."),
    (r"^decoder\.decoder_layers\.", "decoder_blocks."),
    (r"^decoder\.", ""),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
]


def reference_names(tensors):
    """Renames transformers' tensors, and stacks q, k and v as the reference does."""
    out = {}
    for name, tensor in tensors.items():
        if re.search(r"\.[kv]_proj\.", name):
            continue
        if ".q_proj." in name:
            parts = [tensors[name.replace(".q_proj.", f".{x}_proj.")] for x in "qkv"]
            name, tensor = name.replace(".attention.q_proj.", ".attn.qkv."), torch.cat(parts)
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    return out


def make(name, case, out):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(sum(name.encode()))
    model = build(case)
    randomize(model, generator)
    num_patches = (case["img_size"][0] // case["patch_size"]) ** 2
    imgs = torch.randn((case["batch"], 3, *case["img_size"]), generator=generator)
    # A permutation per row, so that no two values are equal.
    noise = torch.stack([torch.randperm(num_patches, generator=generator) for _ in range(case["batch"])]) / num_patches

    encoded = model.vit(imgs, noise=noise)
    decoded = model(imgs, noise=noise)
    decoded.loss.backward()

    params = reference_names({n: p.detach() for n, p in model.named_parameters()})
    grads = reference_names({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    fixed = {"pos_embed", "decoder_pos_embed"}
    assert set(params) - set(grads) == fixed, set(params) - set(grads)
    tensors = {f"param/{n}": (p if n in fixed else p.half()) for n, p in params.items()}
    tensors |= {f"grad/{n}": g for n, g in grads.items()}
    tensors |= dict(imgs=imgs, noise=noise, latent=encoded.last_hidden_state, pred=decoded.logits, mask=decoded.mask)
    tensors |= dict(ids_restore=decoded.ids_restore, loss=decoded.loss.reshape(1))
    tensors = {n: t.detach().contiguous() for n, t in tensors.items()}
    save(tensors, out / f"{name}.safetensors", {"case": json.dumps(case)})


def save(tensors, path, metadata=None):
    save_file(tensors, path, metadata)
    path.chmod(0o644)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/golden/mae")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, case in CASES.items():
        make(name, case, out)
    save({"3x5": positions(3, 5, 16).contiguous()}, out / "positions.safetensors")
    print(f"{out}: torch {torch.__version__}, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
