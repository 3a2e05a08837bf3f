"""LARS and a linear probe on drawn features, each learning rate trained alone, in plain PyTorch.

    $(scripts/python-env) scripts/golden/linprobe.py              # writes tests/golden/linprobe/
    $(scripts/python-env) scripts/golden/linprobe.py --out DIR    # writes them elsewhere

lars.safetensors: ten steps of LARS on three parameters, for two learning rates. probe.safetensors: three epochs of batch norm
without affine parameters and a linear layer, for three base learning rates, then the class scores of other features.
"""

import argparse
import math
import pathlib

import torch
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHAPES = {"weight": (5, 7), "bias": (5,), "still": (2, 3)}
LRS = [0.5, 3.0]
STEPS = 10
WEIGHT_DECAY = 0.01

CLASSES, DIM, TRAIN, TEST, VIEWS, BATCH = 4, 6, 128, 40, 2, 8
BLRS = [1.0, 10.0, 60.0]
EPOCHS, WARMUP = 3, 1


class Lars:
    """LARS (You et al. 2017) as in MAE's probe: parameters with one axis are neither decayed nor scaled by trust."""

    def __init__(self, params, lr, weight_decay, momentum=0.9, trust_coefficient=0.001):
        self.params, self.lr, self.weight_decay = list(params), lr, weight_decay
        self.momentum, self.trust_coefficient = momentum, trust_coefficient
        self.velocity = [torch.zeros_like(p) for p in self.params]

    @torch.no_grad()
    def step(self, scale=1.0):
        for p, velocity in zip(self.params, self.velocity):
            update = p.grad
            if p.dim() > 1:
                update = update + self.weight_decay * p
                lengths = torch.linalg.vector_norm(p), torch.linalg.vector_norm(update)
                if all(length > 0 for length in lengths):
                    update = update * (self.trust_coefficient * lengths[0] / lengths[1])
            velocity.mul_(self.momentum).add_(update)
            p.sub_(self.lr * scale * velocity)


def lars(generator):
    draw = lambda shape: torch.randn(shape, generator=generator)
    start = {n: draw(s) for n, s in SHAPES.items()}
    start["still"].zero_()  # norm 0, so the update is not scaled
    grads = [{n: draw(s) * 10.0 ** (step % 3 - 1) for n, s in SHAPES.items()} for step in range(STEPS)]
    grads[4]["weight"].zero_()  # only decay is left
    tensors = {f"start/{n}": t.clone() for n, t in start.items()}
    tensors |= {f"grad{step}/{n}": g for step, of in enumerate(grads) for n, g in of.items()}
    for i, lr in enumerate(LRS):
        params = {n: t.clone() for n, t in start.items()}
        optimizer = Lars(params.values(), lr, WEIGHT_DECAY)
        for step in range(STEPS):
            for n, p in params.items():
                p.grad = grads[step][n]
            optimizer.step(scale=1 / (step + 1))
            tensors |= {f"after{step}.{i}/{n}": p.clone() for n, p in params.items()}
        tensors |= {f"mu.{i}/{n}": v for n, v in zip(params, optimizer.velocity)}
    return tensors


def schedule(epoch):
    if epoch < WARMUP:
        return epoch / WARMUP
    return (1 + math.cos(math.pi * (epoch - WARMUP) / (EPOCHS - WARMUP))) / 2


def probe(generator):
    centers = torch.randn((CLASSES, DIM), generator=generator)
    scale, shift = torch.rand(DIM, generator=generator) * 4, torch.randn(DIM, generator=generator)

    def draw(n):
        labels = torch.randint(CLASSES, (n,), generator=generator)
        return labels, lambda: (centers[labels] + torch.randn((n, DIM), generator=generator)) * scale + shift

    labels, views = draw(TRAIN)
    features = torch.stack([views() for _ in range(VIEWS)])
    test_labels, test = draw(TEST)
    test_features = test()
    order = torch.stack([torch.randperm(TRAIN, generator=generator) for _ in range(EPOCHS)])
    weight = torch.randn((CLASSES, DIM), generator=generator) * 0.01
    tensors = dict(features=features, labels=labels, test_features=test_features, test_labels=test_labels, order=order)
    tensors["start"] = weight
    for i, blr in enumerate(BLRS):
        norm = torch.nn.BatchNorm1d(DIM, affine=False, eps=1e-6)
        linear = torch.nn.Linear(DIM, CLASSES)
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.zero_()
        optimizer = Lars(linear.parameters(), blr * BATCH / 256, weight_decay=0.0)
        losses = []
        for epoch in range(EPOCHS):
            batches = order[epoch].split(BATCH)
            for step, rows in enumerate(batches):
                linear.zero_grad()
                logits = linear(norm(features[epoch % VIEWS, rows]))
                loss = torch.nn.functional.cross_entropy(logits, labels[rows])
                loss.backward()
                optimizer.step(schedule(epoch + step / len(batches)))
                losses.append(loss.detach())
        norm.eval()
        logits = linear(norm(test_features)).detach()
        tensors |= {f"losses.{i}": torch.stack(losses), f"logits.{i}": logits}
        tensors |= {f"weight.{i}": linear.weight.detach().clone(), f"bias.{i}": linear.bias.detach().clone()}
        tensors[f"correct.{i}"] = (logits.argmax(1) == test_labels).sum().reshape(1)
    tensors |= {"running_mean": norm.running_mean, "running_var": norm.running_var}
    return tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/golden/linprobe")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, make in (("lars", lars), ("probe", probe)):
        path = out / f"{name}.safetensors"
        save_file({n: t.contiguous() for n, t in make(torch.Generator().manual_seed(0)).items()}, path)
        path.chmod(0o644)
    print(f"{out}: torch {torch.__version__}")


if __name__ == "__main__":
    main()
