"""Rows of the benches: ours and a peer, in one run on one machine."""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tarfile

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]


def programs():
    """The folder of our programs."""
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"


def quiet(*command):
    """Runs a program and returns what it prints on stdout. If it fails, its last message ends the bench."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        sys.exit(f"{pathlib.Path(str(command[0])).name} failed with exit status {done.returncode}: {said[-1]}")
    return done.stdout


def run(*command):
    """The JSON that a program prints on stdout."""
    return json.loads(quiet(*command))


def needs_file(parser, path):
    """Refuses a path that is not a tar file."""
    if not (path.is_file() and tarfile.is_tarfile(path)):
        parser.error(f"{path}: is not a tar file of photos")


def at_least_one(text):
    """Parses a count on the command line."""
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count


def needs_device(parser, device):
    """Refuses a GPU if PyTorch has none."""
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this Python's torch sees no GPU")


def machine(device="cpu"):
    """Describes the machine in one line."""
    name = platform.processor() or platform.machine()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    card = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    return f"{name}, {os.cpu_count()} processors{card}; PyTorch {torch.__version__}; load at the start {os.getloadavg()[0]:.1f}"


def row(what, ours, peers, unit="img/s", note=""):
    """Our figures and those of the peers by name, each a number or a list with one figure of a peer per round and ours before and after each."""
    listed = lambda figures: figures if isinstance(figures, list) else [figures]
    return {"what": what, "unit": unit, "ours": listed(ours), "peers": {name: listed(figures) for name, figures in peers.items()}, "note": note}


def rounds(count, ours, peers):
    """Measures ours, then each peer, `count` times, and ours again: (our figures, those of the peers by name).

    The speed of a shared machine varies, so a peer is compared with ours just before and after it.
    """
    figures, others = [ours()], {name: [] for name in peers}
    for _ in range(count):
        for name, peer in peers.items():
            others[name].append(peer())
        figures.append(ours())
    return figures, others


def ratio(ours, peer):
    """The median over the rounds of ours, before and after, divided by the peer's."""
    around = [(a + b) / 2 for a, b in zip(ours, ours[1:])] if len(ours) == len(peer) + 1 else [statistics.mean(ours)] * len(peer)
    return statistics.median(a / b for a, b in zip(around, peer))


def cell(figures):
    """A figure; for several the median and the range."""
    if len(figures) == 1:
        return f"{figures[0]:.4g}"
    return f"{statistics.median(figures):.4g} ({min(figures):.4g} to {max(figures):.4g})"


def table(rows):
    """Lines of a Markdown table: one for each peer, with our figure divided by its."""
    lines = ["| | ours | peer | | ratio |", "|---|---:|---|---:|---:|"]
    for r in rows:
        ours = cell(r["ours"])
        for peer, figures in r["peers"].items():
            lines.append(f"| {r['what']}, {r['unit']} | {ours} | {peer} | {cell(figures)} | {ratio(r['ours'], figures):.2f} |")
        if not r["peers"]:
            lines.append(f"| {r['what']}, {r['unit']} | {ours} | | | |")
        if r["note"]:
            lines.append(f"| {r['note']} | | | | |")
    return lines


def finish(rows, args):
    """Prints rows as a table, or as JSON for `all`."""
    print(json.dumps(rows) if args.json else "\n".join(table(rows)))
