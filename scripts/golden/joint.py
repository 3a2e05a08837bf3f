"""A small student with random weights that mimics two teachers, and the losses and gradients that PyTorch computes for each recipe.

    $(scripts/python-env) scripts/golden/joint.py              # writes tests/golden/joint/
    $(scripts/python-env) scripts/golden/joint.py --out DIR    # writes them elsewhere

The autoencoder is transformers', as in mae.py. Heads, normalizations, losses and teacher dropping are written here from the papers: EUPE
(arXiv 2603.22387, equations 4 to 6, sections 3.3 and 4.1), PHI-S (arXiv 2410.01680), C-RADIOv4 (arXiv 2601.17237, equations 3 to 7) and UNIC
(arXiv 2408.05088). Angles are computed by the arc cosine in f64.
"""

import argparse
import json
import pathlib

import mae
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]

STUDENT = dict(
    img_size=[16, 16], patch_size=4, embed_dim=24, depth=1, num_heads=3, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
    mlp_ratio=2, norm_pix_loss=True, mask_ratio=0.75, batch=6,
)  # fmt: skip
WIDTHS = {"clip": 16, "dino": 20}
# Tokens and images from which statistics are taken.
TOKENS, VIEWS = 300, 80

# `head` is 0 for a linear head, else the width of the hidden layer.
CASES = {
    "eupe": dict(
        drop=0.0,
        clip=dict(weight=0.25, cls_weight=0.5, head=40, norm="standardize", loss="cosine_smooth_l1", beta=1.0,
                  cls_norm="standardize", cls_loss="cosine"),
        dino=dict(weight=0.75, cls_weight=0.25, head=24, norm="standardize", loss="cosine_smooth_l1", beta=0.3,
                  cls_norm="standardize", cls_loss="cosine_smooth_l1"),
    ),
    "radio": dict(
        drop=0.0,
        clip=dict(weight=0.5, cls_weight=0.5, head=40, norm="phi_s", loss="l2", beta=1.0, cls_norm="none", cls_loss="angle"),
        dino=dict(weight=0.5, cls_weight=0.25, head=0, norm="ln", loss="cosine", beta=1.0, cls_norm="l2", cls_loss="angle"),
    ),
    "dropped": dict(
        drop=0.65,
        clip=dict(weight=0.5, cls_weight=0.25, head=40, norm="standardize", loss="cosine_smooth_l1", beta=2.0,
                  cls_norm="none", cls_loss="angle"),
        dino=dict(weight=0.5, cls_weight=0.3, head=0, norm="ln", loss="smooth_l1", beta=0.5, cls_norm="ln", cls_loss="l2"),
    ),
}  # fmt: skip


class Mlp(torch.nn.Module):
    def __init__(self, dim, hidden, width):
        super().__init__()
        self.fc1 = torch.nn.Linear(dim, hidden, bias=False)
        self.norm = torch.nn.LayerNorm(hidden)
        self.fc2 = torch.nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.fc2(F.gelu(self.norm(self.fc1(x))))


def sylvester(n):
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < n:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return matrix / n**0.5


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def angle(x, y):
    return torch.acos((unit(x.double()) * unit(y.double())).sum(-1).clamp(-1, 1))


class Target:
    """One teacher's normalization of one kind of token, with the tensors that a checkpoint keeps of it."""

    def __init__(self, norm, sample):
        self.norm, self.kept = norm, {}
        sample = sample.double()
        centered = sample - sample.mean(0)
        if norm == "standardize":
            self.kept = dict(mean=sample.mean(0), scale=1 / centered.square().mean(0).sqrt())
        elif norm == "phi_s":
            eigenvalues, eigenvectors = torch.linalg.eigh(torch.cov(sample.T, correction=0))
            whiten = sylvester(sample.shape[1]) @ eigenvectors.T / eigenvalues.mean().sqrt()
            self.kept = dict(mean=sample.mean(0), scale=whiten)
        self.kept = {name: value.float() for name, value in self.kept.items()}

    def __call__(self, x):
        x = x.float()
        if self.norm == "standardize":
            return (x - self.kept["mean"]) * self.kept["scale"]
        if self.norm == "phi_s":
            return (x - self.kept["mean"]) @ self.kept["scale"].T
        if self.norm == "ln":
            return F.layer_norm(x, x.shape[-1:], eps=1e-6)
        if self.norm == "l2":
            return unit(x) * x.shape[-1] ** 0.5
        return x


def distance(kind, beta, pred, target):
    """Of each image, the mean over its tokens."""

    def per_image(x):
        return x.flatten(1).mean(1) if x.dim() > 1 else x

    if kind == "l2":
        return per_image((pred - target) ** 2)
    if kind == "smooth_l1":
        return per_image(F.smooth_l1_loss(pred, target, beta=beta, reduction="none"))
    if kind == "cosine":
        return 1 - per_image(F.cosine_similarity(pred, target, dim=-1))
    assert kind == "cosine_smooth_l1", kind
    return 0.9 * distance("cosine", beta, pred, target) + 0.1 * distance("smooth_l1", beta, pred, target)


def keep(losses, uniform, p):
    """1 where a teacher counts for an image. One number for each teacher but the farthest, in order."""
    coefficients = torch.ones_like(losses)
    for image in range(losses.shape[1]):
        numbers = iter(uniform[image].tolist())
        farthest = int(losses[:, image].argmax())
        for teacher in range(losses.shape[0]):
            if teacher != farthest and next(numbers) < p:
                coefficients[teacher, image] = 0
    return coefficients


