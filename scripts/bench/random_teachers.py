"""Teachers of real size with random weights, for timing: the cost of a forward pass does not depend on the weights.

    $(scripts/python-env) scripts/bench/random_teachers.py OUT [--size b|s|ti] [--patch 16]

Writes OUT/clip and OUT/dino as transformers saves them (config.json, preprocessor_config.json, model.safetensors): the vision tower
of CLIP and the ViT of DINO, at 224 pixels.
"""

import argparse
import json
import pathlib

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, ViTConfig, ViTModel

# Width, blocks and heads by the size names of timm and DeiT.
SIZES = {"ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12)}
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--size", choices=SIZES, default="b")
    parser.add_argument("--patch", type=int, default=16)
    args = parser.parse_args()
    width, depth, heads = SIZES[args.size]
    shape = dict(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=args.patch,
        image_size=224,
    )
    torch.manual_seed(0)
    clip = CLIPVisionModel(CLIPVisionConfig(hidden_act="quick_gelu", layer_norm_eps=1e-5, **shape))
    dino = ViTModel(ViTConfig(hidden_act="gelu", layer_norm_eps=1e-6, **shape), add_pooling_layer=False)
    for name, model, preprocessor in (("clip", clip, CLIP), ("dino", dino, IMAGENET)):
        folder = args.out / name
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{folder}: {parameters / 1e6:.1f} million parameters")


if __name__ == "__main__":
    main()
