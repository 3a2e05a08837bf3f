"""The small cache that every later version of the programs must read: tests/compat/v1.

    cargo build --release -p pipeline && $(scripts/python-env) scripts/golden/compat.py

Made once per format version and never again, because it proves that files of an old release stay readable. Drawn pictures, packed as
JPEG; the golden teachers of tests/golden/teachers, one for each codec, three of them added later.
"""

import pathlib
import shutil
import subprocess
import tempfile

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/compat/v1"
TEACHERS = [("clip", "clip-quickgelu", "f16"), ("dinov2", "dinov2", "f32"), ("dinov3", "dinov3", "bf16"), ("vit", "vit", "i8")]


def main():
    pipeline = ROOT / "target/release/pipeline"
    shutil.rmtree(OUT, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temp:
        images = pathlib.Path(temp) / "images"
        for i in range(8):
            y, x = np.mgrid[0 : 48 + 4 * i, 0 : 60 - 3 * i]
            pixels = np.stack([x * 4 + 31 * i, y * 5 - 17 * i, (x ^ y) * 3], -1).astype(np.uint8)
            folder = images / ["ant", "bee"][i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{i}.png")
        (images / "bee/broken.png").write_text("not an image")
        for n, (name, folder, codec) in enumerate(TEACHERS):
            teacher = ["--teacher", f"{name}=tests/golden/teachers/{folder}", "--codec", codec]
            more = ["--calibration-images", "8"] if codec == "i8" else []
            more += ["--batch-size", "4", "--threads", "1", "--device", "cpu"]
            if n == 0:
                views = ["--views", "2", "--seed", "7", "--pack", "jpeg:40:90", "--set", "cache.part_samples=5"]
                command = ["build-cache", "--images", images, "--out", OUT / "cache", *views]
            else:
                command = ["add-teacher", OUT / "cache"]
            subprocess.run([pipeline, *command, *teacher, *more], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
