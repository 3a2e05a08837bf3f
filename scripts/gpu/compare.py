"""Differences between caches and between runs, read from their files."""

import json
import pathlib

import numpy as np
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

SIZES = {"f32": "<f4", "f16": "<f2"}


def relative(found, expected):
    """||found - expected|| / ||expected||, in double precision."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    difference, norm = np.linalg.norm(found - expected), np.linalg.norm(expected)
    return float(difference / norm) if norm > 0 else float(difference)


def column(cache, teacher, name):
    """All rows of a column of a teacher as floats."""
    codec = json.loads((cache / "teachers" / teacher / "teacher.json").read_text())["codec"]
    dtype = "<f2" if name == "cls_attn" else SIZES[codec]
    parts = sorted((cache / "teachers" / teacher).glob("part-*.parquet"))
    values = [value for part in parts for value in pq.read_table(part, columns=[name])[name].to_pylist()]
    return np.stack([np.frombuffer(value, dtype).astype(np.float64) for value in values])


def caches(expected, found, teacher, name):
    """The largest relative difference of a row of a column between two caches."""
    a, b = column(expected, teacher, name), column(found, teacher, name)
    return max(relative(y, x) for x, y in zip(a, b, strict=True))


def rows(cache):
    """Rows of the samples of a cache."""
    return sum(pq.read_metadata(part).num_rows for part in cache.glob("samples/part-*.parquet"))


def same_files(a, b):
    """Whether two caches hold the same files with the same bytes."""
    names = [sorted(path.relative_to(cache) for path in cache.rglob("*") if path.is_file()) for cache in (a, b)]
    return names[0] == names[1] and all((a / name).read_bytes() == (b / name).read_bytes() for name in names[0])


def scale_a_weight(path, factor):
    """Multiplies the largest matrix of the last block of a safetensors file."""
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    name = max(name for name in tensors if tensors[name].ndim == 2 and ".fc1." in name or ".intermediate." in name and tensors[name].ndim == 2)
    tensors[name] = tensors[name] * np.float32(factor)
    save_file(tensors, path, metadata=metadata)


def checkpoint(run):
    """The folder of a run's last checkpoint."""
    return pathlib.Path(run) / "checkpoints" / (pathlib.Path(run) / "LAST").read_text().strip()


def state(run):
    """state.json of a run's last checkpoint."""
    return json.loads((checkpoint(run) / "state.json").read_text())["state"]


def weights(a, b):
    """The largest relative difference of a tensor between two runs' last checkpoints, and its name."""
    tensors = [load_file(checkpoint(run) / "model.safetensors") for run in (a, b)]
    assert tensors[0].keys() == tensors[1].keys()
    return max((relative(tensors[1][name], tensors[0][name]), name) for name in tensors[0])


def metrics(run):
    """The lines of a run's log."""
    return [json.loads(line) for line in (pathlib.Path(run) / "metrics.jsonl").read_text().splitlines()]


def losses(a, b):
    """The largest relative difference of a loss between two runs' logs, line by line."""
    worst = 0.0
    for x, y in zip(metrics(a), metrics(b), strict=True):
        names = [name for name in x if name == "loss" or name == "rec" or name.startswith("mimic")]
        worst = max([worst] + [abs(x[name] - y[name]) / abs(x[name]) for name in names])
    return worst


def first_steps(a, b):
    """(largest relative difference of a loss, of a gradient, that gradient's name) of two runs of one step.

    The first moment after one step is a tenth of the gradient, and the learning rate of that step is 0. A gradient that is tiny compared
    with the others (for example of a bias that a softmax cancels) is only rounding; its difference is relative to a thousandth of the largest.
    """
    moments = [load_file(checkpoint(run) / "optimizer.safetensors") for run in (a, b)]
    names = [name for name in moments[0] if name.startswith("exp_avg.")]
    scale = max(np.linalg.norm(moments[0][name].astype(np.float64)) / moments[0][name].size ** 0.5 for name in names)
    worst, tensor = 0.0, ""
    for name in names:
        x, y = (side[name].astype(np.float64) for side in moments)
        floor = 1e-3 * scale * x.size**0.5
        difference = np.linalg.norm(y - x) / max(np.linalg.norm(x), floor)
        if not difference <= worst:
            worst, tensor = float(difference), f"{name.removeprefix('exp_avg.')} {difference:.2g}, norm {np.linalg.norm(x):.2g}"
    return losses(a, b), worst, tensor
