"""Splits the demo's pictures into training and test pictures. Usage: demo_pictures.py PICTURES OUT

Copies PICTURES/<class>/**/<file> to OUT/train and OUT/test, and prints what it takes and leaves out. Every fifth picture in bytewise
order of its path is held out, by the rule of teachers/openclipart.py, so that the teacher has not seen the test pictures. Of byte copies only
the first counts, and none is held out whose copy is trained on.
"""

import collections
import hashlib
import os
import shutil
import sys

# Formats that the programs read (images/src/decode/format.rs); other files are left out and counted.
READABLE = set("jpg jpeg jpe jfif png apng webp gif bmp tif tiff ppm pgm pbm pnm".split())
HELD_OUT_EVERY = 5
# The batch size of trainer/recipes/tiny.toml.
FEWEST_TO_TRAIN_ON = 64


def listed(pictures):
    """Paths below `pictures` that are taken, sorted bytewise, and the number of files left out by reason."""
    taken, left = [], collections.Counter()
    for folder, names, files in os.walk(pictures, followlinks=True, onerror=stop):
        names[:] = [name for name in names if not name.startswith(".")]
        for name in files:
            path = os.path.relpath(os.path.join(folder, name), pictures)
            extension = os.path.splitext(name)[1].lower().lstrip(".")
            if name.startswith("."):
                continue
            if extension not in READABLE:
                left[f"other files (.{extension})" if extension else "other files"] += 1
            elif os.sep not in path:
                left["pictures in no class folder"] += 1
            elif path.startswith("unsorted" + os.sep):
                left["pictures in unsorted/, which names no class"] += 1
            elif not os.path.exists(os.path.join(folder, name)):
                left["broken links"] += 1
            else:
                taken.append(path)
    return sorted(taken, key=os.fsencode), left


def stop(error):
    raise error


def without_copies(pictures, paths, known):
    """The first path of each content that is not in `known`, a set of digests that grows by what is taken."""
    first = []
    for path in paths:
        with open(os.path.join(pictures, path), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        if digest not in known:
            known.add(digest)
            first.append(path)
    return first


def main():
    pictures, out = sys.argv[1:]
    taken, left = listed(pictures)
    for reason, count in left.most_common():
        print(f"left out  {count:>8}  {reason}")
    known = set()
    train = without_copies(pictures, [path for line, path in enumerate(taken, start=1) if line % HELD_OUT_EVERY], known)
    held_out = without_copies(pictures, taken[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY], known)
    copies = len(taken) - len(train) - len(held_out)
    if copies:
        print(f"left out  {copies:>8}  byte copies of others")
    if not taken:
        sys.exit(
            f"demo: {pictures} holds no pictures in class folders: put them in PICTURES/<class>/, in one of the formats {', '.join(sorted(READABLE))}"
        )
    if len(train) < FEWEST_TO_TRAIN_ON:
        sys.exit(
            f"demo: {pictures} holds {len(taken)} pictures in class folders, of which {len(train)} are to be trained on without copies and "
            f"every {HELD_OUT_EVERY}th; its recipe's batch is {FEWEST_TO_TRAIN_ON}"
        )
    for part, paths in (("train", train), ("test", held_out)):
        for path in paths:
            copy = os.path.join(out, part, path)
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            shutil.copy(os.path.join(pictures, path), copy)
    counts = f"{len(train)} pictures to train on, {len(held_out)} held out"
    with open(os.path.join(out, "counts"), "w") as file:
        print(counts, file=file)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"demo: {error}")
