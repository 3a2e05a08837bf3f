"""The training step that a user of PyTorch would write: MAE and MR-MAE on a ViT-B, eager and compiled, on data that is on the device.

    scripts/gpu/peer.py [--device cuda] [--batch 256] [--steps 12] [--tiny] [--json]

The same sizes, losses and precision as `trainer bench`: bf16 autocast, fused AdamW, scaled dot-product attention. Both sides count
forward, backward and update, from pixels of 8 bits.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "bench"))

from plain_mae import MrMae  # noqa: E402


def rate(args, teachers, fusion, compiled):
    """Images per second, the median of the timed steps."""
    torch.manual_seed(0)
    if args.tiny:
        shape = dict(size=64, patch=8, dim=128, depth=4, heads=4, decoder=(64, 1, 4))
    else:
        shape = dict(size=224, patch=16, dim=768, depth=12, heads=12, decoder=(512, 8, 16))
    model = MrMae(**shape, teachers=teachers, fusion=fusion).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    step_model = torch.compile(model) if compiled else model
    n, size = args.batch, shape["size"]
    pixels = torch.randint(256, (n, size, size, 3), dtype=torch.uint8, device=args.device)
    noise = torch.rand(n, model.patches, device=args.device)
    targets = {name: torch.randn(n, model.patches, width, device=args.device).half() for name, width in teachers.items()}
    times = []
    for step in range(5 + args.steps if not args.tiny else 3):
        if args.device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        # Times several steps together, so that the host may run ahead as in training.
        for _ in range(1 if args.tiny else 3):
            with torch.autocast(args.device, torch.bfloat16, enabled=not args.tiny):
                loss = step_model(pixels, noise, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if args.device == "cuda":
            torch.cuda.synchronize()
        if step >= (1 if args.tiny else 3):
            times.append((time.perf_counter() - began) / (1 if args.tiny else 3))
    return n / statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.tiny:
        args.batch = 8
    width = 128 if args.tiny else 768
    figures = []
    for name, teachers, fusion in (
        ("MAE", {}, ()),
        ("MR-MAE, one teacher", {"clip": width}, (3, 7)),
        ("MR-MAE, two teachers", {"clip": width, "dino": width}, (3, 7)),
    ):
        for compiled in (False, True):
            # Compiling takes half a minute, so only the two extremes are compiled.
            if compiled and (args.tiny or name.endswith("one teacher")):
                continue
            what = f"PyTorch {name}, {'compiled' if compiled else 'eager'}"
            figures.append({"what": what, "images_per_s": rate(args, teachers, fusion, compiled)})
            if not args.json:
                print(f"{what:<44} {figures[-1]['images_per_s']:10.1f} img/s")
    if args.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
