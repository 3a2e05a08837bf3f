"""What both CLIP-like trainings share: the text tower, the loss, and a vision tower that can leave patches out."""

import torch
import torch.nn.functional as F
from torch import nn

import teacher


class BagOfWords(nn.Module):
    """Text tower: the mean of word vectors, then one hidden layer. Captions `[[word id, ...], ...]` become `[N, out]`."""

    def __init__(self, n_words: int, width: int, out: int):
        super().__init__()
        self.words = nn.EmbeddingBag(n_words, width, mode="mean")
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))

    def forward(self, captions: list[list[int]]) -> torch.Tensor:
        offsets = torch.tensor([0] + [len(c) for c in captions[:-1]]).cumsum(0)
        return self.mlp(self.words(torch.tensor([w for c in captions for w in c]), offsets))


def contrast(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy; an image's target is shared evenly by the captions `true [image, caption]` of it, and the reverse."""
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    true = true.float()
    over_captions = F.cross_entropy(logits, true / true.sum(1, keepdim=True))
    over_images = F.cross_entropy(logits.T, (true / true.sum(0, keepdim=True)).T)
    return (over_captions + over_images) / 2


def tokens(model: nn.Module, pixels: torch.Tensor, keep: int) -> torch.Tensor:
    """A `CLIPVisionModelWithProjection` after its last norm, of the class token and `keep` random patches: `[N, 1 + keep, width]`."""
    vision = model.vision_model
    hidden = vision.embeddings(pixels)  # [N, 1 + L, width]
    n, length, width = hidden.shape
    if keep < length - 1:
        kept = 1 + torch.rand(n, length - 1).argsort(1)[:, :keep]
        hidden = torch.cat([hidden[:, :1], hidden.gather(1, kept[..., None].expand(-1, -1, width))], 1)
    return vision.post_layernorm(vision.encoder(inputs_embeds=vision.pre_layrnorm(hidden)).last_hidden_state)


class Towers(nn.Module):
    """Vision and text with the loss of both: the class token and the mean of the patch tokens are each held against the captions.

    The patches have a projection of their own, which is thrown away with the text tower. A teacher whose knowledge is in its class token
    alone has none to give to a student that mimics patches.
    """

    def __init__(self, vision: nn.Module, text: BagOfWords):
        super().__init__()
        self.vision, self.text = vision, text
        self.of_patches = nn.Linear(vision.config.hidden_size, vision.config.projection_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, pixels: torch.Tensor, keep: int, captions: list[list[int]], true: torch.Tensor) -> torch.Tensor:
        with teacher.autocast():
            seen = tokens(self.vision, pixels, keep)
            cls, mean = self.vision.visual_projection(seen[:, 0]), self.of_patches(seen[:, 1:].mean(1))
        caption, scale = self.text(captions), self.log_scale.exp()
        return (contrast(cls.float(), caption, scale, true) + contrast(mean.float(), caption, scale, true)) / 2

    def clamp_scale(self) -> None:
        self.log_scale.data.clamp_(max=4.6052)  # CLIP's bound: a scale of 100.
