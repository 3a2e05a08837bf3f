"""The teachers as networks and as files: two Hugging Face layouts in small shapes."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel
from transformers.utils import logging

logging.disable_progress_bar()  # One file of 2.5 MB.

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Shape:
    img_size: int  # pixels
    patch_size: int  # pixels
    width: int = 128
    depth: int = 6
    heads: int = 4

    def config(self) -> dict:
        return dict(
            hidden_size=self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            image_size=self.img_size,
            patch_size=self.patch_size,
        )


OPENCLIPART = Shape(img_size=64, patch_size=8)
CIFAR10 = Shape(img_size=32, patch_size=4)

# Attention over 65 tokens of width 32 is too small for the fused CPU kernel to pay: plain products trained about twice as
# many images a second in bf16.
_ATTENTION = dict(attn_implementation="eager")


def new_clip(shape: Shape) -> CLIPVisionModelWithProjection:
    """OpenAI's vision tower in small: QuickGELU, eps 1e-5, LayerNorm before the first block."""
    config = CLIPVisionConfig(**shape.config(), projection_dim=128, hidden_act="quick_gelu", layer_norm_eps=1e-5)
    return CLIPVisionModelWithProjection._from_config(config, **_ATTENTION)


def new_dino(shape: Shape) -> ViTModel:
    """Meta's DINO ViT in small: exact GELU, eps 1e-6, no pooler."""
    config = ViTConfig(
        **shape.config(),
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTModel._from_config(config, add_pooling_layer=False, **_ATTENTION)


def autocast() -> contextlib.AbstractContextManager:
    """bf16, where the processor multiplies it; others do so four times slower than f32."""
    if torch.cpu.get_capabilities()["avx512_bf16"]:
        return torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext()


def normalize(imgs: torch.Tensor, mean: tuple, std: tuple) -> torch.Tensor:
    return (imgs - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def shape_of(model: nn.Module) -> Shape:
    config = model.config
    return Shape(
        config.image_size, config.patch_size, config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    )


def save(model: nn.Module, out_dir: Path) -> None:
    """Writes `config.json`, `model.safetensors` (f16, the classic names) and `preprocessor_config.json`."""
    is_clip = isinstance(model, CLIPVisionModelWithProjection)
    shape = shape_of(model)
    half = new_clip(shape) if is_clip else new_dino(shape)  # The training copy stays f32.
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(out_dir)
    square = {"height": shape.img_size, "width": shape.img_size}
    mean, std = (CLIP_MEAN, CLIP_STD) if is_clip else (IMAGENET_MEAN, IMAGENET_STD)
    processor = {
        "image_processor_type": "CLIPImageProcessor" if is_clip else "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": shape.img_size} if is_clip else square,
        "resample": 3,  # bicubic
        "do_center_crop": is_clip,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    (out_dir / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def load(folder: Path) -> nn.Module:
    """A saved teacher of either kind, in f32 and evaluation mode."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    if kind == "clip_vision_model":
        model = CLIPVisionModelWithProjection.from_pretrained(folder, **_ATTENTION)
    else:
        model = ViTModel.from_pretrained(folder, add_pooling_layer=False, **_ATTENTION)
    return model.float().eval()


@torch.no_grad()
def features(model: nn.Module, imgs: torch.Tensor, batch_size: int = 256) -> dict[str, torch.Tensor]:
    """`imgs`: uint8 `[N, 3, S, S]`. Returns `[N, width]` each: `cls` and `patch mean`, both after the final norm."""
    is_clip = isinstance(model, CLIPVisionModelWithProjection)
    mean, std = (CLIP_MEAN, CLIP_STD) if is_clip else (IMAGENET_MEAN, IMAGENET_STD)
    cls, patches = [], []
    for batch in imgs.split(batch_size):
        pixels = normalize(batch.float() / 255, mean, std)
        if is_clip:  # CLIP's last_hidden_state is the residual stream, DINO's is normed already.
            tokens = model.vision_model.post_layernorm(model(pixels).last_hidden_state)
        else:
            tokens = model(pixels).last_hidden_state  # [N, 1 + L, width]
        cls.append(tokens[:, 0])
        patches.append(tokens[:, 1:].mean(1))
    return {"cls": torch.cat(cls), "patch mean": torch.cat(patches)}
