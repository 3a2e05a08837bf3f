"""Small towers of the other families with random weights, and the outputs of open_clip, timm or transformers.

    $(scripts/python-env) scripts/golden/teachers_families.py                     # writes the golden cases to tests/golden/teachers/
    $(scripts/python-env) scripts/golden/teachers_families.py --live --out DIR    # writes the larger ones, which are not committed

Each case is a teacher's folder as users have it, with `expected-HxW.safetensors` beside it, as `teachers.py` writes them. The
package that defines a file's layout computes the expected outputs. Every parameter is random and large enough that a wrong eps,
activation, scale or order is noticed.
"""

import argparse
import json
import pathlib
import re
import sys

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from teachers import HALF, IMAGENET, ROOT, random_pixels  # noqa: E402

CLIP = dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])


def randomize(model, generator):
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        if "norm" in name or "ln_" in name:
            scale, center = (0.3, 1) if name.endswith("weight") else (0.2, 0)
        elif any(part in name for part in ("gamma", "lambda1")):
            scale, center = 0.3, 0.7
        elif any(part in name for part in ("token", "embed", "latent", "probe", "conv1")):
            # Small, so that the first norm sees variances near 1e-3, where eps matters.
            scale, center = (0.03 if p.dim() < 4 else 0.03 / p[0].numel() ** 0.5), 0
        elif p.dim() <= 1:
            scale, center = 0.2, 0
        else:
            scale, center = 1.5 / p.shape[-1] ** 0.5, 0
        p.data = center + scale * noise


# --- Outputs of each package ----------------------------------------------------------------------------------------------------
#
# Each function takes a model and normalized pixels, and gives hidden_states.i [N, T, D], cls_attn [N, L] and normed [N, T, D], for
# CLIP projected [N, T, P], for SigLIP pooled [N, D].


def stages(blocks, run):
    """The input of the first block and the output of every block."""
    found = []
    hooks = [blocks[0].register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))]
    hooks += [block.register_forward_hook(lambda _, __, output: found.append(output)) for block in blocks]
    run()
    for hook in hooks:
        hook.remove()
    assert len(found) == len(blocks) + 1
    return {f"hidden_states.{i}": stage for i, stage in enumerate(found)}, found[-1]


def of_open_clip(model, x):
    visual = model.visual
    last_attention = visual.transformer.resblocks[-1].attn
    seen = []
    hook = last_attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    result, last = stages(visual.transformer.resblocks, lambda: visual(x))
    hook.remove()
    attention = last_attention(*seen[0], need_weights=True, average_attn_weights=True)[1]
    result["cls_attn"] = attention[:, 0, 1:]
    result["normed"] = visual.ln_post(last)
    result["projected"] = result["normed"] @ visual.proj
    assert torch.allclose(visual(x), result["projected"][:, 0], atol=1e-5)
    return result


def of_timm(model, x):
    for block in model.blocks:
        block.attn.fused_attn = False
    seen = []
    hook = model.blocks[-1].attn.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    result, last = stages(model.blocks, lambda: model.forward_features(x))
    hook.remove()
    result["cls_attn"] = seen[0][:, :, 0, model.num_prefix_tokens :].mean(1)
    result["normed"] = model.norm(last)
    if model.attn_pool is not None:
        pool, normed = model.attn_pool, result["normed"]
        n, tokens, width = normed.shape
        q = pool.q(pool.latent).view(1, pool.num_heads, 1, -1)
        k = pool.kv(normed)[..., :width].reshape(n, tokens, pool.num_heads, -1).transpose(1, 2)
        result["cls_attn"] = (q * pool.scale @ k.transpose(-2, -1)).softmax(-1)[:, :, 0].mean(1)
        result["pooled"] = model.forward_head(normed, pre_logits=True)
    if isinstance(model.head, torch.nn.Linear):
        result["projected"] = model.head(result["normed"])
    return result