def make(name, case, out):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(sum(name.encode()))
    model = mae.build(STUDENT)
    teachers = {id: case[id] for id in WIDTHS}
    dim, batch = STUDENT["embed_dim"], STUDENT["batch"]
    heads = torch.nn.ModuleDict()
    for kind in ("mimic_heads", "mimic_cls_heads"):
        of_kind = {}
        for id, how in teachers.items():
            of_kind[id] = Mlp(dim, how["head"], WIDTHS[id]) if how["head"] else torch.nn.Linear(dim, WIDTHS[id])
        heads[kind] = torch.nn.ModuleDict(of_kind)
    mae.randomize(model, generator)
    mae.randomize(heads, generator)

    patches = (STUDENT["img_size"][0] // STUDENT["patch_size"]) ** 2
    imgs = torch.randn((batch, 3, *STUDENT["img_size"]), generator=generator)
    noise = torch.stack([torch.randperm(patches, generator=generator) for _ in range(batch)]) / patches
    uniform = torch.rand((batch, 1), generator=generator, dtype=torch.float64)
    tensors = dict(imgs=imgs, noise=noise, uniform=uniform)

    # Channels of unequal size, correlated, and away from zero: what the normalizations are about.
    def features(width):
        mixing = torch.randn((width, width), generator=generator) * torch.logspace(-1, 1, width)
        offset = 3 * torch.randn(width, generator=generator)
        return lambda *lead: (torch.randn((*lead, width), generator=generator) @ mixing + offset).half()

    latent = model.vit(imgs, noise=noise).last_hidden_state
    seen = noise.argsort(1)[:, : latent.shape[1] - 1]
    reconstruction = model(imgs, noise=noise).loss
    losses, buffers = {}, {}
    for id, how in teachers.items():
        of_patches, of_cls = features(WIDTHS[id]), features(WIDTHS[id])
        sample, cls_sample = of_patches(TOKENS), of_cls(VIEWS)
        tokens, cls = of_patches(batch, patches), of_cls(batch)
        tensors |= {f"sample/{id}": sample, f"cls_sample/{id}": cls_sample, f"tokens/{id}": tokens, f"cls/{id}": cls}
        target, cls_target = Target(how["norm"], sample), Target(how["cls_norm"], cls_sample)
        buffers |= {f"mimic_targets.{id}.{n}": t for n, t in target.kept.items()}
        buffers |= {f"mimic_cls_targets.{id}.{n}": t for n, t in cls_target.kept.items()}

        visible = target(tokens).gather(1, seen.unsqueeze(-1).expand(-1, -1, WIDTHS[id]))
        of_patch = distance(how["loss"], how["beta"], heads["mimic_heads"][id](latent[:, 1:]), visible)
        pred = heads["mimic_cls_heads"][id](latent[:, 0])
        if how["cls_loss"] == "angle":
            normalized = cls_target(cls_sample).double()
            dispersion = angle(normalized, normalized.mean(0)).square().mean()
            buffers[f"mimic_cls_targets.{id}.dispersion"] = dispersion.float().reshape(1)
            of_token = (angle(pred, cls_target(cls)) ** 2 / dispersion).float()
        else:
            of_token = distance(how["cls_loss"], how["beta"], pred, cls_target(cls))
        tensors |= {f"loss/mimic.{id}": of_patch.mean().reshape(1), f"loss/mimic_cls.{id}": of_token.mean().reshape(1)}
        losses[id] = how["weight"] * of_patch + how["cls_weight"] * of_token

    each = torch.stack([losses[id] for id in sorted(losses)])
    if case["drop"]:
        coefficients = keep(each.detach(), uniform, case["drop"])
        # Each teacher is dropped for some image, and some image keeps both.
        assert (coefficients.mean(1) < 1).all() and coefficients.min(0).values.max() == 1, coefficients
        mimic = len(each) * (coefficients * each).sum() / coefficients.sum()
        tensors |= {f"loss/mimic_kept.{id}": c.mean().reshape(1) for id, c in zip(sorted(losses), coefficients)}
    else:
        mimic = each.mean(1).sum()
    total = 0.5 * reconstruction + mimic
    total.backward()
    tensors |= {"loss/rec": reconstruction.reshape(1), "loss/total": total.reshape(1)}

    params = mae.reference_names({n: p.detach() for n, p in model.named_parameters()})
    params |= {n: p.detach() for n, p in heads.named_parameters()}
    grads = mae.reference_names({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    grads |= {n: p.grad for n, p in heads.named_parameters()}
    tensors |= {f"param/{n}": (p if n.endswith("pos_embed") else p.half()) for n, p in params.items()}
    tensors |= {f"param/{n}": b for n, b in buffers.items()}
    tensors |= {f"grad/{n}": g for n, g in grads.items()}
    tensors = {n: t.detach().contiguous() for n, t in tensors.items()}
    path = out / f"{name}.safetensors"
    save_file(tensors, path, {"case": json.dumps(STUDENT | {"teachers": teachers, "drop": case["drop"]})})
    path.chmod(0o644)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/golden/joint")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, case in CASES.items():
        make(name, case, out)
    print(f"{out}: torch {torch.__version__}, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
