"""The training step compared with the code of a user of PyTorch, on data in memory: MAE-B and MCMAE-B, eager and compiled.

    $(scripts/python-env) scripts/bench/training_step.py [--device cpu] [--batch 8] [--steps 5] [--case mae|mr-mae|mcmae]... [--only f32|bf16]... [--rounds 1] [--json]

A step is forward, backward and update from 8-bit pixels; the result is the median of the timed steps. PyTorch uses fused AdamW, its fused
attention and bf16 autocast. Ours is measured before and after the peers, each in a process of its own with the same number of threads.
MCMAE's peer is the published computation, which also convolves the masked cells; ours computes only the visible ones.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

import plain_mae
from rows import ROOT, at_least_one, finish, machine, needs_device, programs, rounds, row, run

B = dict(size=224, patch=16, dim=768, depth=12, heads=12, decoder=(512, 8, 16))
# The options of our student, and its peers.
MCMAE = (
    'model.encoder="mcmae"', "model.embed_dims=[256,384,768]", "model.depths=[2,2,11]", "model.mlp_ratios=[4,4,4]", "model.cls_token=false",
    "model.stage_fusion=true",
)  # fmt: skip
CASES = {
    "mae": ("MAE ViT-B", "mae_vit_base.toml", (), {"plain PyTorch": lambda: plain_mae.MrMae(**B, teachers={}), "transformers' ViTMAE": plain_mae.TransformersMae}),
    "mr-mae": ("MR-MAE ViT-B", "mr_mae_vit_base_200ep.toml", (), {"plain PyTorch": lambda: plain_mae.MrMae(**B, teachers={"clip": 768}, fusion=(3, 7))}),
    "mcmae": ("MCMAE-B", "mae_vit_base.toml", MCMAE, {"plain PyTorch, dense": plain_mae.DenseMcmae}),
}  # fmt: skip


def ours(args, recipe, settings, precision):
    words = [word for setting in (*settings, f"optim.batch_size={args.batch}") for word in ("--set", setting)]
    found = run(
        programs() / "trainer", "bench", "--recipe", ROOT / "trainer/recipes" / recipe, *words, "--only", precision, "--steps", args.steps,
        "--device", args.device, "--json",
    )  # fmt: skip
    return found["steps"][precision]["images_per_s"]


def peer(args):
    """Images per second of one peer, in this process."""
    case, name, precision, compiled = json.loads(args.peer)
    torch.manual_seed(0)
    model = CASES[case][3][name]().to(args.device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    step_model = torch.compile(model) if compiled else model
    pixels = torch.randint(256, (args.batch, 224, 224, 3), dtype=torch.uint8, device=args.device)
    noise = torch.rand(args.batch, 196, device=args.device)
    targets = {"clip": torch.randn(args.batch, 196, 768, device=args.device).half()}
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    times = []
    for step in range(2 + args.steps):
        began = time.perf_counter()
        with torch.autocast(args.device, torch.bfloat16, enabled=precision == "bf16"):
            loss = step_model(pixels, noise, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        wait()
        if step >= 2:
            times.append(time.perf_counter() - began)
    print(json.dumps(args.batch / statistics.median(times)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=at_least_one, help="images a step [default: 8, 256 with --device cuda]")
    parser.add_argument("--steps", type=at_least_one, default=5)
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--only", action="append", choices=("f32", "bf16"))
    parser.add_argument("--rounds", type=at_least_one, default=1, help="times that ours and every peer are measured in turn")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.batch = args.batch or (256 if args.device == "cuda" else 8)
    if args.peer:
        return peer(args)
    needs_device(parser, args.device)
    print(machine(args.device), file=sys.stderr)
    rows = []
    for case in args.case or CASES:
        name, recipe, settings, peers = CASES[case]
        for precision in args.only or ("f32", "bf16"):
            print(f"{name}, {precision}", file=sys.stderr)

            def theirs(peer_name, compiled):
                word = json.dumps([case, peer_name, precision, compiled])
                more = ["--device", args.device, "--batch", args.batch, "--steps", args.steps]
                return run(sys.executable, __file__, "--peer", word, *more)

            others = {
                f"{peer_name}, {'compiled' if compiled else 'eager'}": lambda which=(peer_name, compiled): theirs(*which)
                for peer_name in peers
                for compiled in (False, True)
            }
            figures, others = rounds(args.rounds, lambda: ours(args, recipe, settings, precision), others)
            rows.append(row(f"{name}, {precision}, batch {args.batch}", figures, others))
    finish(rows, args)


if __name__ == "__main__":
    main()