def of_transformers(model, x):
    model.config._attn_implementation = "eager"
    kwargs = dict(interpolate_pos_encoding=True) if model.config.model_type == "siglip_vision_model" else {}
    out = model(x, output_hidden_states=True, output_attentions=True, **kwargs)
    last = out.hidden_states[-1]
    result = {f"hidden_states.{i}": stage for i, stage in enumerate(out.hidden_states)}
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    if model.config.model_type == "siglip_vision_model":
        tower = getattr(model, "vision_model", model)
        result["normed"] = tower.post_layernorm(last)
        assert torch.equal(out.last_hidden_state, result["normed"])
        probe = tower.head.probe.expand(x.shape[0], -1, -1)
        normed = result["normed"]
        result["cls_attn"] = tower.head.attention(probe, normed, normed, average_attn_weights=True)[1][:, 0]
        result["pooled"] = out.pooler_output
        return result
    norm = model.layernorm if hasattr(model, "layernorm") else model.norm
    result["normed"] = norm(last)
    assert torch.equal(out.last_hidden_state, result["normed"])
    prefix = 1 + getattr(model.config, "num_register_tokens", 0)
    result["cls_attn"] = out.attentions[-1][:, :, 0, prefix:].mean(1)
    return result


# --- The models, each with the files that lie beside its weights ------------------------------------------------------------------


def open_clip_model(width, heads, layers, patch, image, embed, quick_gelu, **vision):
    from open_clip.model import CLIP as OpenClip

    config = dict(
        embed_dim=embed,
        vision_cfg=dict(image_size=image, layers=layers, width=width, head_width=width // heads, patch_size=patch, **vision),
        text_cfg=dict(context_length=4, vocab_size=9, width=8, heads=1, layers=1),
    )
    config |= dict(quick_gelu=True) if quick_gelu else {}
    model = OpenClip(**config)
    preprocess = dict(mean=CLIP["image_mean"], std=CLIP["image_std"], interpolation="bicubic", resize_mode="shortest")
    return model, {"open_clip_config.json": dict(model_cfg=config, preprocess_cfg=preprocess)}


def timm_model(architecture, heads, normalization, eva=False, **kwargs):
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    model = (Eva if eva else VisionTransformer)(num_heads=heads, dynamic_img_size=True, **kwargs)
    pretrained = dict(mean=normalization["image_mean"], std=normalization["image_std"], input_size=[3] + [kwargs["img_size"]] * 2)
    return model, {"config.json": dict(architecture=architecture, num_attention_heads=heads, pretrained_cfg=pretrained)}


def timm_clip(quick_gelu, embed, **kwargs):
    from timm.layers import QuickGELU

    act = dict(act_layer=QuickGELU) if quick_gelu else {}
    norm = dict(norm_layer=torch.nn.LayerNorm, class_token=True, pre_norm=True, num_classes=embed)
    name = "vit_test_patch14_clip_quickgelu_98" if quick_gelu else "vit_test_patch14_clip_98"
    model, files = timm_model(name, normalization=CLIP, **norm, **act, **kwargs)
    if not quick_gelu:
        files["config.json"]["hidden_act"] = "gelu"
    return model, files


def timm_dinov2(**kwargs):
    from functools import partial

    from timm.layers import SwiGLUPacked

    if kwargs.pop("swiglu", False):
        kwargs |= dict(mlp_ratio=2.66667 * 2, mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU)
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    return timm_model("vit_test_patch14_dinov2", normalization=IMAGENET, num_classes=0, init_values=1e-5, norm_layer=norm, **kwargs)


def timm_siglip(architecture, tanh, **kwargs):
    from functools import partial

    from timm.layers import GELUTanh

    act = dict(act_layer=GELUTanh) if tanh else {}
    fixed = dict(class_token=False, global_pool="map", num_classes=0, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6))
    return timm_model(architecture, normalization=HALF, **act, **fixed, **kwargs)


def timm_dinov3(**kwargs):
    from functools import partial

    from timm.layers import LayerNorm

    fixed = dict(init_values=1e-5, rope_type="dinov3", rope_temperature=100, rope_rotate_half=True, use_rot_pos_emb=True)
    fixed |= dict(use_abs_pos_emb=False, num_reg_tokens=4, use_fc_norm=False, norm_layer=partial(LayerNorm, eps=1e-5))
    return timm_model("vit_test_patch16_dinov3", normalization=IMAGENET, eva=True, num_classes=0, **fixed, **kwargs)


