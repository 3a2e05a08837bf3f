"""Prints the demo's final table: cached rows, rejects by reason, speed, losses, k-NN. Usage: demo_table.py OUT"""

import collections
import json
import pathlib
import statistics
import sys

SEEDS = 3


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

    print(f"cache         {rows} rows ({rows // views} pictures x {views} views), {len(cache['teachers'])} teacher, {size / 1e6:.1f} MB")
    print(f"rejects       {sum(reasons.values())}" + "".join(f"\n              {n} x {why}" for why, n in reasons.most_common(5)))
    took = seconds(out, "build-cache")
    print(f"build-cache   {took:.0f} s, {rows / took:.0f} views/s through decoding, the teacher and the disk")
    for name in ("mae", "mr-mae"):
        losses = ", ".join(f"{key} {value:.4f}" for key, value in last_losses(out, f"{name}-0").items())
        print(f"{name:<13} {seconds(out, name) / SEEDS:.0f} s for each of {SEEDS} seeds, last losses of the first: {losses}")

    # In the order of the demo's --model options.
    pixels, untrained, *runs, teacher = json.loads((out / "knn.json").read_text())
    rows = {"raw pixels": [pixels], "untrained": [untrained], "mae": runs[:SEEDS], "mr-mae": runs[SEEDS:], "clip-tiny": [teacher]}
    print(f"\n{pixels['k']}-NN on {pixels['test_images']} held-out pictures of {pixels['classes']} classes, {pixels['train_images']} vote")
    print(f"{'':<12}{'top-1 by CLS':>18}{'by mean of patches':>20}{'balanced, by mean':>20}")
    for name, results in rows.items():
        of = [result["accuracy"] for result in results]
        mean = [accuracy.get("mean") or accuracy["pixels"] for accuracy in of]
        cls = spread([accuracy["cls"]["top1"] for accuracy in of]) if "cls" in of[0] else "-"
        print(f"{name:<12}{cls:>18}{spread([m['top1'] for m in mean]):>20}{spread([m['balanced'] for m in mean]):>20}")


def spread(shares):
    """Percent: the mean, and the standard deviation over the seeds where there are several."""
    percent = [100 * share for share in shares]
    return f"{statistics.mean(percent):.1f}" + (f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else "")


if __name__ == "__main__":
    main()
