"""The corpus of odd inputs: image files, image sources and weights files, each with its outcome.

    $(scripts/python-env) scripts/corpus.py            # writes tests/corpus/

Everything is drawn or computed here, without third-party data. tests/corpus/outcomes.tsv has the outcome of each entry: for
an image Pillow's pixels or the reason of the refusal, for a source its images and labels, for weights whether they can be read.
"""

import importlib.util
import io
import pathlib
import shutil
import struct
import tarfile
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save as to_safetensors

ROOT = pathlib.Path(__file__).resolve().parents[1]
CORPUS = ROOT / "tests/corpus"

spec = importlib.util.spec_from_file_location("images_golden", ROOT / "scripts/golden/images.py")
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)


def small(seed, width=12, height=9):
    return golden.encode(golden.rgb(width, height, seed), "PNG")


# ---------------------------------------------------------------------------------------------------------------------------------
# Image files. tests/golden/images has the kinds and modes of every format; these are files that users of other tools have met.


def images():
    """Name -> (bytes, outcome); outcome None means Pillow's pixels."""
    picture = golden.rgb(24, 16, 1)
    plain = {kind: golden.encode(picture, kind, **options) for kind, options in [("JPEG", {}), ("PNG", {}), ("WEBP", dict(lossless=True))]}
    xmp = golden.segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + golden.xmp_packet(6))
    exif = golden.exif_block(3, [6])
    colors, alpha = golden.texture(24, 16, 3, 2), golden.ramp(24, 16)[..., None]
    times = (colors.astype(int) * alpha // 255).astype(np.uint8)
    bgrx = np.dstack([colors[..., ::-1], np.zeros((16, 24, 1), np.uint8)])
    twelve_bits = golden.sixteen(24, 16, 1, 3).astype(np.uint16) >> 4
    deep = golden.png(24, 16, 16, 0, [row.tobytes() for row in twelve_bits[..., 0].astype(">u2")])
    box = lambda brand: b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + bytes(64)
    return {
        "xmp-alone.jpg": (golden.after_app0(plain["JPEG"], xmp), None),
        "xmp-alone.png": (golden.with_chunks(plain["PNG"], golden.itxt(b"XML:com.adobe.xmp", golden.xmp_packet(8, True))), None),
        "exif-prefix.webp": (golden.extended_webp(plain["WEBP"], picture.size, 8, (b"EXIF", b"Exif\0\0" + exif)), None),
        "exif-without-flag.webp": (golden.extended_webp(plain["WEBP"], picture.size, 0, (b"EXIF", exif)), None),
        "associated-alpha.tif": (golden.tiff(np.dstack([times, alpha]), {338: (3, [1])}), None),
        "associated-alpha-16.tif": (golden.tiff(np.dstack([times, alpha]).astype(np.uint16) * 257, {338: (3, [1])}, bits=16), None),
        "unused-byte.bmp": (golden.bmp(bgrx, 32), None),
        "twelve-bits.png": (deep, None),
        "plain.ppm": (golden.pnm(b"P6", 24, 16, colors.tobytes(), 255), None),
        "wrong-extension.png": (plain["JPEG"], None),
        "no-extension": (plain["PNG"], None),
        "photo.jpg_large": (plain["JPEG"], None),
        "heic.heic": (box(b"heic"), "unsupported"),
        "avif.avif": (box(b"avif"), "unsupported"),
        "jxl.jxl": (b"\xff\x0a" + bytes(64), "unsupported"),
        "heic-called.jpg": (box(b"heic"), "unsupported"),
        "float.tif": (golden.encode(golden.gray(9, 7, 4).convert("F"), "TIFF"), "unsupported"),
        "lowest-bit-first.tif": (golden.tiff(colors, {266: (3, [2])}), "unsupported"),
        "web-page.jpg": (b"<!DOCTYPE html><title>404</title>", "unknown-format"),
        "empty.jpg": (b"", "unknown-format"),
        "cut.jpg": (plain["JPEG"][: len(plain["JPEG"]) // 2], "truncated"),
    }


# ---------------------------------------------------------------------------------------------------------------------------------
# Sources: a file or folder each


def tar(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    # Python pads to records of 10 kB; two blocks of zeros are the mark.
    data = out.getvalue()
    return data.rstrip(b"\0").ljust(-(-len(data.rstrip(b"\0")) // 512) * 512, b"\0") + bytes(1024)


def parquet(columns):
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, compression="none")
    return out.getvalue()


def sources():
    """Path -> bytes of every file, and the name of every source -> its outcome."""
    files, outcomes = {}, {}

    def source(name, outcome, contents):
        outcomes[f"sources/{name}"] = outcome
        if isinstance(contents, bytes):
            contents = {"": contents}
        for path, data in contents.items():
            files[f"sources/{name}/{path}".rstrip("/")] = data

    source("dots-in-names.tar", "images 3", tar([("track 22.05.jpg", small(1)), ("photo.v2.jpg", small(2)), ("plain.jpg", small(3))]))
    source("joined.tar", "images 2", tar([("a.png", small(4))]) + tar([("b.png", small(5))]))
    source("zero-block-inside.tar", "images 2", tar([("a.png", small(4))])[:-1024] + bytes(512) + tar([("b.png", small(5))]))
    blocks = {"block_0/part_8.tar": tar([("000.png", small(6))]), "block_1/part_8.tar": tar([("000.png", small(7))])}
    source("shards-of-one-name", "given block_*/*.tar: images 2", blocks)
    other = {"a.png": small(8), "b.heic": b"\0\0\0\x18ftypheic" + bytes(60), "c": small(9), "d.ppm": golden.pnm(b"P5", 2, 2, b"abcd", 255), "e.txt": b"no picture"}
    source("formats-beside", "images 2", {f"c/{name}": data for name, data in other.items()})
    image = pa.array([{"bytes": small(10 + i), "path": None} for i in range(4)])
    labels = {
        "int64": (pa.array([0, 1, 2, 1]), "0 1 2 1"),
        "uint64": (pa.array([0, 1, 2, 1], pa.uint64()), "0 1 2 1"),
        "float": (pa.array([0.0, 1.0, 2.0, 1.0]), "0 1 2 1"),
        "bool": (pa.array([True, False, True, False]), "1 0 1 0"),
        "text": (pa.array(["cat", "dog", "cat", "dog"]), "0 1 0 1"),
        "categorical": (pa.array(["cat", "dog", "cat", "dog"]).dictionary_encode(), "0 1 0 1"),
        "decimal": (pa.array([0, 1, 2, 1], pa.decimal128(5, 0)), "0 1 2 1"),
    }
    for name, (column, expected) in labels.items():
        source(f"label-{name}.parquet", f"images 4, labels {expected}", parquet({"image": image, "label": column}))
    table = parquet({"image": image, "label": labels["int64"][0]})
    source("splits", "given train-*.parquet: images 4, labels 0 1 2 1", {"train-00000-of-00001.parquet": table, "test-00000-of-00001.parquet": table})
    source("cut.tar", "refused", tar([("a.png", small(4)), ("b.png", small(5))])[:700])
    source("cut.parquet", "refused", table[: len(table) // 2])
    source("web-page.tar", "refused", b"<!DOCTYPE html>" + bytes(600))
    source("nothing", "refused", {"e.txt": b"no picture"})
    return files, outcomes


# ---------------------------------------------------------------------------------------------------------------------------------
# Weights


def weights():
    """Name -> (bytes, outcome)."""
    needed = {"norm.weight": torch.arange(8.0), "norm.bias": torch.zeros(8)}
    files = {"plain.safetensors": (to_safetensors(needed), "read norm.weight, norm.bias")}
    extra = {"bool": torch.ones(3, 3, dtype=torch.bool), "f8": torch.ones(4, 4).to(torch.float8_e4m3fn), "u32": torch.ones(3, dtype=torch.uint32)}
    for name, tensor in extra.items():
        files[f"{name}-not-needed.safetensors"] = (to_safetensors({**needed, "other": tensor}), "read norm.weight, norm.bias")

    def saved(state):
        out = io.BytesIO()
        torch.save(state, out)
        return out.getvalue()

    files["expanded.pth"] = (saved({**needed, "norm.weight": torch.tensor([1.5]).expand(8)}), "read norm.weight, norm.bias")
    files["cut.safetensors"] = (to_safetensors(needed)[:-5], "refused")
    files["cut.pth"] = (saved(needed)[:-40], "refused")
    files["header-too-long.safetensors"] = (struct.pack("<Q", 1 << 40) + b"{}", "refused")
    return files


def main():
    warnings.simplefilter("ignore")
    shutil.rmtree(CORPUS / "images", ignore_errors=True)
    shutil.rmtree(CORPUS / "sources", ignore_errors=True)
    shutil.rmtree(CORPUS / "weights", ignore_errors=True)
    files, outcomes = sources()
    for name, (data, outcome) in images().items():
        files[f"images/{name}"] = data
        if outcome is None:
            image = golden.policy(data)
            outcome = f"pixels {image.width} x {image.height} {golden.digest(image)}"
        else:
            outcome = f"refused {outcome}"
        outcomes[f"images/{name}"] = outcome
    for name, (data, outcome) in weights().items():
        files[f"weights/{name}"] = data
        outcomes[f"weights/{name}"] = outcome
    for path, data in files.items():
        path = CORPUS / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    golden.write_table(CORPUS / "outcomes.tsv", "entry\toutcome", [f"{entry}\t{outcome}" for entry, outcome in sorted(outcomes.items())])
    print(f"{len(outcomes)} entries, {sum(map(len, files.values()))} bytes")


if __name__ == "__main__":
    main()
