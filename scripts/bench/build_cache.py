"""build-cache with two B/16 teachers of random weights, compared with the script that a user would write and with a plain matmul.

    $(scripts/python-env) scripts/bench/build_cache.py SHARD.tar [--limit 64] [--threads N] [--only f32|bf16]... [--rounds 1] [--json]

The script has a DataLoader that decodes with Pillow and crops, transformers' CLIPVisionModel and ViTModel (loaded in bf16 for bf16, with
PyTorch's fused attention), eager and compiled, and pyarrow, which writes f16 tokens and CLS tokens as zstd Parquet. It has no CLS attention,
no checksums and no resume. Both sides use the same photos, batch and processors, and time the rows without the start of the program.

The floor is the time of the teachers' matmuls alone at the measured rate: 2 teachers of 35.1 GFLOP per image (17.56 GMACs each,
ViT-B/16 at 224 pixels). The rate of a plain matmul is measured before and after each build, with one single-threaded matmul per lane,
which is how the build computes.
"""

import argparse
import concurrent.futures
import io
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import RandomResizedCrop

from rows import ROOT, at_least_one, finish, machine, needs_device, needs_file, programs, rounds, row, run

GFLOP_AN_IMAGE = 2 * 2 * 17.56


def product_rate(dtype, threads, size=2048, seconds=3.0):
    """Total GFLOP/s of `threads` single-threaded matmuls of size x size at once."""
    torch.set_num_threads(1)
    pairs = [(torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)) for _ in range(threads)]

    def work(pair):
        torch.set_num_threads(1)
        count, began = 0, time.monotonic()
        while time.monotonic() - began < seconds:
            torch.mm(*pair)
            count += 1
        return count / (time.monotonic() - began)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda pair: torch.mm(*pair), pairs))
        return sum(pool.map(work, pairs)) * 2 * size**3 / 1e9


class Crops(Dataset):
    """Random crops of the photos of a tar, and the two teachers' pixels."""

    def __init__(self, shard, limit, constants):
        with tarfile.open(shard) as archive:
            members = [m for m in archive if m.name.endswith((".jpg", ".jpeg"))][:limit]
        self.shard, self.places, self.constants, self.file = shard, [(m.offset_data, m.size) for m in members], constants, None

    def __len__(self):
        return len(self.places)

    def __getitem__(self, index):
        self.file = self.file or open(self.shard, "rb")
        place, size = self.places[index]
        self.file.seek(place)
        image = Image.open(io.BytesIO(self.file.read(size))).convert("RGB")
        top, left, height, width = RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3))
        image = image.crop((left, top, left + width, top + height)).resize((224, 224), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return index, [(pixels - mean) / std for mean, std in self.constants]


@torch.inference_mode()
def script(args):
    """Images per second of the script without its first batch, in which compiling takes place."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import CLIPVisionModel, ViTModel

    shard, teachers, limit, threads, batch, precision, compiled, out, device = json.loads(args.script)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.set_num_threads(threads)
    models, constants = [], []
    for kind, folder in ((CLIPVisionModel, "clip"), (ViTModel, "dino")):
        folder = pathlib.Path(teachers) / folder
        more = {"add_pooling_layer": False} if kind is ViTModel else {}
        model = kind.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa", **more).eval().to(device)
        models.append(torch.compile(model) if compiled else model)
        facts = json.loads((folder / "preprocessor_config.json").read_text())
        constants.append([torch.tensor(facts[key]).view(3, 1, 1) for key in ("image_mean", "image_std")])
    crops = Crops(shard, limit + batch, constants)
    # One worker decodes faster than two processors compute.
    loader = DataLoader(crops, batch_size=batch, num_workers=max(1, threads // 4), prefetch_factor=3)
    names = ["clip", "dino"]
    schema = pa.schema([("index", pa.int64())] + [(f"{name}_{column}", pa.binary()) for name in names for column in ("tokens", "cls")])
    with pq.ParquetWriter(out, schema, compression="zstd", use_dictionary=False) as writer:
        done = 0
        for indices, pixels in loader:
            columns = {"index": indices.tolist()}
            for name, model, of_teacher in zip(names, models, pixels):
                hidden = model(pixel_values=of_teacher.to(device, dtype)).last_hidden_state.half().cpu().numpy()
                columns[f"{name}_tokens"] = [tokens.tobytes() for tokens in hidden[:, 1:]]
                columns[f"{name}_cls"] = [cls.tobytes() for cls in hidden[:, 0]]
            writer.write_table(pa.table(columns, schema=schema))
            if done == 0:
                began = time.perf_counter()
            done += len(indices)
    print(json.dumps((done - batch) / (time.perf_counter() - began)))


def ours(args, teachers, precision):
    cache = args.out / f"cache-{precision}"
    shutil.rmtree(cache, ignore_errors=True)
    command = [programs() / "pipeline", "--log-format", "json", "build-cache", "--images", args.shard, "--out", cache]
    command += ["--teacher", f"clip={teachers}/clip", "--teacher", f"dino={teachers}/dino", "--limit", args.limit]
    command += ["--precision", precision, "--threads", args.threads, "--batch-size", args.batch_size, "--device", args.device]
    found = run(*command)["run"]
    stages = ", ".join(f"{stage['stage']} {stage['busy_seconds']:.2f} s" for stage in found["stages"])
    print(f"    {stages}; peak memory {found['peak_memory_bytes'] / 1e9:.2f} GB", file=sys.stderr)
    return found["images_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shard", type=pathlib.Path, nargs="?", help="a WebDataset tar of JPEG photos")
    parser.add_argument("--limit", type=at_least_one, default=64)
    parser.add_argument("--threads", type=at_least_one, default=os.cpu_count())
    parser.add_argument("--batch-size", type=at_least_one, default=8)
    parser.add_argument("--only", action="append", choices=("f32", "bf16"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "mr-mae-bench")
    parser.add_argument("--rounds", type=at_least_one, default=1, help="number of times that ours and the script are measured in turn")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--script", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.script:
        return script(args)
    if args.shard is None:
        parser.error("give a tar of photos")
    needs_file(parser, args.shard)
    needs_device(parser, args.device)
    print(machine(args.device), file=sys.stderr)
    teachers = args.out / "teachers"
    if not (teachers / "dino/model.safetensors").exists():
        maker = ROOT / "scripts/bench/random_teachers.py"
        subprocess.run([sys.executable, maker, teachers], check=True, stdout=subprocess.DEVNULL)
    rows = []
    for precision, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        if args.only and precision not in args.only:
            continue
        print(f"build-cache, {precision}", file=sys.stderr)
        products = [product_rate(dtype, args.threads)] if args.device == "cpu" else []

        def theirs(compiled):
            word = [str(args.shard), str(teachers), args.limit, args.threads, args.batch_size, precision, compiled, str(args.out / "script.parquet"), args.device]
            return run(sys.executable, __file__, "--script", json.dumps(word))

        peers = {"DataLoader, transformers, pyarrow, eager": lambda: theirs(False), "DataLoader, transformers, pyarrow, compiled": lambda: theirs(True)}
        figures, peers = rounds(args.rounds, lambda: ours(args, teachers, precision), peers)
        products += [product_rate(dtype, args.threads)] if args.device == "cpu" else []
        if products:
            peers["floor of the teachers' products"] = statistics.mean(products) / GFLOP_AN_IMAGE
        rows.append(row(f"build-cache, two B/16, {precision}", figures, peers))
    finish(rows, args)


if __name__ == "__main__":
    main()
