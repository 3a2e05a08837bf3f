"""Twenty steps of torch.optim.AdamW on a small network, averaged by torch.optim.swa_utils.

    $(scripts/python-env) scripts/golden/ema.py              # writes tests/golden/ema/
    $(scripts/python-env) scripts/golden/ema.py --out DIR    # writes them elsewhere

The network has two linear layers with a GELU between them; training has a squared loss, clipped gradients, weight decay on the matrices
only, and a rising learning rate.
"""

import argparse
import pathlib

import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 20
DECAY = 0.9
CLIP = 0.5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/golden/ema")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.GELU(), torch.nn.Linear(9, 3))
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    # The first update copies; it runs before the first step, so that the average starts at the initial parameters.
    average.update_parameters(network)
    tensors = {f"start/{n}": p.detach().clone() for n, p in network.named_parameters()}
    decay = [p for p in network.parameters() if p.dim() >= 2]
    no_decay = [p for p in network.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": no_decay, "weight_decay": 0.0}], betas=(0.9, 0.95), eps=1e-8
    )
    losses = []
    for step in range(STEPS):
        x, target = torch.randn(8, 6), torch.randn(8, 3)
        tensors |= {f"x{step}": x, f"target{step}": target}
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (step + 1)
        optimizer.zero_grad()
        loss = ((network(x) - target) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        average.update_parameters(network)
        losses.append(loss.detach())
        if step in (0, 9, STEPS - 1):
            tensors |= {f"after{step}/{n}": p.detach().clone() for n, p in network.named_parameters()}
            tensors |= {f"ema{step}/{n}": p.detach().clone() for n, p in average.module.named_parameters()}
    tensors["losses"] = torch.stack(losses)
    path = out / "ema.safetensors"
    save_file(tensors, path)
    path.chmod(0o644)
    print(f"{out}: torch {torch.__version__}")


if __name__ == "__main__":
    main()
