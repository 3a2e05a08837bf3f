"""Small image files of every kind in the color policy, and Pillow's pixels of them.

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
    """Clouds, grain and, in color, a few hard edges: `[height, width, channels]` uint8."""
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
        color = tuple(int(v) for v in rng.integers(0, 256, 3))
        draw.ellipse((x, y, x + w, y + h), fill=color) if w % 2 else draw.rectangle((x, y, x + w, y + h), outline=color)
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


def png(width, height, depth, color_type, rows, before_data=b"", interlaced=False):
    """A PNG of already packed rows (for an interlaced one, the rows of all passes), unfiltered."""
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, int(interlaced))
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
# Orientation in files


NUMBER_FORMATS = {1: "B", 3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I"}


def packed(endian, kind, values):
    """Values of a TIFF type as bytes, and how many they are."""
    if isinstance(values, bytes):
        return values, len(values)
    number = NUMBER_FORMATS[kind]
    return struct.pack(endian + number[0] * len(values), *values), len(values) // len(number)


def directory(tags, endian, start):
    """A TIFF directory at `start` with the values that do not fit into it behind it. Tag -> (type, values or bytes)."""
    entries = values = b""
    behind = start + 2 + 12 * len(tags) + 4
    for tag, (kind, given) in sorted(tags.items()):
        data, count = packed(endian, kind, given)
        entries += struct.pack(endian + "HHI", tag, kind, count)
        if len(data) <= 4:
            entries += data.ljust(4, b"\0")
        else:
            entries += struct.pack(endian + "I", behind + len(values))
            values += data + b"\0" * (len(data) % 2)
    return struct.pack(endian + "H", len(tags)) + entries + b"\0\0\0\0" + values


def exif_block(kind, values, endian="<", tag=ORIENTATION):
    head = b"II*\0" if endian == "<" else b"MM\0*"
    return head + struct.pack(endian + "I", 8) + directory({tag: (kind, values)}, endian, 8)


def xmp_packet(orientation, element=False):
    value = f"<tiff:Orientation>{orientation}</tiff:Orientation>" if element else ""
    attribute = "" if element else f' tiff:Orientation="{orientation}"'
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"{attribute}>{value}</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


def riff(name, data):
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def extended_webp(webp, size, flags, *chunks, extended=True):
    """A simple WebP file with a header of the extended format and further chunks."""
    sides = b"".join(struct.pack("<I", side - 1)[:3] for side in size)
    body = (riff(b"VP8X", bytes([flags, 0, 0, 0]) + sides) if extended else b"") + webp[12:] + b"".join(riff(*c) for c in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def with_chunks(png, *before, after=()):
    """A PNG with chunks behind its header and before its end."""
    return png[:33] + b"".join(chunk(*c) for c in before) + png[33:-12] + b"".join(chunk(*c) for c in after) + png[-12:]


def itxt(keyword, text, compressed=False):
    text = zlib.compress(text) if compressed else text
    return (b"iTXt", keyword + b"\0" + bytes([compressed, 0]) + b"\0\0" + text)


def raw_profile(data, line=72):
    """ImageMagick's text form of a block of bytes."""
    digits = data.hex()
    lines = "\n".join(digits[i : i + line] for i in range(0, len(digits), line))
    return f"\nexif\n{len(data):8}\n{lines}\n".encode()


