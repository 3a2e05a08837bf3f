"""k-NN on the held-out images: saved teachers against raw pixels and untrained networks of the same shape.

    evaluate_openclipart.py --png oc/usr/share/openclipart/png assets/teachers/clip-tiny assets/teachers/dino-tiny

DINO's classifier: cosine similarity, k = 20, votes weighted by exp(similarity / 0.07), neighbors from the train side. Each
image is taken whole and resized to 64 x 64 (bicubic). Printed as a Markdown table:

- top-1: share of the held-out images that are right.
- balanced: mean over classes of the share that is right. More than every sixth image is a near-copy of `shapes/stars`,
  which weighs heavily in top-1; this column takes that weight away.
- unseen: the same two, on the held-out images without a byte copy on the train side.

Each row comes a second time with the mean of the train side taken away ("less mean"). The cosine of raw pixels is ruled by
the white paper; without the mean image it sees the drawing and becomes a much stronger baseline.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

import openclipart
import teacher


def knn_predict(bank: torch.Tensor, bank_labels: torch.Tensor, queries: torch.Tensor, n_classes: int, k: int, temperature: float):
    similarity = F.normalize(queries, dim=-1) @ F.normalize(bank, dim=-1).T
    nearest, idx = similarity.topk(k, dim=-1)
    votes = torch.zeros(len(queries), n_classes).scatter_add_(1, bank_labels[idx], (nearest / temperature).exp())
    return votes.argmax(-1)


def scores(predicted: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Top-1 and balanced accuracy in percent; classes without an image do not count."""
    right = (predicted == labels).float()
    per_class = [right[labels == c].mean() for c in labels.unique()]
    return 100 * right.mean().item(), 100 * torch.stack(per_class).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--png", type=Path, required=True, help="the package's png folder")
    parser.add_argument("teachers", type=Path, nargs="*", help="saved teacher folders")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/demo-teachers"), help="where decoded images are kept")
    parser.add_argument("-k", type=int, default=20)
    parser.add_argument("--temperature", type=float, default=0.07)
    parser.add_argument("--seed", type=int, default=0, help="of the untrained networks")
    args = parser.parse_args()
    torch.set_num_threads(1)

    split = openclipart.split_files(args.png)
    classes = sorted({openclipart.label_of(p) for p in split.train})
    train_labels = torch.tensor([classes.index(openclipart.label_of(p)) for p in split.train])
    test_labels = torch.tensor([classes.index(openclipart.label_of(p)) for p in split.held_out])
    train_hashes = set(openclipart.content_hashes(args.png, split.train))
    unseen = torch.tensor([h not in train_hashes for h in openclipart.content_hashes(args.png, split.held_out)])
    train, _ = openclipart.cached_images(args.png, split.train, teacher.OPENCLIPART.img_size, args.cache)
    test, _ = openclipart.cached_images(args.png, split.held_out, teacher.OPENCLIPART.img_size, args.cache)

    print(f"{len(train)} train, {len(test)} held out, {int(unseen.sum())} of them unseen, {len(classes)} classes\n")
    print("| features | top-1 | balanced | unseen top-1 | unseen balanced |\n|---|---|---|---|---|")

    def report(name: str, bank: torch.Tensor, queries: torch.Tensor) -> None:
        mean = bank.mean(0)
        for variant, shift in ((name, 0.0), (f"{name}, less mean", mean)):
            predicted = knn_predict(bank - shift, train_labels, queries - shift, len(classes), args.k, args.temperature)
            columns = [*scores(predicted, test_labels), *scores(predicted[unseen], test_labels[unseen])]
            print(f"| {variant} | " + " | ".join(f"{c:.1f}" for c in columns) + " |", flush=True)

    for size in (64, 32):
        bank, queries = (F.interpolate(x.float(), size=size, mode="area").flatten(1) for x in (train, test))
        report(f"pixels {size} x {size}", bank, queries)

    torch.manual_seed(args.seed)
    models = {"untrained CLIP": teacher.new_clip(teacher.OPENCLIPART).eval(), "untrained DINO": teacher.new_dino(teacher.OPENCLIPART).eval()}
    models |= {str(folder): teacher.load(folder) for folder in args.teachers}
    for name, model in models.items():
        bank, queries = teacher.features(model, train), teacher.features(model, test)
        for kind in bank:
            report(f"{name}, {kind}", bank[kind], queries[kind])


if __name__ == "__main__":
    main()
