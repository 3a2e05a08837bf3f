"""Random crops and colors for a whole batch at once, on tensors.

A crop is two small matrix products: one row of weights for each output pixel, over the rows and then over the columns of
the source. This is how Pillow resizes (bicubic, antialiased when shrinking), and it is cheap, so that the one CPU
thread is free for the network.
"""

import math

import torch


def _bicubic(x: torch.Tensor) -> torch.Tensor:
    """Keys' kernel with a = -0.5, Pillow's choice."""
    a, x = -0.5, x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _resample_weights(start: torch.Tensor, length: torch.Tensor, source: int, out: int) -> torch.Tensor:
    """Weights `[N, out, source]` that resample `[start, start + length)` of `source` pixels to `out` pixels."""
    scale = (length / out)[:, None, None]
    center = start[:, None, None] + (torch.arange(out)[None, :, None] + 0.5) * scale
    pixel = torch.arange(source)[None, None, :] + 0.5
    weights = _bicubic((pixel - center) / scale.clamp(min=1.0))
    return weights / weights.sum(-1, keepdim=True)


def _uniform(n: int, low: float, high: float) -> torch.Tensor:
    return torch.empty(n).uniform_(low, high)


def random_resized_crop(imgs: torch.Tensor, aspect: torch.Tensor, out: int, scale: tuple[float, float]) -> torch.Tensor:
    """torchvision's RandomResizedCrop (ratio 3/4 to 4/3) and a coin-flip mirror.

    `imgs`: uint8 `[N, 3, S, S]`, whole images squeezed to squares; `aspect`: their true width / height. The box is drawn
    in the true geometry, so what comes out is not squeezed. A box that does not fit is cut to the image, where torchvision
    would draw again. Returns f32 `[N, 3, out, out]` in 0..1.
    """
    n, source = imgs.shape[0], imgs.shape[-1]
    area = _uniform(n, *scale)
    ratio = _uniform(n, math.log(3 / 4), math.log(4 / 3)).exp()
    width = (area * ratio / aspect).sqrt().clamp(max=1.0) * source
    height = (area / ratio * aspect).sqrt().clamp(max=1.0) * source
    left, top = torch.rand(n) * (source - width), torch.rand(n) * (source - height)
    over_x = _resample_weights(left, width, source, out)  # [N, out, S]
    over_x = torch.where((torch.rand(n) < 0.5)[:, None, None], over_x.flip(1), over_x)
    over_y = _resample_weights(top, height, source, out)
    rows = torch.einsum("noy,ncyx->ncox", over_y, imgs.float() / 255)
    return torch.einsum("npx,ncox->ncop", over_x, rows).clamp(0, 1)


# Rows: luma and two color axes (NTSC). Turning the two color axes turns the hue.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])


def color_jitter(imgs: torch.Tensor, strength: float, p_gray: float, p_solarize: float) -> torch.Tensor:
    """SimCLR's color distortion, one draw per image: brightness, contrast, saturation and hue in 80 % of the images,
    then gray, then solarization with the given probabilities. `imgs`: f32 `[N, 3, H, W]` in 0..1; `strength` 1 is SimCLR's
    half-strength setting (0.4, 0.4, 0.2, hue 0.1), which DINO uses.
    """
    n = imgs.shape[0]
    on = (torch.rand(n) < 0.8).float() * strength
    brightness = 1 + on * _uniform(n, -0.4, 0.4)
    contrast = 1 + on * _uniform(n, -0.4, 0.4)
    saturation = 1 + on * _uniform(n, -0.2, 0.2)
    saturation = torch.where(torch.rand(n) < p_gray, torch.zeros(n), saturation)
    hue = on * _uniform(n, -0.1, 0.1) * 2 * math.pi
    cos, sin, zero = hue.cos() * saturation, hue.sin() * saturation, torch.zeros(n)
    turn = torch.stack([torch.ones(n), zero, zero, zero, cos, -sin, zero, sin, cos], -1).view(n, 3, 3)
    matrix = (_YIQ.inverse() @ turn @ _YIQ) * (brightness * contrast)[:, None, None]
    mean_luma = torch.einsum("c,ncyx->n", _YIQ[0], imgs) / imgs[0, 0].numel()
    offset = mean_luma * brightness * (1 - contrast)
    imgs = (torch.einsum("ndc,ncyx->ndyx", matrix, imgs) + offset[:, None, None, None]).clamp(0, 1)
    solarized = (torch.rand(n) < p_solarize)[:, None, None, None] & (imgs >= 0.5)
    return torch.where(solarized, 1 - imgs, imgs)