def turned():
    """Name -> bytes: a picture with an orientation in every place and form that Pillow reads or ignores."""
    files = {}
    picture = rgb(16, 11, 40)
    plain = {kind: encode(picture, kind, **options) for kind, options in [("JPEG", dict(quality=90)), ("PNG", {}), ("WEBP", dict(lossless=True))]}
    six, three = exif_block(3, [6]), exif_block(3, [3])
    in_exif = lambda data: segment(0xE1, b"Exif\0\0" + data)
    in_xmp = lambda data: segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + data)
    jpeg = lambda name, *segments: files.update({f"turn-{name}.jpg": after_app0(plain["JPEG"], b"".join(segments))})
    png_ = lambda name, *chunks, **kw: files.update({f"turn-{name}.png": with_chunks(plain["PNG"], *chunks, **kw)})
    webp = lambda name, flags, *chunks, **kw: files.update({f"turn-{name}.webp": extended_webp(plain["WEBP"], picture.size, flags, *chunks, **kw)})
    extended = lambda kind, data: (b"zTXt", kind + b"\0\0" + zlib.compress(data))

    # The value's type, byte order and range; the block's header.
    for kind, values in [(1, [6]), (3, [6]), (4, [6]), (5, [6, 1]), (6, [6]), (8, [6]), (9, [6]), (10, [6, 1]), (11, [6.0]), (12, [6.0]), (13, [6]), (7, b"\6"), (2, b"6\0")]:
        for endian, order in [("<", "ii"), (">", "mm")]:
            png_(f"type{kind}-{order}", (b"eXIf", exif_block(kind, values, endian)))
    png_("fraction", (b"eXIf", exif_block(11, [6.5])))
    png_("two-values", (b"eXIf", exif_block(3, [6, 3])))
    for value in [0, 9, 256 + 6, 65535]:
        png_(f"value{value}", (b"eXIf", exif_block(3, [value])))
        png_(f"value{value}-xmp", (b"eXIf", exif_block(3, [value])), itxt(b"XML:com.adobe.xmp", xmp_packet(6)))
    png_("swapped-magic", (b"eXIf", b"II\0*" + six[4:]))
    png_("prefix", (b"eXIf", b"Exif\0\0" + six))
    for value in range(1, 9):
        png_(f"xmp{value}", itxt(b"XML:com.adobe.xmp", xmp_packet(value, value % 2 == 0)))

    jpeg("xmp-attribute", in_xmp(xmp_packet(6)))
    jpeg("xmp-element", in_xmp(xmp_packet(8, True)))
    jpeg("xmp-two", in_xmp(xmp_packet(6)), in_xmp(xmp_packet(3)))
    jpeg("xmp-extension", segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + xmp_packet(6)))
    jpeg("xmp-single-quotes", in_xmp(xmp_packet(6).replace(b'"6"', b"'6'")))
    jpeg("xmp-spaces", in_xmp(xmp_packet(6).replace(b'="6"', b' = "6"')))
    jpeg("xmp-zero", in_xmp(xmp_packet(0)))
    jpeg("xmp-first-digit", in_xmp(xmp_packet(62)))
    jpeg("exif-and-xmp", in_exif(three), in_xmp(xmp_packet(6)))
    jpeg("xmp-and-exif", in_xmp(xmp_packet(6)), in_exif(three))
    jpeg("upright-and-xmp", in_exif(exif_block(3, [1])), in_xmp(xmp_packet(6)))
    jpeg("other-tag-and-xmp", in_exif(exif_block(3, [6], tag=0x113)), in_xmp(xmp_packet(6)))
    jpeg("exif-two", in_exif(six), in_exif(three))
    jpeg("exif-split", in_exif(six[:15]), in_exif(six[15:]))
    jpeg("exif-mm", in_exif(exif_block(3, [6], ">")))
    jpeg("exif-after-comment", segment(0xFE, b"Exif\0\0"), in_exif(six))
    jpeg("exif-cut", in_exif(six[:16]))

    profile = b"Raw profile type exif"
    png_("behind-pixels", after=[(b"eXIf", six)])
    png_("xmp-behind-pixels", after=[itxt(b"XML:com.adobe.xmp", xmp_packet(6))])
    png_("exif-two", (b"eXIf", six), (b"eXIf", three))
    png_("profile-text", (b"tEXt", profile + b"\0" + raw_profile(b"Exif\0\0" + six)))
    png_("profile-ztxt", extended(profile, raw_profile(b"Exif\0\0" + six)))
    png_("profile-itxt", itxt(profile, raw_profile(six)))
    png_("profile-itxt-z", itxt(profile, raw_profile(six), True))
    png_("profile-app1", extended(b"Raw profile type APP1", raw_profile(b"Exif\0\0" + six)))
    png_("profile-and-exif", (b"tEXt", profile + b"\0" + raw_profile(six)), (b"eXIf", three))
    png_("exif-and-profile", (b"eXIf", three), (b"tEXt", profile + b"\0" + raw_profile(six)))
    png_("profile-too-short", (b"tEXt", profile + b"\0hello"), itxt(b"XML:com.adobe.xmp", xmp_packet(6)))
    png_("text-exif", (b"tEXt", b"exif\0" + six))
    png_("xmp-z", itxt(b"XML:com.adobe.xmp", xmp_packet(6), True))
    png_("xmp-text", (b"tEXt", b"XML:com.adobe.xmp\0" + xmp_packet(6)))
    png_("xmp-ztxt", extended(b"XML:com.adobe.xmp", xmp_packet(6)))
    png_("xmp-two", itxt(b"XML:com.adobe.xmp", xmp_packet(6)), itxt(b"XML:com.adobe.xmp", xmp_packet(3)))
    png_("xmp-profile", extended(b"Raw profile type xmp", raw_profile(xmp_packet(6))))

    webp("plain", 8, (b"EXIF", six))
    webp("prefix", 8, (b"EXIF", b"Exif\0\0" + six))
    webp("mm", 8, (b"EXIF", exif_block(3, [6], ">")))
    webp("no-flag", 0, (b"EXIF", six))
    webp("not-extended", 0, (b"EXIF", six), extended=False)
    webp("two", 8, (b"EXIF", six), (b"EXIF", three))
    webp("empty", 12, (b"EXIF", b""), (b"XMP ", xmp_packet(6)))
    webp("xmp", 4, (b"XMP ", xmp_packet(6)))
    webp("xmp-element", 4, (b"XMP ", xmp_packet(7, True)))
    webp("xmp-no-flag", 0, (b"XMP ", xmp_packet(6)))
    webp("exif-and-xmp", 12, (b"EXIF", three), (b"XMP ", xmp_packet(6)))

    small = texture(16, 11, 3, 41)
    for value in range(1, 9):
        files[f"turn-tag{value}.tif"] = tiff(small, {ORIENTATION: (3, [value])})
    for kind, values in [(1, b"\6"), (4, [6]), (5, [6, 1]), (11, [6.0])]:
        files[f"turn-type{kind}.tif"] = tiff(small, {ORIENTATION: (kind, values)})
    files["turn-zero.tif"] = tiff(small, {ORIENTATION: (3, [0]), 700: (1, xmp_packet(6))})
    files["turn-mm.tif"] = tiff(small, {ORIENTATION: (3, [6])}, endian=">")
    files["turn-xmp.tif"] = tiff(small, {700: (1, xmp_packet(6))})
    files["turn-xmp-undefined.tif"] = tiff(small, {700: (7, xmp_packet(8, True))})
    files["turn-tag-and-xmp.tif"] = tiff(small, {ORIENTATION: (3, [3]), 700: (1, xmp_packet(6))})
    return files


