"""Prints the demo's final table: cached rows, rejects by reason, speed, losses, k-NN. Usage: demo_table.py OUT"""

import collections
import json
import pathlib
import sys


def seconds(out, name):
    """Wall time of a stage, summed over the runs of the demo; the demo writes a line `began ended` for each."""
    lines = (out / f"{name}.times").read_text().splitlines()
    return sum(float(ended) - float(began) for began, ended in map(str.split, lines))


def last_losses(out, name):
    """The unweighted losses in the last line of a run's metrics."""
    line = json.loads((out / name / "metrics.jsonl").read_text().splitlines()[-1])
    return {key: value for key, value in line.items() if key == "rec" or key.startswith("mimic.")} or line


def main():
    out = pathlib.Path(sys.argv[1])
    cache = json.loads((out / "inspect.json").read_text())
    views = cache["identity"]["views"]["views"]
    rows = cache["samples"]["rows"]
    size = sum(path.stat().st_size for path in (out / "cache").rglob("*") if path.is_file())
    reasons = collections.Counter()
    for path in sorted((out / "cache" / "rejects").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            # The part of a reason before the colon is its kind.
            reasons[json.loads(line)["reason"].split(":")[0]] += 1

    print(f"cache         {rows} rows ({rows // views} pictures x {views} views), {len(cache['teachers'])} teachers, {size / 1e6:.1f} MB")
    print(f"rejects       {sum(reasons.values())}" + "".join(f"\n              {n} x {why}" for why, n in reasons.most_common(5)))
    took = seconds(out, "build-cache")
    print(f"build-cache   {took:.0f} s, {rows / took:.0f} views/s through decoding, both teachers and the disk")
    for name in ("mae", "mr-mae"):
        losses = ", ".join(f"{key} {value:.4f}" for key, value in last_losses(out, name).items())
        print(f"{name:<13} {seconds(out, name):.0f} s, last losses: {losses}")

    # In the order of the demo's --model options.
    names = ("raw pixels", "untrained", "mae", "mr-mae", "clip-tiny", "dino-tiny")
    results = dict(zip(names, json.loads((out / "knn.json").read_text()), strict=True))
    first = results["untrained"]
    print(f"\n{first['k']}-NN on {first['test_images']} held-out pictures of {first['classes']} classes, {first['train_images']} vote")
    print(f"{'':<14}{'top-1 by CLS':>14}{'by mean of patches':>20}{'balanced, by mean':>20}")
    for name, result in results.items():
        accuracy = result["accuracy"]
        mean = accuracy.get("mean") or accuracy["pixels"]
        cls = f"{100 * accuracy['cls']['top1']:.2f}%" if "cls" in accuracy else "-"
        print(f"{name:<14}{cls:>14}{100 * mean['top1']:>19.2f}%{100 * mean['balanced']:>19.2f}%")


if __name__ == "__main__":
    main()
