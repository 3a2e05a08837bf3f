"""Schedules and parameter groups that both trainings share."""

import math

from torch import nn


def warmup_cosine(step: int, total: int, warmup: int, peak: float, end: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """No decay on biases, norms, embeddings and other parameters that are not weight matrices."""
    decayed = {f"{name}.weight" for name, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    params = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in params if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in params if name not in decayed], "weight_decay": 0.0},
    ]
