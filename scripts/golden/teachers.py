"""Small CLIP and ViT towers with random weights, and the outputs of transformers.

    $(scripts/python-env) scripts/golden/teachers.py                       # writes tests/golden/teachers/
    $(scripts/python-env) scripts/golden/teachers.py --out DIR             # writes them elsewhere
    $(scripts/python-env) scripts/golden/teachers.py --folder TEACHER --out FILE   # what transformers computes for a teacher on disk

Every parameter is random, the norms' included, and large enough that a wrong eps, activation, scale or order is noticed.
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTModel,
)
from transformers import logging as transformers_logging

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
HALF = dict(image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])
SMALL = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=3, image_size=32, patch_size=8)
LARGE = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=48, patch_size=16)


def clip_whole():
    text = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    text |= dict(max_position_embeddings=4, bos_token_id=0, eos_token_id=1)
    vision = CLIPVisionConfig(**SMALL, hidden_act="quick_gelu").to_dict()
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


# name -> (model, its normalization, type of the file, non-native inputs (height, width))
CASES = {
    "clip-quickgelu": (clip_whole, {}, torch.float16, [(48, 40)]),
    "clip-gelu": (lambda: CLIPVisionModel(CLIPVisionConfig(**LARGE, hidden_act="gelu")), {}, torch.float16, []),
    "vit": (lambda: ViTModel(ViTConfig(**SMALL)), HALF, torch.bfloat16, [(24, 40)]),
    "dino": (lambda: ViTModel(ViTConfig(**LARGE, layer_norm_eps=1e-6), add_pooling_layer=False), IMAGENET, torch.float16, []),
}


def randomize(model, generator):
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        if "embedding" in name or "token" in name:
            # Small, so that the first norm sees variances near 1e-3, where eps matters.
            scale, center = (0.03 if p.dim() < 4 else 0.03 / p[0].numel() ** 0.5), 0
        elif name.endswith("bias"):
            scale, center = 0.2, 0
        elif "norm" in name or "layrnorm" in name:
            scale, center = 0.3, 1
        else:
            scale, center = (1.5 / p[0].numel() ** 0.5 if p.dim() > 1 else 1), 0
        p.data = center + scale * noise


def vision_tower(model):
    """The module that takes pixels, and its final norm."""
    model = getattr(model, "vision_model", model)
    return model, getattr(model, "post_layernorm", None) or model.layernorm


@torch.no_grad()
def expect(model, preprocessor, pixels):
    """Everything compared, f32. `pixels`: u8 [N, 3, H, W]."""
    tower, norm = vision_tower(model.eval().float())
    tower.config._attn_implementation = "eager"
    mean, std = (torch.tensor(preprocessor[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    x = (pixels.float() / 255 - mean) / std
    native = pixels.shape[-2:] == (tower.config.image_size,) * 2
    # No argument at the native size, so that the plain path is recorded.
    kwargs = {} if native else dict(interpolate_pos_encoding=True)
    out = tower(x, output_hidden_states=True, output_attentions=True, **kwargs)
    stages, last = out.hidden_states, out.hidden_states[-1]
    assert len(stages) == tower.config.num_hidden_layers + 1
    is_clip = "clip" in tower.config.model_type
    # CLIP returns the residual stream, ViT its norm: either way `last` is the stream before the final norm.
    assert torch.equal(out.last_hidden_state, last if is_clip else norm(last))
    result = {f"hidden_states.{i}": stage for i, stage in enumerate(stages)}
    result["normed"] = norm(last)
    result["cls_attn"] = out.attentions[-1][:, :, 0, 1:].mean(1)
    return {"pixels": pixels} | {name: t.contiguous() for name, t in result.items()}


def random_pixels(generator, n, height, width):
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def write_case(folder, case, seed):
    make, normalization, dtype, sizes = case
    generator = torch.Generator().manual_seed(seed)
    model = make()
    randomize(model, generator)
    # The file's type rounds, so the expected values are computed from rounded weights.
    model.to(dtype).save_pretrained(folder)
    CLIPImageProcessor(**normalization).save_pretrained(folder)
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    if folder.name == "dino":
        # The names that transformers 5 has in memory, which a saved state dict shows.
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "model.safetensors")
    size = vision_tower(model)[0].config.image_size
    for height, width in [(size, size), *sizes]:
        native = (height, width) == (size, size)
        pixels = random_pixels(generator, 2 if native else 1, height, width)
        save_file(expect(model, preprocessor, pixels), folder / f"expected-{height}x{width}.safetensors")


def expect_folder(folder, out):
    """A teacher on disk, at its native size and at one and a half times its height."""
    config = AutoConfig.from_pretrained(folder)
    classes = {"clip": CLIPModel, "clip_vision_model": CLIPVisionModelWithProjection, "vit": ViTModel}
    kwargs = dict(add_pooling_layer=False) if config.model_type == "vit" else {}
    model = classes[config.model_type].from_pretrained(folder, dtype=torch.float32, **kwargs)
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    tower = vision_tower(model)[0].config
    generator = torch.Generator().manual_seed(0)
    result = {}
    for name, height in [("native", tower.image_size), ("taller", tower.image_size + 2 * tower.patch_size)]:
        pixels = random_pixels(generator, 2, height, tower.image_size)
        result |= {f"{name}/{key}": t for key, t in expect(model, preprocessor, pixels).items()}
    save_file(result, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/golden/teachers")
    parser.add_argument("--folder", type=pathlib.Path)
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    if args.folder:
        expect_folder(args.folder, args.out)
        return
    for seed, (name, case) in enumerate(CASES.items()):
        folder = args.out / name
        folder.mkdir(parents=True, exist_ok=True)
        write_case(folder, case, seed)
        for file in sorted(folder.glob("*.safetensors")):
            print(f"{file}: {len(load_file(file))} tensors, {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