def hugging_face(kind, normalization, **kwargs):
    import transformers

    config, model = {
        "dinov2": (transformers.Dinov2Config, transformers.Dinov2Model),
        "dinov2_with_registers": (transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel),
        "dinov3": (transformers.DINOv3ViTConfig, transformers.DINOv3ViTModel),
        "siglip": (transformers.SiglipVisionConfig, transformers.SiglipVisionModel),
    }[kind]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
    sizes = dict(zip(names, (kwargs.pop(key) for key in ("width", "layers", "heads", "patch", "image"))))
    preprocessor = normalization | dict(do_rescale=True, rescale_factor=1 / 255, do_normalize=True)
    return model(config(**sizes, **kwargs)), {"preprocessor_config.json": preprocessor}


TINY = dict(width=48, layers=2, heads=3, patch=8, image=32)
ODD = dict(width=384, layers=2, heads=6, patch=14, image=98)
TIMM_ODD = dict(embed_dim=384, depth=2, heads=6, patch_size=14, img_size=98)

# name -> (package, make, type of the file, inputs (height, width), the native one first)
GOLDEN = {
    "openai-clip": (of_open_clip, lambda: open_clip_model(48, 3, 2, 8, 32, 20, True), torch.float16, [(32, 32)]),
    "dinov2": (of_transformers, lambda: hugging_face("dinov2", IMAGENET, **TINY), torch.float16, [(32, 32), (40, 24)]),
    "dinov2-registers": (
        of_transformers,
        lambda: hugging_face("dinov2_with_registers", IMAGENET, num_register_tokens=4, **TINY),
        torch.float16,
        [(32, 32), (40, 24)],
    ),
    "dinov3": (
        of_transformers,
        lambda: hugging_face("dinov3", IMAGENET, num_register_tokens=4, intermediate_size=96, **TINY),
        torch.float16,
        [(32, 32), (40, 24)],
    ),
    "siglip": (
        of_transformers,
        lambda: hugging_face("siglip", HALF, intermediate_size=96, **TINY),
        torch.float16,
        [(32, 32), (40, 24)],
    ),
}
LIVE = {
    "openai-clip-p32": (of_open_clip, lambda: open_clip_model(384, 6, 2, 32, 96, 64, False), torch.float32, [(96, 96)]),
    # One block each of the large towers: heads of 64 and of 80.
    "openai-clip-l14": (of_open_clip, lambda: open_clip_model(1024, 16, 1, 14, 28, 768, True), torch.float32, [(28, 28)]),
    "openai-clip-h14": (of_open_clip, lambda: open_clip_model(1280, 16, 1, 14, 28, 1024, False), torch.float32, [(28, 28)]),
    "openai-clip-tanh": (
        of_open_clip,
        lambda: open_clip_model(
            96, 3, 2, 14, 42, 32, False, mlp_ratio=4.3637, ls_init_value=1.0,
            act_kwargs=dict(approximate="tanh"), norm_kwargs=dict(eps=1e-6),
        ),
        torch.float32,
        [(42, 42)],
    ),
    "timm-clip": (of_timm, lambda: timm_clip(False, 64, **TIMM_ODD), torch.float32, [(98, 98)]),
    "timm-clip-quickgelu": (of_timm, lambda: timm_clip(True, 64, **TIMM_ODD), torch.float32, [(98, 98)]),
    "dinov2-p14": (of_transformers, lambda: hugging_face("dinov2", IMAGENET, **ODD), torch.float32, [(98, 98), (112, 56)]),
    "dinov2-swiglu": (
        of_transformers,
        lambda: hugging_face("dinov2", IMAGENET, use_swiglu_ffn=True, hidden_act="gelu", **ODD),
        torch.float32,
        [(98, 98)],
    ),
    "dinov2-registers-p14": (
        of_transformers,
        lambda: hugging_face("dinov2_with_registers", IMAGENET, num_register_tokens=4, **ODD),
        torch.float32,
        [(98, 98), (112, 56)],
    ),
    "timm-dinov2": (of_timm, lambda: timm_dinov2(**TIMM_ODD), torch.float32, [(98, 98)]),
    "timm-dinov2-swiglu": (of_timm, lambda: timm_dinov2(swiglu=True, **TIMM_ODD), torch.float32, [(98, 98)]),
    "timm-dinov2-registers": (
        of_timm,
        lambda: timm_dinov2(reg_tokens=4, no_embed_class=True, **TIMM_ODD),
        torch.float32,
        [(98, 98), (112, 56)],
    ),
    "dinov3-p16": (
        of_transformers,
        lambda: hugging_face("dinov3", IMAGENET, num_register_tokens=4, **ODD | dict(patch=16, image=96)),
        torch.float32,
        [(96, 96), (112, 48)],
    ),
    "dinov3-gated": (
        of_transformers,
        lambda: hugging_face(
            "dinov3", IMAGENET, num_register_tokens=4, use_gated_mlp=True, hidden_act="silu", intermediate_size=512,
            **ODD | dict(patch=16, image=96),
        ),
        torch.float32,
        [(96, 96)],
    ),
    "timm-dinov3": (
        of_timm,
        lambda: timm_dinov3(qkv_bias=False, **TIMM_ODD | dict(patch_size=16, img_size=96)),
        torch.float32,
        [(96, 96), (112, 48)],
    ),
    "timm-dinov3-gated": (
        of_timm,
        lambda: timm_dinov3(
            qkv_bias=True, swiglu_mlp=True, swiglu_align_to=8, **TIMM_ODD | dict(patch_size=16, img_size=96),
        ),
        torch.float32,
        [(96, 96)],
    ),
    "siglip-p14": (of_transformers, lambda: hugging_face("siglip", HALF, intermediate_size=1000, **ODD), torch.float32, [(98, 98), (112, 56)]),
    # Only the name of a timm entry tells which of the two GELUs it has.
    "timm-siglip": (of_timm, lambda: timm_siglip("vit_base_patch16_siglip_224", False, **TIMM_ODD), torch.float32, [(98, 98)]),
    "timm-siglip-tanh": (of_timm, lambda: timm_siglip("vit_so400m_patch16_siglip_256", True, **TIMM_ODD), torch.float32, [(98, 98)]),
}


