"""Six steps of torch.optim.AdamW and one clipping, with every tensor before and after.

    $(scripts/python-env) scripts/golden/adamw.py              # writes tests/golden/adamw/
    $(scripts/python-env) scripts/golden/adamw.py --out DIR    # writes them elsewhere

Two groups with their own learning rate, which changes each step, and decay; one parameter has no gradient in step 2. Step 5 is
skipped through found_inf, as by a loss scaler, and must not change anything.
"""

import argparse
import pathlib

import torch
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHAPES = {"weight": (7, 5), "bias": (7,), "sometimes": (3, 2, 2)}
GROUPS = [(["weight", "sometimes"], 0.05), (["bias"], 0.0)]
STEPS = 6
REFUSED = 5


def lr(step, group):
    return 1e-2 * (step + 1) / (group + 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/golden/adamw")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    params = {n: torch.nn.Parameter(torch.randn(s, generator=generator)) for n, s in SHAPES.items()}
    tensors = {f"start/{n}": p.detach().clone() for n, p in params.items()}

    groups = [{"params": [params[n] for n in names], "weight_decay": decay} for names, decay in GROUPS]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for step in range(STEPS):
        for name, p in params.items():
            p.grad = None
            if (name, step) != ("sometimes", 2):
                p.grad = torch.randn(p.shape, generator=generator) * 10.0 ** (step - 3)
                tensors[f"grad{step}/{name}"] = p.grad.clone()
        for i, group in enumerate(optimizer.param_groups):
            group["lr"] = lr(step, i)
        optimizer.found_inf = torch.tensor(float(step == REFUSED))
        optimizer.grad_scale = None
        optimizer.step()
        tensors |= {f"after{step}/{n}": p.detach().clone() for n, p in params.items()}
    for name, p in params.items():
        tensors |= {f"{key}.{name}": value.clone() for key, value in optimizer.state[p].items()}

    for name, max_norm in (("clipped", 1.0), ("unclipped", 1e3)):
        for n, p in params.items():
            p.grad = tensors[f"grad4/{n}"].clone()
        norm = torch.nn.utils.clip_grad_norm_(list(params.values()), max_norm)
        tensors[f"{name}/norm"] = norm.reshape(1)
        tensors |= {f"{name}/{n}": p.grad.clone() for n, p in params.items()}
    path = out / "adamw.safetensors"
    save_file(tensors, path)
    path.chmod(0o644)
    print(f"{out}: torch {torch.__version__}")


if __name__ == "__main__":
    main()
