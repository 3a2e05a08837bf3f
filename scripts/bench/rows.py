"""Rows of the benches: ours beside a peer, in one run on one machine."""

import json
import os
import pathlib
import platform
import subprocess

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]


def programs():
    """The folder of our programs."""
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"


def run(*command, **options):
    """What a program prints on stdout, as JSON. Its messages go where ours go."""
    done = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True, **options)
    return json.loads(done.stdout)


def machine(device="cpu"):
    """The machine in a line."""
    name = platform.processor() or platform.machine()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    card = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    return f"{name}, {os.cpu_count()} processors{card}; PyTorch {torch.__version__}; load at the start {os.getloadavg()[0]:.1f}"


def row(what, ours, peers, unit="img/s", note=""):
    """One figure of ours, a number or several measured at different moments, and those of the peers by name."""
    ours = ours if isinstance(ours, list) else [ours]
    return {"what": what, "unit": unit, "ours": ours, "peers": peers, "note": note}


def mean(values):
    return sum(values) / len(values)


def table(rows):
    """Lines of a Markdown table: one for each peer, with our figure divided by its."""
    lines = ["| | ours | peer | | ratio |", "|---|---:|---|---:|---:|"]
    for r in rows:
        ours = " and ".join(f"{value:.4g}" for value in r["ours"])
        for peer, value in r["peers"].items():
            lines.append(f"| {r['what']}, {r['unit']} | {ours} | {peer} | {value:.4g} | {mean(r['ours']) / value:.2f} |")
        if not r["peers"]:
            lines.append(f"| {r['what']}, {r['unit']} | {ours} | | | |")
        if r["note"]:
            lines.append(f"| {r['note']} | | | | |")
    return lines


def finish(rows, args):
    """Prints rows as a table, or as JSON for `all`."""
    print(json.dumps(rows) if args.json else "\n".join(table(rows)))