@torch.no_grad()
def write_case(folder, case, seed, live):
    compute, make, dtype, sizes = case
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model, files = make()
    randomize(model, generator)
    if live:
        # Hidden values as large as trained ones, because all GELUs are alike near zero.
        for name, parameter in model.named_parameters():
            if re.search(r"(fc1|c_fc|up_proj)[a-z_]*\.weight$", name):
                parameter.mul_(6)
    # The file's type rounds, so the expected values are computed from rounded weights.
    model.to(dtype)
    if compute is of_transformers:
        model.save_pretrained(folder)
    else:
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "model.safetensors")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    # Loaded into a new model, so that values outside of the file, such as rotary frequencies, are not rounded.
    rounded = model.state_dict()
    model = make()[0].eval()
    model.load_state_dict({name: t.float() for name, t in rounded.items()})
    flat = json.dumps(files)
    normalization = next(n for n in (CLIP, IMAGENET, HALF) if json.dumps(n["image_mean"]) in flat and json.dumps(n["image_std"]) in flat)
    mean, std = (torch.tensor(normalization[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    for i, (height, width) in enumerate(sizes):
        pixels = random_pixels(generator, 2 if i == 0 else 1, height, width)
        result = compute(model, (pixels.float() / 255 - mean) / std)
        result = {name: t.contiguous().clone() for name, t in result.items()}
        save_file({"pixels": pixels} | result, folder / f"expected-{height}x{width}.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/golden/teachers")
    parser.add_argument("--live", action="store_true", help="the cases that are not committed")
    args = parser.parse_args()
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    for seed, (name, case) in enumerate((LIVE if args.live else GOLDEN).items()):
        folder = args.out / name
        folder.mkdir(parents=True, exist_ok=True)
        write_case(folder, case, seed, args.live)
        for file in sorted(folder.glob("*.safetensors")):
            print(f"{file}: {len(load_file(file))} tensors, {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
