"""Students as timm and transformers load them, and as the reference code's training saves them.

    $(scripts/python-env) scripts/golden/students.py --load FORMAT --folder DIR --inputs FILE --out FILE
    $(scripts/python-env) scripts/golden/students.py --save --folder DIR --out DIR

`--load` builds what DIR/config.json says, loads DIR/model.safetensors strictly (nothing missing, nothing left over), and writes what
the package computes for `imgs` (and `noise`, `ids_keep`) of the input file; `FORMAT-classifier` is a fine-tuned network's folder. `--save` writes the tensors of a folder in MAE's names as
published and as training checkpoints have them. Used by trainer/src/commands/export/tests.rs, with random weights made there.
"""

import argparse
import json
import pathlib

import numpy
import torch
from safetensors.torch import load_file, save_file


def load_timm(folder, inputs):
    import timm

    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["architecture"], num_classes=0, global_pool="", **config["model_args"])
    print(model.load_state_dict(load_file(folder / "model.safetensors"), strict=True))
    model = model.eval()
    tokens = model(inputs["imgs"])
    # The way of people who were given the folder, without the size of anything.
    again = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0, global_pool="").eval()
    assert torch.equal(again(inputs["imgs"]), tokens)
    pooled = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(pooled(inputs["imgs"]), tokens[:, 0])
    data = timm.data.resolve_model_data_config(again)
    assert tuple(data["input_size"]) == tuple(inputs["imgs"].shape[1:]), data
    assert data["interpolation"] == "bicubic" and numpy.allclose(data["mean"], [0.485, 0.456, 0.406]), data
    return {"tokens": tokens}


def strictly(cls, folder, **how):
    model, info = cls.from_pretrained(folder, output_loading_info=True, **how)
    wrong = {key: value for key, value in info.items() if value}
    assert not wrong, wrong
    assert next(model.parameters()).dtype == torch.float32
    return model.eval()


def check_processor(folder, side):
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor.from_pretrained(folder)
    image = numpy.full((side, side, 3), 255, numpy.uint8)
    pixels = processor(image, return_tensors="pt")["pixel_values"][0]
    expected = [(1 - mean) / std for mean, std in zip([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    assert pixels.shape == (3, side, side)
    assert torch.allclose(pixels.mean((1, 2)), torch.tensor(expected), atol=1e-5), pixels.mean((1, 2))


def load_hf_mae(folder, inputs):
    from transformers import ViTMAEForPreTraining, ViTMAEModel

    imgs = inputs["imgs"]
    check_processor(folder, imgs.shape[-1])
    ordered = torch.arange(inputs["noise"].shape[1]).float().expand(len(imgs), -1)
    config = json.loads((folder / "config.json").read_text())
    if config["architectures"] == ["ViTMAEModel"]:
        encoder = strictly(ViTMAEModel, folder, mask_ratio=0.0)
        return {"tokens": encoder(imgs, noise=ordered).last_hidden_state}
    model = strictly(ViTMAEForPreTraining, folder)
    out = model(imgs, noise=inputs["noise"])
    latent = model.vit(imgs, noise=inputs["noise"]).last_hidden_state
    model.vit.config.mask_ratio = 0.0
    model.vit.embeddings.config.mask_ratio = 0.0
    tokens = model.vit(imgs, noise=ordered).last_hidden_state
    return {"tokens": tokens, "latent": latent, "pred": out.logits, "loss": out.loss.reshape(1), "mask": out.mask}


def load_hf_vit(folder, inputs):
    from transformers import ViTModel

    check_processor(folder, inputs["imgs"].shape[-1])
    model = strictly(ViTModel, folder, add_pooling_layer=False)
    return {"tokens": model(inputs["imgs"]).last_hidden_state}


def load_timm_classifier(folder, inputs):
    import timm

    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
    print(model.load_state_dict(load_file(folder / "model.safetensors"), strict=True))
    logits = model.eval()(inputs["imgs"])
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(again(inputs["imgs"]), logits)
    assert len(again.pretrained_cfg["label_names"]) == logits.shape[1], again.pretrained_cfg
    return {"logits": logits}


def load_hf_vit_classifier(folder, inputs):
    from transformers import ViTForImageClassification

    check_processor(folder, inputs["imgs"].shape[-1])
    model = strictly(ViTForImageClassification, folder)
    logits = model(inputs["imgs"]).logits
    assert len(model.config.id2label) == logits.shape[1] and "LABEL_0" not in model.config.id2label.values()
    return {"logits": logits}


def save(folder, out):
    """Of a whole student: what is published, the same with its decoder, and a training checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    encoder = {k: v for k, v in tensors.items() if not k.startswith("decoder_") and k != "mask_token"}
    torch.save({"model": encoder}, out / "mae_pretrain_vit.pth")
    torch.save({"model": tensors}, out / "mae_pretrain_vit_full.pth")
    params = [torch.nn.Parameter(v.clone()) for k, v in tensors.items() if "pos_embed" not in k]
    optimizer = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.95))
    sum(p.square().sum() for p in params).backward()
    optimizer.step()
    args = argparse.Namespace(
        batch_size=64, model="mae_vit", output_dir=pathlib.PosixPath("out"), dist_url="env://", device=torch.device("cpu"), lr=None,
        norm_pix_loss=True, blr=numpy.float64(1.5e-4),
    )  # fmt: skip
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 0}
    checkpoint = {"model": tensors, "optimizer": optimizer.state_dict(), "epoch": 799, "scaler": scaler, "args": args}
    torch.save(checkpoint, out / "checkpoint-799.pth")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    loaders = {
        "timm": load_timm, "hf-mae": load_hf_mae, "hf-vit": load_hf_vit,
        "timm-classifier": load_timm_classifier, "hf-vit-classifier": load_hf_vit_classifier,
    }  # fmt: skip
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--load", choices=loaders)
    what.add_argument("--save", action="store_true")
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--inputs", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.save:
        return save(args.folder, args.out)
    with torch.no_grad():
        found = loaders[args.load](args.folder, load_file(args.inputs))
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, args.out)


if __name__ == "__main__":
    main()
