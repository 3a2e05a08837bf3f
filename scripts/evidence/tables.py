"""The rows of every table: a name, and what is set on top of cifar10.toml."""

from dataclasses import dataclass

# Chosen by `run tune`, which asks validation images that no student sees: by 20-NN on the mean of patches. MAE has a rate of its own for each budget.
MAE_BLR, MAE_LONG_BLR = 2e-3, 4e-3
MIMIC_BLR = 16e-3
W_MIMIC = 4.0
TEACHERS = ("clip", "simclr", "outside")


@dataclass(frozen=True)
class Cache:
    """A cache of the training images: that of 2 views in f16 has every teacher there is, the others have clip alone."""

    views: int = 2
    codec: str = "f16"

    def stored(self) -> tuple[str, ...]:
        return TEACHERS if self == Cache() else ("clip",)

    def folder(self) -> str:
        return f"{self.views}views-{self.codec}"


@dataclass(frozen=True)
class Row:
    name: str
    settings: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()  # without one of them the row is left out
    epochs: float = 1  # in units of N, rounded up
    cache: Cache = Cache()
    online: tuple[str, ...] = ()  # teachers that run beside the student
    recipe: str = "scripts/evidence/cifar10.toml"
    measures: tuple[str, ...] = ("k-NN", "linear")

    def identity(self) -> str:
        """What the student is made of: rows that agree in it are the same run."""
        online = "".join(f", {name} online" for name in self.online)
        return f"{self.recipe}, {self.epochs:g} N, {self.cache.folder()}{online}: {' '.join(self.settings)}"


WIDE = ("k-NN", "linear", "fine-tuned")
DENSE = ("k-NN", "linear", "textures")
VALIDATION = ("validation",)


def mae(name: str, blr: float = MAE_BLR, more: tuple[str, ...] = (), **fields) -> Row:
    return Row(name, ("mimic.teachers=[]", "loss.w_rec=1.0", f"optim.blr={blr}", *more), **fields)


def mimic(name: str, *teachers: str, more: tuple[str, ...] = (), blr: float = MIMIC_BLR, w_mimic: float = W_MIMIC, **fields) -> Row:
    names = ", ".join(f'"{teacher}"' for teacher in teachers)
    settings = (f"mimic.teachers=[{names}]", f"loss.w_mimic={w_mimic}", f"optim.blr={blr}")
    return Row(name, settings + more, teachers, **fields)


FOCUSED = ("mask.kind=focused", "mask.teacher=clip")
FUSION = FOCUSED + ("model.fusion=[1]",)
STANDARDIZE = ("target.norm=standardize",)
PHI_S = ("target.norm=phi_s",)
# EUPE's heads and patch loss, and its normalization; UNIC's dropping on top.
EUPE = STANDARDIZE + ("mimic.head=mlp", "mimic.loss=cosine_smooth_l1")
DROP = EUPE + ("mimic.drop=0.5",)
BLRS = (2e-3, 4e-3, 8e-3, 16e-3, 32e-3)


def joint(*teachers: str) -> list[Row]:
    names = " + ".join(teachers)
    readings = [("as the paper", ()), ("standardize", STANDARDIZE), ("PHI-S", PHI_S), ("EUPE's heads and loss", EUPE), ("the same, dropping", DROP)]
    return [mimic(f"{names}, {reading}", *teachers, more=more, measures=DENSE) for reading, more in readings]


def views(stored: tuple[int, ...], epochs: float) -> list[Row]:
    rows = [mimic(f"{count} stored view{'s' * (count > 1)}", "clip", cache=Cache(count), epochs=epochs) for count in stored]
    return rows + [mimic("a fresh crop every time, online teacher", "clip", more=("data.fresh=1",), online=("clip",), epochs=epochs)]


TABLES = {
    "tune": [mae(f"MAE, rate {blr:g}", blr, measures=VALIDATION) for blr in (1e-3, *BLRS)]
    + [mae(f"MAE, 4 N epochs, rate {blr:g}", blr, epochs=4, measures=VALIDATION) for blr in (2e-3, 4e-3)]
    + [mimic(f"MR-MAE, rate {blr:g}, weight 4", "clip", blr=blr, measures=VALIDATION) for blr in BLRS]
    + [mimic("MR-MAE, rate 0.008, weight 1", "clip", blr=8e-3, w_mimic=1.0, measures=VALIDATION)],
    "a": [
        mae("MAE, N epochs", measures=WIDE),
        mae("MAE, the compute of MR-MAE and its cache", epochs=1.4),
        mae("MAE, 4 N epochs", MAE_LONG_BLR, epochs=4, measures=WIDE),
        mimic("MR-MAE of clip, N epochs", "clip", measures=WIDE),
        mimic("MR-MAE of simclr, N epochs", "simclr", measures=WIDE),
        mimic("MR-MAE of outside, N epochs", "outside", measures=WIDE),
    ],
    "b": [
        mae("pixels only (MAE)"),
        mimic("+ mimic", "clip"),
        mimic("+ focused mask", "clip", more=FOCUSED),
        mimic("+ fusion", "clip", more=FUSION),
        mimic("both losses at the decoder", "clip", more=FUSION + ("mimic.tokens=decoder_removed",)),
        mimic("mimic only", "clip", more=FUSION + ("loss.w_rec=0",)),
        mimic("+ masked convolutions, 128 pixels", "clip", more=FOCUSED, recipe="trainer/recipes/tiny_mcmae.toml"),
    ],
    "c": [
        *(
            mimic(f"{teacher} alone{how}", teacher, more=more, measures=DENSE)
            for teacher in TEACHERS
            for how, more in (("", ()), (", EUPE's heads and loss", EUPE))
        ),
        *joint("clip", "simclr"),
        *joint("clip", "outside"),
    ],
    # A run takes a view an epoch, so N = 5 epochs never see more than 5.
    "d": views((1, 2, 4, 8), 1),
    "d4": views((1, 2, 4, 16), 4),
    "e": [mimic(codec, "clip", cache=Cache(codec=codec)) for codec in ("f32", "f16", "bf16", "i8")],
    # For `--images 50000 --test-images 10000 --epochs 20 --finetune-epochs 5`, beside published MAEs of CIFAR-10.
    "published": [mae("MAE", MAE_LONG_BLR, more=("data.fresh=1.0",), cache=Cache(1), measures=WIDE)],
    "f": [
        mimic("the paper's method", "clip"),
        mimic("focused, top-k", "clip", more=(*FOCUSED, "mask.mode=topk")),
        mimic("block mask", "clip", more=("mask.kind=block",)),
        mimic("target none", "clip", more=("target.norm=none",)),
        mimic("target l2", "clip", more=("target.norm=l2",)),
        mimic("target standardize", "clip", more=STANDARDIZE),
        mimic("smooth L1", "clip", more=("mimic.loss=smooth_l1",)),
        mimic("cosine", "clip", more=("mimic.loss=cosine",)),
        mimic("+ CLS term", "clip", more=("loss.w_cls=1.0",)),
        mimic("drop path 0.1", "clip", more=("model.drop_path=0.1",)),
    ],
}
