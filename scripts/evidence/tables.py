"""The rows of every table: a name, and what is set on top of cifar10.toml."""

from dataclasses import dataclass, field

# Chosen by `run tune` on 5,000 training images that nothing else uses: for MAE and MR-MAE alike the rate with the best k-NN.
MAE_BLR = 4e-3
MIMIC_BLR = 4e-3
W_MIMIC = 4.0


@dataclass(frozen=True)
class Cache:
    """A cache of the training images. `stored` are the teachers whose features it holds."""

    stored: tuple[str, ...]
    views: int = 2
    codec: str = "f16"

    def folder(self) -> str:
        return f"{'-'.join(self.stored)}-{self.views}views-{self.codec}"


@dataclass(frozen=True)
class Row:
    name: str
    settings: tuple[str, ...] = ()
    epochs: float = 1  # in units of N, rounded up
    cache: Cache = field(default_factory=lambda: Cache(TEACHERS))
    wide: bool = False  # evaluated by fine-tuning too


TEACHERS = ("clip", "dino", "outside")


def pixels_only(blr: float = MAE_BLR) -> tuple[str, ...]:
    return ("mimic.teachers=[]", "loss.w_rec=1.0", f"optim.blr={blr}")


def mimic(*teachers: str, blr: float = MIMIC_BLR, w_mimic: float = W_MIMIC) -> tuple[str, ...]:
    names = ", ".join(f'"{teacher}"' for teacher in teachers)
    return (f"mimic.teachers=[{names}]", f"loss.w_mimic={w_mimic}", f"optim.blr={blr}")


FOCUSED = ("mask.kind=focused", "mask.teacher=clip")
FUSION = ("model.fusion=[1]",)
BLRS = (1e-3, 2e-3, 4e-3, 8e-3)

TABLES = {
    "tune": [Row(f"MAE, rate {blr:g}", pixels_only(blr)) for blr in BLRS]
    + [Row(f"MR-MAE, rate {blr:g}, weight {w:g}", mimic("clip", blr=blr, w_mimic=w)) for blr in BLRS for w in (1.0, 4.0)],
    "a": [
        Row("MAE, N epochs", pixels_only(), wide=True),
        Row("MAE, the compute of MR-MAE and its cache", pixels_only(), epochs=1.4),
        Row("MAE, 4 N epochs", pixels_only(), epochs=4, wide=True),
        Row("MR-MAE of CLIP, N epochs", mimic("clip"), wide=True),
        Row("MR-MAE of DINO, N epochs", mimic("dino"), wide=True),
        Row("MR-MAE of the outside teacher, N epochs", mimic("outside"), wide=True),
    ],
    "b": [
        Row("pixels only (MAE)", pixels_only()),
        Row("+ mimic", mimic("clip")),
        Row("+ focused mask", mimic("clip") + FOCUSED),
        Row("+ fusion", mimic("clip") + FOCUSED + FUSION),
        Row("both losses at the decoder", mimic("clip") + FOCUSED + FUSION + ("mimic.tokens=decoder_removed",)),
        Row("mimic only", mimic("clip") + FOCUSED + FUSION + ("loss.w_rec=0",)),
    ],
    "c": [
        Row("CLIP", mimic("clip")),
        Row("DINO", mimic("dino")),
        Row("outside", mimic("outside")),
        Row("CLIP + DINO, as the paper", mimic("clip", "dino")),
        Row("CLIP + DINO, standardize", mimic("clip", "dino") + ("target.norm=standardize",)),
        Row("CLIP + DINO, PHI-S", mimic("clip", "dino") + ("target.norm=phi_s",)),
        Row("CLIP + outside, as the paper", mimic("clip", "outside")),
        Row("CLIP + outside, standardize", mimic("clip", "outside") + ("target.norm=standardize",)),
        Row("CLIP + outside, PHI-S", mimic("clip", "outside") + ("target.norm=phi_s",)),
    ],
    "d": [Row(f"{views} stored views", mimic("clip"), cache=Cache(("clip",), views)) for views in (1, 2, 4, 8, 16)],
    "e": [Row(codec, mimic("clip"), cache=Cache(("clip",), 2, codec)) for codec in ("f32", "f16", "bf16", "i8")],
}
