"""Small image files of every kind that the colour policy names, and what Pillow makes of them.

    $(scripts/python-env) scripts/golden/images.py                  # writes tests/golden/images/: files, then expectations
    $(scripts/python-env) scripts/golden/images.py --expect OUT     # only the expectations, of the committed files, into OUT
    $(scripts/python-env) scripts/golden/images.py --photos TAR --binary BIN
                                                                    # compares the crops of the photos in a tar with our resampler's

The pictures are drawn with integer arithmetic only, so that they are the same everywhere. No third party's picture is among them.
"""

import argparse
import hashlib
import io
import pathlib
import random
import struct
import subprocess
import tarfile
import warnings
import zlib

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/images"
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CROPS_PER_FILE = 5
ORIENTATION = 0x0112


# ---------------------------------------------------------------------------------------------------------------------------------
# Pictures


def value_noise(width, height, cell, rng):
    """Random values on a lattice of `cell` pixels, interpolated linearly in integers: `[height, width]`, 0..255."""
    lattice = rng.integers(0, 256, (height // cell + 2, width // cell + 2))
    y, x = np.arange(height), np.arange(width)
    ty, tx = (y % cell)[:, None], (x % cell)[None, :]
    at = lambda dy, dx: lattice[(y // cell + dy)[:, None], (x // cell + dx)[None, :]]
    top = at(0, 0) * (cell - tx) + at(0, 1) * tx
    bottom = at(1, 0) * (cell - tx) + at(1, 1) * tx
    return (top * (cell - ty) + bottom * ty) // (cell * cell)


def texture(width, height, channels, seed):
    """Clouds, grain and, in colour, a few hard edges: `[height, width, channels]` uint8."""
    rng = np.random.default_rng(seed)
    planes = [
        (4 * value_noise(width, height, 48, rng) + 3 * value_noise(width, height, 13, rng) + value_noise(width, height, 1, rng)) // 8
        for _ in range(channels)
    ]
    picture = np.clip(2 * np.stack(planes, -1) - 128, 0, 255).astype(np.uint8)
    if channels != 3:
        return picture
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, w, h = (int(v) for v in rng.integers((0, 0, 4, 4), (width, height, width // 2 + 5, height // 2 + 5)))
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        draw.ellipse((x, y, x + w, y + h), fill=colour) if w % 2 else draw.rectangle((x, y, x + w, y + h), outline=colour)
    return np.asarray(image)


def rgb(width, height, seed):
    return Image.fromarray(texture(width, height, 3, seed))


def gray(width, height, seed):
    return Image.fromarray(texture(width, height, 1, seed)[..., 0])


def ramp(width, height):
    """An alpha channel with every value, opaque and transparent areas included."""
    row = np.clip(np.arange(width) * 320 // width - 32, 0, 255).astype(np.uint8)
    return np.repeat(row[None, :], height, 0)


def sixteen(width, height, channels, seed):
    low = np.random.default_rng(seed + 1).integers(0, 256, (height, width, channels))
    return (texture(width, height, channels, seed).astype(np.uint16) << 8 | low.astype(np.uint16)).astype(">u2")


# ---------------------------------------------------------------------------------------------------------------------------------
# Files that Pillow cannot write


def png(width, height, depth, colour_type, rows, before_data=b"", interlaced=False):
    """A PNG of already packed rows (for an interlaced one, the rows of all passes), unfiltered."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, int(interlaced))
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before_data + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def packed_gray(width, height, depth, seed):
    """Rows of a gray PNG with less than 8 bits a pixel."""
    values = texture(width, height, 1, seed)[..., 0] >> (8 - depth)
    bits = np.unpackbits(values[..., None], axis=-1)[..., -depth:].reshape(height, -1)
    return [np.packbits(row).tobytes() for row in bits]


def adam7(picture):
    """The rows of the seven passes of an interlaced PNG."""
    for x, y, dx, dy in [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]:
        part = picture[y::dy, x::dx]
        if part.size:
            yield from (row.tobytes() for row in part)


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def after_app0(jpeg, extra):
    end = 4 + struct.unpack(">H", jpeg[4:6])[0]
    return jpeg[:end] + extra + jpeg[end:]


# ---------------------------------------------------------------------------------------------------------------------------------
# The collection


def encode(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def accepted():
    """Name -> bytes of every file that is an image by the policy."""
    files = {}
    # Photos in all but subject: the sizes and settings that cameras and web sites use.
    sizes = [(240, 180), (180, 240), (256, 160), (200, 200), (159, 241), (267, 200)]
    for i, size in enumerate(sizes):
        picture = rgb(*size, seed=100 + i)
        files[f"photo-{i}-420.jpg"] = encode(picture, "JPEG", quality=75 + 4 * i)
        options = [dict(subsampling=0), dict(subsampling=1), dict(progressive=True), dict(optimize=True), dict(restart_marker_rows=2)]
        files[f"photo-{i}-other.jpg"] = encode(picture, "JPEG", quality=88, **options[i % len(options)])

    w, h = 61, 47
    colour, mono = rgb(w, h, 1), gray(w, h, 2)
    rgba = Image.fromarray(np.dstack([texture(w, h, 3, 3), ramp(w, h)]))
    la = Image.merge("LA", (gray(w, h, 4), Image.fromarray(ramp(w, h))))
    palette = colour.quantize(40)

    files["gray.jpg"] = encode(mono, "JPEG", quality=90)
    files["rgb-components.jpg"] = encode(colour, "JPEG", quality=90, keep_rgb=True)
    cmyk = encode(Image.fromarray(texture(w, h, 4, 5), "CMYK"), "JPEG", quality=92)
    files["cmyk.jpg"] = cmyk
    # The last byte of Adobe's segment says how the colours are transformed: 2 is YCCK.
    adobe = cmyk.index(b"Adobe") + 11
    files["ycck.jpg"] = cmyk[:adobe] + b"\2" + cmyk[adobe + 1 :]
    plain = encode(colour, "JPEG", quality=85)
    files["jfif-version-2.jpg"] = plain.replace(b"JFIF\0\1", b"JFIF\0\2", 1)
    files["broken-icc.jpg"] = after_app0(plain, segment(0xE2, b"ICC_PROFILE\0\5\1" + b"x" * 20))
    files["bytes-before-end.jpg"] = plain[:-2] + b"\0" * 5 + plain[-2:]
    files["bytes-after-end.jpg"] = plain + b"not part of the image"
    # A thumbnail inside EXIF has an end marker of its own.
    files["comment.jpg"] = after_app0(plain, segment(0xFE, b"\xff\xd9 in a comment"))

    files["gray1.png"] = encode(mono.convert("1"), "PNG")
    files["gray2.png"] = png(w, h, 2, 0, packed_gray(w, h, 2, 6))
    files["gray4.png"] = png(w, h, 4, 0, packed_gray(w, h, 4, 6))
    files["gray8.png"] = encode(mono, "PNG")
    files["gray16.png"] = png(w, h, 16, 0, [row.tobytes() for row in sixteen(w, h, 1, 7)])
    files["gray-alpha.png"] = encode(la, "PNG")
    files["gray-alpha16.png"] = png(w, h, 16, 4, [row.tobytes() for row in sixteen(w, h, 2, 8)])
    files["gray-key.png"] = encode(mono, "PNG", transparency=mono.getpixel((30, 20)))
    files["rgb.png"] = encode(colour, "PNG")
    files["rgb-interlaced.png"] = png(w, h, 8, 2, adam7(texture(w, h, 3, 9)), interlaced=True)
    files["rgb-key.png"] = encode(colour, "PNG", transparency=colour.getpixel((5, 5)))
    files["rgb16.png"] = png(w, h, 16, 2, [row.tobytes() for row in sixteen(w, h, 3, 10)])
    files["rgba.png"] = encode(rgba, "PNG")
    files["rgba16.png"] = png(w, h, 16, 6, [row.tobytes() for row in sixteen(w, h, 4, 11)])
    files["gamma-icc.png"] = encode(colour, "PNG", icc_profile=b"any profile is ignored")
    files["palette2.png"] = encode(colour.quantize(4), "PNG", bits=2)
    files["palette4.png"] = encode(colour.quantize(16), "PNG", bits=4)
    files["palette8.png"] = encode(palette, "PNG")
    files["palette-transparent.png"] = encode(palette, "PNG", transparency=3)
    files["palette-alpha.png"] = encode(palette, "PNG", transparency=bytes(range(0, 240, 6)))
    files["animation.png"] = encode(colour, "PNG", save_all=True, append_images=[colour.rotate(90), mono.convert("RGB")])

    files["palette.gif"] = encode(palette, "GIF")
    files["transparent.gif"] = encode(palette, "GIF", transparency=3)
    files["interlaced.gif"] = encode(palette, "GIF", interlace=1)
    files["animation.gif"] = encode(palette, "GIF", save_all=True, append_images=[mono.quantize(20)])

    files["lossless.webp"] = encode(colour, "WEBP", lossless=True)
    files["lossless-alpha.webp"] = encode(rgba, "WEBP", lossless=True, exact=True)
    files["lossy.webp"] = encode(rgb(150, 111, 12), "WEBP", quality=80)
    files["lossy-alpha.webp"] = encode(rgba, "WEBP", quality=80)
    files["animation.webp"] = encode(colour, "WEBP", lossless=True, save_all=True, append_images=[colour.rotate(90)])

    files["rgb24.bmp"] = encode(colour, "BMP")
    files["palette8.bmp"] = encode(palette, "BMP")
    files["gray1.bmp"] = encode(mono.convert("1"), "BMP")

    for compression in ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"]:
        files[f"rgb-{compression.replace('tiff_', '')}.tif"] = encode(colour, "TIFF", compression=compression)
    files["gray8.tif"] = encode(mono, "TIFF", compression="packbits")
    files["gray16.tif"] = encode(Image.fromarray(sixteen(w, h, 1, 13)[..., 0].astype(np.uint16)), "TIFF")
    files["gray1-group4.tif"] = encode(mono.convert("1"), "TIFF", compression="group4")
    files["rgba.tif"] = encode(rgba, "TIFF", compression="tiff_lzw")
    files["pages.tif"] = encode(colour, "TIFF", compression="tiff_lzw", save_all=True, append_images=[mono])

    for orientation in range(1, 9):
        files[f"orientation-{orientation}.jpg"] = encode(colour, "JPEG", quality=85, exif=exif(orientation))
    files["orientation-6.png"] = encode(mono, "PNG", exif=exif(6))
    files["orientation-3.webp"] = encode(mono.convert("RGB"), "WEBP", lossless=True, exif=exif(3))
    files["orientation-8.tif"] = encode(mono, "TIFF", compression="packbits", tiffinfo={ORIENTATION: 8})
    return files


def refused(files):
    """Name -> (bytes, reason): files that must not become images, a truncated one for each format among them."""
    cut = lambda name: files[name][: len(files[name]) * 2 // 3]
    jpeg, colour = files["photo-0-420.jpg"], rgb(61, 47, 1)
    frame = b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", 180, 240)
    scan = jpeg.index(b"\xff\xda")
    middle = (scan + len(jpeg)) // 2
    bad = {
        "empty": (b"", "unknown-format"),
        "text.jpg": (b"<html>404</html>", "unknown-format"),
        "truncated.jpg": (cut("photo-1-420.jpg"), "truncated"),
        "truncated-by-one.jpg": (files["gray.jpg"][:-1], "truncated"),
        "truncated-header.jpg": (jpeg[: scan // 2], "truncated"),
        "truncated-progressive.jpg": (cut("photo-2-other.jpg"), "truncated"),
        "damaged-data.jpg": (jpeg[:middle] + b"\xff\xd7" * 20 + jpeg[middle + 40 :], "corrupt"),
        "damaged-header.jpg": (jpeg.replace(b"\xff\xdb\x00\x43", b"\xff\xdb\x00\x44", 1), "corrupt"),
        "bits12.jpg": (jpeg.replace(frame, frame[:4] + b"\x0c" + frame[5:], 1), "unsupported"),
        "bomb.jpg": (jpeg.replace(frame, frame[:5] + b"\xff\x00\xff\x00", 1), "too-many-pixels"),
        "bomb.png": (png(60000, 60000, 8, 2, [b"\0" * 9]), "too-many-pixels"),
        "bomb.gif": (b"GIF89a" + struct.pack("<HH", 65535, 65535) + files["palette.gif"][10:], "too-many-pixels"),
        "damaged.png": (files["rgb.png"].replace(b"IDAT", b"IDAT\7", 1), "corrupt"),
        "zero-size.gif": (b"GIF89a" + b"\0\0\0\0" + files["palette.gif"][10:], "corrupt"),
        "float.tif": (encode(gray(9, 7, 1).convert("F"), "TIFF"), "unsupported"),
        "palette.tif": (encode(colour.quantize(8), "TIFF", compression="packbits"), "unsupported"),
    }
    for name in ["rgb.png", "palette.gif", "lossless.webp", "lossy.webp", "rgb24.bmp", "rgb-lzw.tif"]:
        stem, kind = name.split(".")
        bad[f"truncated-{stem}.{kind}"] = (cut(name), "truncated")
    return bad


# ---------------------------------------------------------------------------------------------------------------------------------
# What Pillow makes of them


def policy(data):
    """The colour policy in Pillow's terms."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I;16"):
        # Pillow's convert("RGB") would clip: nearly every 16-bit gray value becomes white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def digest(image):
    """Half a SHA-256 of the pixels: enough to tell equal from unequal, and half the file."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:32]


def draw_crops(name, width, height, count):
    """Boxes and output sizes: mostly what training asks for, and the cases in which a pass is left out or the order of the passes turns."""
    rng = random.Random(name)
    for i in range(count):
        w, h = rng.randint(1 + width // 4, width), rng.randint(1 + height // 4, height)
        if i == 0:
            w, h = width, height
        x, y = rng.randint(0, width - w), rng.randint(0, height - h)
        size = [(224, 224), (w, 31), (rng.randint(1, 99), h), (rng.randint(1, 300), rng.randint(1, 60)), (196, 196)][i % 5]
        if rng.random() < 0.05:
            size = (w, h)
        yield (x, y, w, h), size


def write_expectations(source, out):
    reasons = {name: reason for name, (_, reason) in refused(accepted()).items()}
    decoded, crops, rejected = [], [], []
    for path in sorted(source.joinpath("files").iterdir()):
        try:
            image, verdict = policy(path.read_bytes()), "accepted"
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            image, verdict = None, "refused"
        if path.name in reasons:
            rejected.append(f"{path.name}\t{reasons[path.name]}\t{verdict}")
            continue
        decoded.append(f"{path.name}\t{image.width}\t{image.height}\t{digest(image)}")
        for (x, y, w, h), size in draw_crops(path.name, image.width, image.height, CROPS_PER_FILE):
            crop = image.crop((x, y, x + w, y + h))
            digests = [digest(crop.resize(size, filter)) for filter in FILTERS.values()]
            crops.append("\t".join(map(str, [path.name, x, y, w, h, *size, *digests])))
    out.mkdir(parents=True, exist_ok=True)
    write_table(out / "decoded.tsv", "file\twidth\theight\tdigest", decoded)
    write_table(out / "crops.tsv", "file\tx\ty\tw\th\tout_w\tout_h\t" + "\t".join(FILTERS), crops)
    write_table(out / "refused.tsv", "file\treason\tpillow", rejected)
    print(f"{len(decoded)} images, {len(crops)} crops, {len(rejected)} refused files")


def write_table(path, header, lines):
    path.write_text("\n".join([header, *lines]) + "\n")


def write_files(out):
    folder = out / "files"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    good = accepted()
    for name, data in good.items():
        folder.joinpath(name).write_bytes(data)
    for name, (data, _) in refused(good).items():
        folder.joinpath(name).write_bytes(data)


# ---------------------------------------------------------------------------------------------------------------------------------
# Photos, which are not committed


def compare_photos(tar, binary, crops_per_photo):
    """Runs our decoder and resampler over the photos of a tar, beside Pillow, and counts the bytes that differ."""
    worker = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ours(data, *job):
        worker.stdin.write(struct.pack("<I", len(data)) + data + struct.pack("<7I", *job))
        worker.stdin.flush()
        length = struct.unpack("<I", worker.stdout.read(4))[0]
        return np.frombuffer(worker.stdout.read(length), np.uint8)

    photos = crops = total = different = 0
    with tarfile.open(tar) as archive:
        for member in archive:
            if not member.name.endswith(".jpg"):
                continue
            data = archive.extractfile(member).read()
            image = policy(data)
            photos += 1
            for (x, y, w, h), size in draw_crops(member.name, image.width, image.height, crops_per_photo):
                crop = image.crop((x, y, x + w, y + h))
                for number, filter in enumerate(FILTERS.values()):
                    expected = np.frombuffer(crop.resize(size, filter).tobytes(), np.uint8)
                    found = ours(data, x, y, w, h, *size, number)
                    crops += 1
                    total += expected.size
                    different += int((expected != found).sum()) if found.size == expected.size else expected.size
    worker.stdin.close()
    worker.wait()
    print(f"{photos} photos, {crops} resampled crops, {different} of {total} bytes differ from Pillow {PIL.__version__}")
    return different


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN, help="where files and expectations go")
    parser.add_argument("--expect", type=pathlib.Path, metavar="OUT", help="only expectations, of the committed files")
    parser.add_argument("--photos", type=pathlib.Path, metavar="TAR", help="compare with our resampler on the photos of a tar")
    parser.add_argument("--binary", type=pathlib.Path, help="the built example `resample_worker` of the images crate")
    parser.add_argument("--crops", type=int, default=5, help="crops per photo")
    args = parser.parse_args()
    assert PIL.__version__ == "13.0.0", f"the golden files are Pillow 13.0.0's, and this is {PIL.__version__}"
    # Pillow warns of the damage that is put into some files on purpose.
    warnings.simplefilter("ignore")

    if args.photos:
        raise SystemExit(1 if compare_photos(args.photos, args.binary, args.crops) else 0)
    if args.expect:
        write_expectations(GOLDEN, args.expect)
        return
    write_files(args.out)
    write_expectations(args.out, args.out)


if __name__ == "__main__":
    main()
