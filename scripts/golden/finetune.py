"""Small vision transformers with a classifier, and what timm computes with them; and timm's groups for layer decay.

    $(scripts/python-env) scripts/golden/finetune.py              # writes tests/golden/finetune/
    $(scripts/python-env) scripts/golden/finetune.py --out DIR    # writes them elsewhere

Parameters are random, norms and biases too, in f16, whose values f32 holds exactly. The loss is the soft-target cross entropy of
mixup; gradients are of it, for every parameter.
"""

import argparse
import json
import pathlib

import timm
import torch
from safetensors.torch import save_file
from timm.loss import SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZES = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, mlp_ratio=4)
CASES = {"mean": "avg", "cls": "token"}
CLASSES, BATCH = 7, 3
LAYER_DECAY, WEIGHT_DECAY = 0.65, 0.05


def build(pool):
    # timm's eps for these norms is 1e-6 already, as MAE's.
    return VisionTransformer(**SIZES, num_classes=CLASSES, global_pool=pool).eval()


def randomize(model, generator):
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        if name.endswith("bias"):
            value = 0.2 * noise
        elif "norm" in name:
            value = 1 + 0.2 * noise
        elif name in ("cls_token", "pos_embed"):
            value = 0.3 * noise
        else:
            value = noise * p[0].numel() ** -0.5
        p.data.copy_(value.half())


def classify(pool):
    generator = torch.Generator().manual_seed(0)
    model = build(pool)
    randomize(model, generator)
    imgs = torch.randn((BATCH, 3, 32, 32), generator=generator)
    targets = torch.rand((BATCH, CLASSES), generator=generator)
    targets /= targets.sum(1, keepdim=True)
    logits = model(imgs)
    loss = SoftTargetCrossEntropy()(logits, targets)
    loss.backward()
    named = sorted(model.named_parameters())
    tensors = {f"param/{n}": p.detach().half() for n, p in named} | {f"grad/{n}": p.grad for n, p in named}
    return tensors | dict(imgs=imgs, targets=targets, logits=logits.detach(), loss=loss.detach().reshape(1))


def layer_decay(pool):
    """By parameter: (learning rate's factor, weight decay)."""
    model = build(pool)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = param_groups_layer_decay(model, WEIGHT_DECAY, model.no_weight_decay(), layer_decay=LAYER_DECAY)
    return {names[id(p)]: [g["lr_scale"], g["weight_decay"]] for g in groups for p in g["params"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/golden/finetune")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, pool in CASES.items():
        path = out / f"{name}.safetensors"
        save_file({n: t.contiguous() for n, t in classify(pool).items()}, path)
        path.chmod(0o644)
    (out / "layer_decay.json").write_text(json.dumps(layer_decay("avg"), indent=1, sort_keys=True) + "\n")
    print(f"{out}: torch {torch.__version__}, timm {timm.__version__}")


if __name__ == "__main__":
    main()
