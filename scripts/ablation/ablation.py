"""Trains a student for every switch of the method with the same small budget, compares them by k-NN, and prints a table in Markdown.

  python scripts/ablation/ablation.py compare --train cifar10-train.parquet --test cifar10-test.parquet --out DIR
      takes the first --images rows of each class-labeled Parquet file, builds one cache of both tiny teachers, trains every row below for
      --epochs epochs and votes with the training images. A second call goes on where the first stopped.
  python scripts/ablation/ablation.py check --cache CACHE --images IMAGES --out DIR
      runs 50 steps of every row on an existing cache (teachers clip and dino, grid 8) and reports whether each loss fell.

The programs are those of target/release (cargo build --release). A run has one thread; --jobs runs are trained at once.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPE = ROOT / "trainer" / "recipes" / "tiny.toml"
MCMAE = ROOT / "trainer" / "recipes" / "tiny_mcmae.toml"

PIXEL = ["mimic.teachers=[]", "loss.w_rec=1.0"]
FOCUSED = ["mask.kind=focused", "mask.teacher=clip"]
DINO = ['mimic.teachers=["dino"]']
BOTH = ['mimic.teachers=["clip", "dino"]']
FUSION = ["model.fusion=[1]"]
# (group, name, recipe, settings). The first group is the paper's table 3 row by row, the second its table 4, the third its open
# questions.
ROWS = [
    ("table 3", "pixels only (MAE)", RECIPE, PIXEL),
    ("table 3", "+ mimic", RECIPE, []),
    ("table 3", "+ focused mask", RECIPE, FOCUSED),
    ("table 3", "+ fusion", RECIPE, FOCUSED + FUSION),
    ("table 3", "both losses at the decoder", RECIPE, FOCUSED + FUSION + ["mimic.tokens=decoder_removed"]),
    ("table 3", "mimic only", RECIPE, FOCUSED + FUSION + ["loss.w_rec=0"]),
    ("table 3", "+ masked convolutions", MCMAE, FOCUSED),
    ("table 4", "DINO", RECIPE, DINO),
    ("table 4", "CLIP", RECIPE, []),
    ("table 4", "CLIP + DINO", RECIPE, BOTH),
    ("table 4", "CLIP + DINO, standardize", RECIPE, BOTH + ["target.norm=standardize"]),
    ("table 4", "CLIP + DINO, phi_s", RECIPE, BOTH + ["target.norm=phi_s"]),
    ("open", "focused, top-k", RECIPE, FOCUSED + ["mask.mode=topk"]),
    ("open", "block mask", RECIPE, ["mask.kind=block"]),
    ("open", "target none", RECIPE, ["target.norm=none"]),
    ("open", "target l2", RECIPE, ["target.norm=l2"]),
    ("open", "target standardize", RECIPE, ["target.norm=standardize"]),
    ("open", "target phi_s", RECIPE, ["target.norm=phi_s"]),
    ("open", "smooth L1", RECIPE, ["mimic.loss=smooth_l1"]),
    ("open", "cosine", RECIPE, ["mimic.loss=cosine"]),
    ("open", "+ CLS term", RECIPE, ["loss.w_cls=1.0"]),
    ("open", "drop path 0.1", RECIPE, ["model.drop_path=0.1"]),
]


def folder(row):
    group, name, _, _ = row
    return "".join(c if c.isalnum() else "-" for c in f"{group} {name}".lower())


def program(name):
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return str(target / "release" / name)


def call(*args, log=None):
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    with open(log, "ab") if log else open(os.devnull, "wb") as err:
        done = subprocess.run(args, env=environment, stdout=subprocess.PIPE, stderr=err)
    if done.returncode != 0:
        sys.exit(f"{' '.join(args)}\nended with {done.returncode}; see {log}")
    return done.stdout


def train(row, args, cache, images, more):
    _, _, recipe, settings = row
    run = args.out / "runs" / folder(row)
    run.parent.mkdir(parents=True, exist_ok=True)
    command = [program("trainer"), "pretrain", "--cache", cache, "--images", images, "--recipe", recipe, "--out", run, "--threads", "1"]
    for setting in settings + args.set + more:
        command += ["--set", setting]
    if args.command == "check":
        command += ["--stop-after", "50"]
    call(*map(str, command), log=run.with_suffix(".log"))
    return run


def train_all(rows, args, cache, images, more):
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        return list(pool.map(lambda row: train(row, args, cache, images, more), rows))


def metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    is_loss = lambda key: key in ("loss", "rec") or key.startswith("mimic")
    return [{key: value for key, value in line.items() if is_loss(key)} for line in lines]


def check(args):
    more = ["run.log_every=1", "run.checkpoint_every=1000"]
    fell = True
    rows = [row for row in ROWS if row[2].exists()]
    for row, run in zip(rows, train_all(rows, args, args.cache, args.images, more)):
        lines = metrics(run)[:50]
        words = []
        for term in lines[0]:
            first, last = (sum(line[term] for line in part) / len(part) for part in (lines[:5], lines[-5:]))
            fell &= last < first
            words.append(f"{term} {first:.4f} -> {last:.4f}{'' if last < first else ' ROSE'}")
        print(f"{row[0]:<8} {row[1]:<28} {len(lines)} steps  " + "  ".join(words), flush=True)
    return 0 if fell else 1


def subset(source, rows, out):
    import pyarrow.parquet as parquet

    if not out.exists():
        table = parquet.read_table(source).slice(0, rows)
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_suffix(".partial")
        parquet.write_table(table, partial)
        partial.rename(out)
    return out


def is_fused(run):
    """Whether a run was trained with multi-layer fusion, by its resolved recipe."""
    model = tomllib.loads((run / "recipe.toml").read_text())["model"]
    return bool(model.get("fusion") or model.get("stage_fusion"))


def compare(args):
    images = subset(args.train, args.train_images, args.out / "train.parquet")
    test = subset(args.test, args.test_images, args.out / "test.parquet")
    cache = args.out / "cache"
    teachers = [ROOT / "assets" / "teachers" / f"{name}-tiny" for name in ("clip", "dino")]
    build = [program("pipeline"), "build-cache", "--images", images, "--out", cache, "--views", "2", "--grid", "8", "--batch-size", "64"]
    for name, teacher in zip(("clip", "dino"), teachers):
        build += ["--teacher", f"{name}={teacher}"]
    call(*map(str, build), log=args.out / "cache.log")
    more = [f"schedule.epochs={args.epochs}", "run.checkpoint_every=100000", "data.pixel_cache_mib=1200"]
    rows = [row for row in ROWS if row[2].exists()]
    runs = train_all(rows, args, cache, images, more)
    # A student with fusion is evaluated with and without it.
    fused = [(row, run) for row, run in zip(rows, runs) if is_fused(run)]
    models = [f"untrained:{runs[1]}", *runs, *(f"unfused:{run}" for _, run in fused), *teachers, "pixels"]
    command = [program("trainer"), "knn", "--train", images, "--test", test, "--json"]
    for model in models:
        command += ["--model", model]
    results = json.loads(call(*map(str, command), log=args.out / "knn.log"))
    print(f"{len(rows)} runs of {args.epochs} epochs over {results[0]['train_images']} images; {results[0]['k']}-NN on {results[0]['test_images']}")
    print("\n| | | k-NN by CLS | k-NN by mean of patches | last losses |\n|---|---|---:|---:|---|")
    unfused = [(row[0], f"{row[1]}, evaluated unfused") for row, _ in fused]
    labels = [("", "untrained")] + [row[:2] for row in rows] + unfused + [("", "clip-tiny"), ("", "dino-tiny"), ("", "raw pixels")]
    curves = [None] + [metrics(run) for run in runs] + [metrics(run) for _, run in fused] + [None] * 3
    for (group, name), result, curve in zip(labels, results, curves):
        top1 = lambda kind: f"{100 * result['accuracy'][kind]['top1']:.2f}" if kind in result["accuracy"] else ""
        losses = ", ".join(f"{key} {value:.4f}" for key, value in curve[-1].items() if key != "loss") if curve else ""
        print(f"| {group} | {name} | {top1('cls')} | {top1('mean') or top1('pixels')} | {losses} |")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in (("compare", compare), ("check", check)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--out", type=pathlib.Path, required=True)
        command.add_argument("--jobs", type=int, default=os.cpu_count())
        command.add_argument("--set", action="append", default=[])
        if name == "compare":
            command.add_argument("--train", type=pathlib.Path, required=True)
            command.add_argument("--test", type=pathlib.Path, required=True)
            command.add_argument("--train-images", type=int, default=10000)
            command.add_argument("--test-images", type=int, default=2000)
            command.add_argument("--epochs", type=int, default=10)
        else:
            command.add_argument("--cache", type=pathlib.Path, required=True)
            command.add_argument("--images", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sys.exit(args.run(args))


if __name__ == "__main__":
    main()
