"""Small files as torch.save writes them, and the same tensors as safetensors.

    $(scripts/python-env) scripts/golden/weights.py              # writes tests/golden/weights/
    $(scripts/python-env) scripts/golden/weights.py --out DIR    # writes them elsewhere
    $(scripts/python-env) scripts/golden/weights.py --teacher TEACHER --out DIR   # a teacher's folder with pytorch_model.bin

Each `NAME.pth` has a `NAME.safetensors` beside it with the names and values that a reader must find. `legacy.pth` and `module.pt`
have formats of their own; `remote.pth` asks its reader to run a function. `sharded/` is a set of three shards with its index.
"""

import argparse
import collections
import json
import pathlib

import numpy
import torch
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Runs:
    def __reduce__(self):
        import os

        return os.system, ("echo run > ran",)


class Scripted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Conv2d(1, 2, 2, bias=False))
        self.visual[0].weight.data = torch.arange(6.0).reshape(2, 3) / 8
        self.visual[0].bias.data = torch.tensor([1.5, -2.0])
        self.visual[1].weight.data = torch.arange(8.0).reshape(2, 1, 2, 2).half()
        self.register_buffer("logit_scale", torch.tensor(4.5))
        self.input_resolution: int = 224

    def forward(self, x):
        return self.visual[0](x)


def kinds():
    values = torch.tensor([[1.5, -2.25, 0.0], [3.0, 100.0, 5.0]])
    floats = {str(k)[6:]: values.to(k) for k in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
    ints = (torch.int64, torch.int32, torch.int16, torch.int8)
    return floats | {str(k)[6:]: values.to(k) for k in ints} | {"uint8": values.abs().to(torch.uint8)}


def views():
    base = torch.arange(24.0)
    return {
        "base": base,
        "transposed": base.view(4, 6).t(),
        "column": base.view(4, 6)[:, 2],
        "middle": base[5:11],
        "every_third": base[1::3],
        "scalar": base[7],
        "empty": base[3:3].view(0, 4),
        "one": torch.tensor([9.0]).view(1, 1, 1),
    }


def checkpoint():
    teacher = torch.nn.Linear(3, 2)
    teacher.weight.data = torch.arange(6.0).view(2, 3)
    teacher.bias.data = torch.tensor([0.5, 0.25])
    optimizer = torch.optim.AdamW(teacher.parameters())
    teacher(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = {
        "student": collections.OrderedDict(("module.backbone." + k, v + 1) for k, v in teacher.state_dict().items()),
        "teacher": collections.OrderedDict(("backbone." + k, v) for k, v in teacher.state_dict().items()),
        "parameters": {"weight": torch.nn.Parameter(torch.tensor([2.0, 4.0]))},
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(arch="vit_base", drop=0.1, betas=(0.9, 0.95), out=pathlib.PurePosixPath("out")),
        "epoch": 2**40,
        "best": numpy.float64(0.5),
        "loss": float("nan"),
        "big": 10**30,
        "seen": {1, 2},
        "fp16_scaler": None,
        "done": True,
    }
    named = {f"{top}.{k}": v for top in ("student", "teacher", "parameters") for k, v in saved[top].items()}
    return saved, named


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/golden/weights")
    parser.add_argument("--teacher", type=pathlib.Path)
    args = parser.parse_args()
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    if args.teacher:
        torch.save(load_file(args.teacher / "model.safetensors"), out / "pytorch_model.bin")
        for file in args.teacher.glob("*.json"):
            (out / file.name).write_text(file.read_text())
        return

    def save(name, saved, named=None, **how):
        torch.save(saved, out / f"{name}.pth", **how)
        named = saved if named is None else named
        save_file({k: v.detach().clone().contiguous() for k, v in named.items()}, out / f"{name}.safetensors")

    save("kinds", kinds())
    save("views", views())
    saved, named = checkpoint()
    for protocol in (2, 3, 4, 5):
        save(f"checkpoint{protocol}", saved, named, pickle_protocol=protocol)
    module = Scripted()
    save("whole", module.visual, module.visual.state_dict())
    torch.save({"a": torch.ones(2)}, out / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"a": torch.ones(2), "b": Runs()}, out / "remote.pth")
    torch.jit.script(module).save(str(out / "module.pt"))
    state = module.state_dict()
    save_file({k: v.clone().contiguous() for k, v in state.items()}, out / "module.safetensors")

    sharded = out / "sharded"
    sharded.mkdir(exist_ok=True)
    names = [n for n in kinds() if n != "int8"]
    shards = {f"model-{i + 1:05}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, mine in shards.items():
        save_file({n: kinds()[n] for n in mine}, sharded / file)
    index = {"metadata": {"total_size": 1}, "weight_map": {n: file for file, mine in shards.items() for n in mine}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