# ---------------------------------------------------------------------------------------------------------------------------------
# Properties of samples that a buffer's type does not show


def tiff(picture, tags=(), endian="<", photometric=2, bits=8, planar=False, rows_per_strip=None):
    """An uncompressed TIFF of `[H, W, channels]`."""
    height, width, channels = picture.shape
    rows = rows_per_strip or height
    dtype = "u1" if bits == 8 else endian + "u2"
    parts = [picture[..., c : c + 1] for c in range(channels)] if planar else [picture]
    strips = [part[y : y + rows].astype(dtype).tobytes() for part in parts for y in range(0, height, rows)]
    offsets = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    all_tags = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * channels),
        259: (3, [1]),
        262: (3, [photometric]),
        273: (4, offsets),
        277: (3, [channels]),
        278: (4, [rows]),
        279: (4, [len(strip) for strip in strips]),
        284: (3, [2 if planar else 1]),
        **dict(tags),
    }
    data = b"".join(strips)
    data += b"\0" * (len(data) % 2)
    head = b"II*\0" if endian == "<" else b"MM\0*"
    return head + struct.pack(endian + "I", 8 + len(data)) + data + directory(all_tags, endian, 8 + len(data))


def pnm(kind, width, height, body, white=None):
    return b"\n".join([kind, b"# a comment", b"%d %d" % (width, height)] + ([b"%d" % white] if white else []) ) + b"\n" + body


