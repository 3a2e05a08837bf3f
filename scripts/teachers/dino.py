"""DINO's head and loss (Caron et al. 2021), with the centering of DINOv2."""

import torch
import torch.nn.functional as F
from torch import nn


class Head(nn.Module):
    """DINO's projection head: three layers, unit length, then cosines to `n_prototypes` unit vectors."""

    def __init__(self, width: int, n_prototypes: int, hidden: int = 512, bottleneck: int = 128):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.randn(n_prototypes, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.normalize(self.mlp(x), dim=-1), F.normalize(self.prototypes, dim=-1))


def dino_loss(student: list[torch.Tensor], targets: list[torch.Tensor], temperature: float) -> torch.Tensor:
    """Mean cross-entropy over all pairs (large crop of the teacher, other crop of the student)."""
    log_probs = [F.log_softmax(s / temperature, dim=-1) for s in student]
    pairs = [(t, s) for t in range(len(targets)) for s in range(len(student)) if s != t]
    return sum(-(targets[t] * log_probs[s]).sum(-1).mean() for t, s in pairs) / len(pairs)


def sinkhorn_targets(logits: torch.Tensor, temperature: float, n_iterations: int = 3) -> torch.Tensor:
    """Distributions `[N, K]` that use every prototype equally over the batch: SwAV's assignment, DINOv2's centering."""
    q = (logits / temperature).exp()  # Cosines: at most exp(1 / 0.03), which f32 holds.
    for _ in range(n_iterations):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q