def bmp(picture, bits, header=40, compression=0, masks=b"", pixels=None, palette=b"", top_down=False):
    height, width = picture.shape[:2]
    if pixels is None:
        rows = picture if top_down else picture[::-1]
        pixels = b"".join(row.tobytes() + b"\0" * (-len(row.tobytes()) % 4) for row in rows)
    info = struct.pack("<IiiHHIIiiII", header, width, -height if top_down else height, 1, bits, compression, len(pixels), 0, 0, len(palette) // 4, 0)
    if header > 40:
        info = (info + masks).ljust(header, b"\0")
        masks = b""
    start = 14 + len(info) + len(masks) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + masks + palette + pixels


def meant():
    """Name -> bytes: files whose samples have a meaning that the decoded buffer's type does not show."""
    files = {}
    w, h = 37, 23
    colors, levels = texture(w, h, 3, 50), texture(w, h, 1, 51)
    alpha = ramp(w, h)[..., None]
    times = (colors.astype(int) * alpha // 255).astype(np.uint8)
    both = lambda a, b: np.dstack([a, b])
    wide = lambda picture: picture.astype(np.uint16) * 257
    for endian, order in [("<", "ii"), (">", "mm")]:
        files[f"associated-{order}.tif"] = tiff(both(times, alpha), {338: (3, [1])}, endian)
        files[f"associated16-{order}.tif"] = tiff(wide(both(times, alpha)), {338: (3, [1])}, endian, bits=16)
    files["associated-too-bright.tif"] = tiff(both(colors, alpha), {338: (3, [1])})
    files["associated-strips.tif"] = tiff(both(times, alpha), {338: (3, [1])}, rows_per_strip=5)
    files["associated-more.tif"] = tiff(both(both(times, alpha), levels), {338: (3, [1, 0])})
    files["unassociated.tif"] = tiff(both(colors, alpha), {338: (3, [2])})
    files["unassociated16.tif"] = tiff(wide(both(colors, alpha)), {338: (3, [2])}, bits=16)
    files["unassociated-more.tif"] = tiff(both(both(colors, alpha), levels), {338: (3, [2, 0])})
    files["unspecified.tif"] = tiff(both(colors, alpha), {338: (3, [0])})
    files["unspecified16.tif"] = tiff(wide(both(colors, alpha)), {338: (3, [0])}, bits=16)
    files["unspecified-two.tif"] = tiff(both(both(colors, alpha), levels), {338: (3, [0, 0])})
    files["four-without-a-word.tif"] = tiff(both(colors, alpha))
    files["planar.tif"] = tiff(colors, planar=True)
    files["strips-mm.tif"] = tiff(colors, endian=">", rows_per_strip=4)
    files["white-is-zero.tif"] = tiff(levels, photometric=0)
    files["gray16-mm.tif"] = tiff(sixteen(w, h, 1, 52), endian=">", photometric=1, bits=16)

    bits = texture(w, h, 1, 53)[..., 0] > 127
    packed_bits = np.packbits(bits, axis=-1).tobytes()
    files["p1.pbm"] = pnm(b"P1", w, h, b"\n".join(b"".join(b"%d" % bit for bit in row) for row in bits) + b"\n")
    files["p4.pbm"] = pnm(b"P4", w, h, packed_bits)
    for white in [1, 7, 100, 255, 256, 1023, 4095, 65535]:
        gray_ = levels.astype(int) * white // 255
        rgb_ = colors.astype(int) * white // 255
        text = lambda values: b"\n".join(b" ".join(b"%d" % v for v in row.ravel()) for row in values) + b"\n"
        raw = lambda values: values.astype("u1" if white < 256 else ">u2").tobytes()
        files[f"p2-{white}.pgm"] = pnm(b"P2", w, h, text(gray_), white)
        files[f"p3-{white}.ppm"] = pnm(b"P3", w, h, text(rgb_), white)
        files[f"p5-{white}.pgm"] = pnm(b"P5", w, h, raw(gray_), white)
        files[f"p6-{white}.ppm"] = pnm(b"P6", w, h, raw(rgb_), white)

    bgr = np.ascontiguousarray(colors[..., ::-1])
    zero = np.zeros((h, w, 1), np.uint8)
    files["unused-zero.bmp"] = bmp(both(bgr, zero), 32)
    files["unused-full.bmp"] = bmp(both(bgr, zero + 255), 32)
    rgb_masks = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
    files["fields.bmp"] = bmp(both(bgr, zero), 32, compression=3, masks=rgb_masks)
    files["alpha-mask.bmp"] = bmp(both(bgr, alpha), 32, header=108, compression=3, masks=rgb_masks + struct.pack("<I", 0xFF000000))
    files["alpha-mask-v5.bmp"] = bmp(both(bgr, alpha), 32, header=124, compression=3, masks=rgb_masks + struct.pack("<I", 0xFF000000))
    files["top-down.bmp"] = bmp(bgr, 24, top_down=True)
    gray_palette = b"".join(bytes([i * 17, i * 5, 255 - i * 9, 0]) for i in range(16))
    indices = levels[..., 0] >> 4
    run_length = b"".join(b"".join(bytes([1, v]) for v in row) + b"\0\0" for row in indices[::-1]) + b"\0\1"
    files["rle8.bmp"] = bmp(levels, 8, compression=1, pixels=run_length, palette=gray_palette)

    files["cmyk-without-adobe.jpg"] = without_adobe(encode(Image.fromarray(texture(w, h, 4, 54), "CMYK"), "JPEG", quality=92))
    for transform in [0, 1]:
        marker = segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))
        jpeg = encode(Image.fromarray(colors), "JPEG", quality=90)
        files[f"adobe-transform{transform}.jpg"] = jpeg[:2] + marker + jpeg[20:]

    key = lambda *values: chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))
    files["gray-key0.png"] = png(w, h, 8, 0, [row.tobytes() for row in levels[..., 0] // 32], before_data=key(3))
    files["rgb-key-exact.png"] = png(w, h, 8, 2, [row.tobytes() for row in colors // 64], before_data=key(1, 2, 1))
    files["gray1-key.png"] = png(w, h, 1, 0, packed_gray(w, h, 1, 6), before_data=key(0))
    files["gamma.png"] = png(w, h, 8, 2, [row.tobytes() for row in colors], before_data=chunk(b"gAMA", struct.pack(">I", 100000)))
    files["cicp.png"] = png(w, h, 8, 2, [row.tobytes() for row in colors], before_data=chunk(b"cICP", bytes([9, 16, 0, 1])))
    return files


def without_adobe(jpeg):
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + struct.unpack(">H", jpeg[at + 2 : at + 4])[0] :]


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
    # Like photos: the sizes and settings that cameras and web sites use.
    sizes = [(240, 180), (180, 240), (256, 160), (200, 200), (159, 241), (267, 200)]
    for i, size in enumerate(sizes):
        picture = rgb(*size, seed=100 + i)
        files[f"photo-{i}-420.jpg"] = encode(picture, "JPEG", quality=75 + 4 * i)
        options = [dict(subsampling=0), dict(subsampling=1), dict(progressive=True), dict(optimize=True), dict(restart_marker_rows=2)]
        files[f"photo-{i}-other.jpg"] = encode(picture, "JPEG", quality=88, **options[i % len(options)])

    w, h = 61, 47
    color, mono = rgb(w, h, 1), gray(w, h, 2)
    rgba = Image.fromarray(np.dstack([texture(w, h, 3, 3), ramp(w, h)]))
    la = Image.merge("LA", (gray(w, h, 4), Image.fromarray(ramp(w, h))))
    palette = color.quantize(40)

    files["gray.jpg"] = encode(mono, "JPEG", quality=90)
    files["rgb-components.jpg"] = encode(color, "JPEG", quality=90, keep_rgb=True)
    cmyk = encode(Image.fromarray(texture(w, h, 4, 5), "CMYK"), "JPEG", quality=92)
    files["cmyk.jpg"] = cmyk
    # The last byte of Adobe's segment says how the colors are transformed: 2 is YCCK.
    adobe = cmyk.index(b"Adobe") + 11
    files["ycck.jpg"] = cmyk[:adobe] + b"\2" + cmyk[adobe + 1 :]
    plain = encode(color, "JPEG", quality=85)
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
    files["rgb.png"] = encode(color, "PNG")
    files["rgb-interlaced.png"] = png(w, h, 8, 2, adam7(texture(w, h, 3, 9)), interlaced=True)
    files["rgb-key.png"] = encode(color, "PNG", transparency=color.getpixel((5, 5)))
    files["rgb16.png"] = png(w, h, 16, 2, [row.tobytes() for row in sixteen(w, h, 3, 10)])
    files["rgba.png"] = encode(rgba, "PNG")
    files["rgba16.png"] = png(w, h, 16, 6, [row.tobytes() for row in sixteen(w, h, 4, 11)])
    files["gamma-icc.png"] = encode(color, "PNG", icc_profile=b"any profile is ignored")
    files["palette2.png"] = encode(color.quantize(4), "PNG", bits=2)
    files["palette4.png"] = encode(color.quantize(16), "PNG", bits=4)
    files["palette8.png"] = encode(palette, "PNG")
    files["palette-transparent.png"] = encode(palette, "PNG", transparency=3)
    files["palette-alpha.png"] = encode(palette, "PNG", transparency=bytes(range(0, 240, 6)))
    files["animation.png"] = encode(color, "PNG", save_all=True, append_images=[color.rotate(90), mono.convert("RGB")])

    files["palette.gif"] = encode(palette, "GIF")
    files["transparent.gif"] = encode(palette, "GIF", transparency=3)
    files["interlaced.gif"] = encode(palette, "GIF", interlace=1)
    files["animation.gif"] = encode(palette, "GIF", save_all=True, append_images=[mono.quantize(20)])

    files["lossless.webp"] = encode(color, "WEBP", lossless=True)
    files["lossless-alpha.webp"] = encode(rgba, "WEBP", lossless=True, exact=True)
    files["lossy.webp"] = encode(rgb(150, 111, 12), "WEBP", quality=80)
    files["lossy-alpha.webp"] = encode(rgba, "WEBP", quality=80)
    files["animation.webp"] = encode(color, "WEBP", lossless=True, save_all=True, append_images=[color.rotate(90)])

    files["rgb24.bmp"] = encode(color, "BMP")
    files["palette8.bmp"] = encode(palette, "BMP")
    files["gray1.bmp"] = encode(mono.convert("1"), "BMP")

    for compression in ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"]:
        files[f"rgb-{compression.replace('tiff_', '')}.tif"] = encode(color, "TIFF", compression=compression)
    files["gray8.tif"] = encode(mono, "TIFF", compression="packbits")
    files["gray16.tif"] = encode(Image.fromarray(sixteen(w, h, 1, 13)[..., 0].astype(np.uint16)), "TIFF")
    files["gray1-group4.tif"] = encode(mono.convert("1"), "TIFF", compression="group4")
    files["rgba.tif"] = encode(rgba, "TIFF", compression="tiff_lzw")
    files["pages.tif"] = encode(color, "TIFF", compression="tiff_lzw", save_all=True, append_images=[mono])

    for orientation in range(1, 9):
        files[f"orientation-{orientation}.jpg"] = encode(color, "JPEG", quality=85, exif=exif(orientation))
    files["orientation-6.png"] = encode(mono, "PNG", exif=exif(6))
    files["orientation-3.webp"] = encode(mono.convert("RGB"), "WEBP", lossless=True, exif=exif(3))
    files["orientation-8.tif"] = encode(mono, "TIFF", compression="packbits", tiffinfo={ORIENTATION: 8})
    return {**files, **turned(), **meant()}


def refused(files):
    """Name -> (bytes, reason): files that must not become images, a truncated one for each format among them."""
    cut = lambda name: files[name][: len(files[name]) * 2 // 3]
    jpeg, color = files["photo-0-420.jpg"], rgb(61, 47, 1)
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
        "palette.tif": (encode(color.quantize(8), "TIFF", compression="packbits"), "unsupported"),
    }
    small = texture(9, 7, 4, 60)
    bad["signed.tif"] = (tiff(small[..., :1], {339: (3, [2])}, photometric=1), "unsupported")
    bad["lowest-bit-first.tif"] = (tiff(small[..., :3], {266: (3, [2])}), "unsupported")
    bad["gray-alpha.tif"] = (tiff(small[..., :2], {338: (3, [2])}, photometric=1), "unsupported")
    bad["gray-associated.tif"] = (tiff(small[..., :2], {338: (3, [1])}, photometric=1), "unsupported")
    bad["two-alphas.tif"] = (tiff(np.dstack([small, small[..., :1]]), {338: (3, [2, 1])}), "unsupported")
    bad["extra-999.tif"] = (tiff(small, {338: (3, [999])}), "unsupported")
    bad["lab.tif"] = (tiff(small[..., :3], photometric=8), "unsupported")
    bad["ycbcr.tif"] = (tiff(small[..., :3], {530: (3, [1, 1])}, photometric=6), "unsupported")
    bad["inks.tif"] = (tiff(small, {332: (3, [2])}, photometric=5), "unsupported")
    bad["cmyk-extra.tif"] = (tiff(np.dstack([small, small[..., :1]]), {338: (3, [0])}, photometric=5), "unsupported")
    bad["heic.jpg"] = (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "unsupported")
    bad["avif.png"] = (b"\0\0\0\x1cftypavif\0\0\0\0mif1avifmiaf" + bytes(40), "unsupported")
    bad["jxl.png"] = (b"\xff\x0a" + bytes(40), "unsupported")
    bad["over-white.ppm"] = (pnm(b"P3", 1, 1, b"1 2 300\n", 255), "corrupt")
    bad["no-number.pgm"] = (pnm(b"P2", 1, 1, b"x\n", 255), "corrupt")
    bad["white-zero.pgm"] = (b"P5 1 1 0 \1", "corrupt")
    bad["truncated-p5.pgm"] = (cut("p5-255.pgm"), "truncated")
    bad["truncated-p6.ppm"] = (cut("p6-65535.ppm"), "truncated")
    bad["truncated-p4.pbm"] = (cut("p4.pbm"), "truncated")
    bad["truncated-p2.pgm"] = (cut("p2-255.pgm"), "truncated")
    bad["bomb.pgm"] = (b"P5 60000 60000 255 ", "too-many-pixels")
    for name in ["rgb.png", "palette.gif", "lossless.webp", "lossy.webp", "rgb24.bmp", "rgb-lzw.tif"]:
        stem, kind = name.split(".")
        bad[f"truncated-{stem}.{kind}"] = (cut(name), "truncated")
    return bad


# ---------------------------------------------------------------------------------------------------------------------------------
# Pillow's pixels


def policy(data):
    """The color policy in Pillow's terms."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's convert("RGB") would clip: nearly every 16-bit gray value becomes white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def digest(image):
    """Half a SHA-256 of the pixels, which is enough to compare them."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:32]


def draw_crops(name, width, height, count):
    """Boxes and output sizes: mostly those of training, and cases in which a pass is left out or the order of the passes changes."""
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
    many_crops = set(accepted()) - set(turned()) - set(meant())
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
        # The resampler does not depend on the format, so each of the many small files gets one crop.
        count = CROPS_PER_FILE if path.name in many_crops else 1
        for (x, y, w, h), size in draw_crops(path.name, image.width, image.height, count):
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
    """Runs our decoder and resampler and Pillow over the photos of a tar, and counts the bytes that differ."""
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
    # Pillow warns of files that are damaged on purpose.
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
