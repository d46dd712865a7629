"""A whole model as a folder: its parts in their libraries' own formats, and a config that names them by `${here}`."""

import json
import os
import shutil
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from ldis_lightning.config_files import HERE, read_mapping
from ldis_lightning.conversion.building import Spec, build, settle
from ldis_lightning.errors import UserError
from ldis_lightning.instruction import PromptEncoder, TimmPromptEncoder
from ldis_lightning.latent import Autoencoder
from ldis_lightning.meta_architectures.base import InContextSegmenter

CONFIG, UNET, VAE, PROMPT_ENCODER, SCHEDULER = "config.yaml", "unet", "vae", "prompt_encoder", "scheduler"
CARD = "README.md"
CONTENT = {CONFIG, UNET, VAE, PROMPT_ENCODER, SCHEDULER, CARD}
PLAIN_OPTIMIZER = "torch.optim."
"""Optimizers that are there wherever the folder goes."""
HEADER = """# Written by `ldis convert`. ${here} is this file's folder, which can be moved as a whole.
#   ldis test --config THIS --config configs/benchmark.yaml
"""


def load_folder(folder: str | Path) -> InContextSegmenter:
    """The model in a folder that `ldis convert` wrote, in evaluation mode, float32, on the CPU.

    Raises:
        UserError: the folder is not there or lacks something.
    """
    config = Path(folder) / CONFIG
    if not config.is_file():
        raise UserError(f"`{folder}` is no folder of `ldis convert`: it has no {CONFIG}.")
    spec = read_mapping(config).get("model")
    if not isinstance(spec, dict) or "class_path" not in spec:
        raise UserError(f"`{config}` has no `model:` block with a class_path.")
    return build(spec).eval()


def check_out(out: Path, overwrite: bool) -> None:
    """Check that a folder may be written to `out`.

    Raises:
        UserError: something is there that may not be replaced. With `overwrite`, only a folder of ours may be.
    """
    if not out.exists() and not out.is_symlink():
        return
    if out.is_symlink() or not out.is_dir():
        raise UserError(f"{out} exists and is no folder: choose another place.")
    names = {entry.name for entry in out.iterdir()}
    if names and not (CONFIG in names and UNET in names and names <= CONTENT):
        raise UserError(f"{out} exists and holds something else than a converted model: choose another place.")
    if names and not overwrite:
        raise UserError(
            f"{out} exists: add --overwrite (`overwrite=True` in Python) to replace it, or choose another place."
        )


def write_folder(
    model: InContextSegmenter,
    spec: Spec,
    image_size: int,
    out: Path,
    overwrite: bool = False,
    card: str | None = None,
    half: bool = False,
) -> None:
    """Write a model whose adapters are merged, all files or none: they are prepared beside `out` and take its name at
    the end.

    Args:
        model: in float32.
        spec: what it was built from.
        image_size: side of the squares that it was trained on, in pixels.
        out: the folder.
        overwrite: replace a folder of ours.
        card: text of its README.md; None for no such file.
        half: store float16, half the size. It is read back as float32.

    Raises:
        UserError: `out` may not be written, or a part has no format to be written in.
    """
    out = Path(os.path.abspath(out))
    check_out(out, overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as hidden:
            files = Path(hidden, "new")
            files.mkdir()
            config = {"model": _write_parts(model, spec, files), "data": {"image_size": image_size}}
            text = yaml.safe_dump(config, sort_keys=False, width=120, allow_unicode=True)
            (files / CONFIG).write_text(HEADER + text, encoding="utf-8")
            if card is not None:
                (files / CARD).write_text(card, encoding="utf-8")
            for file in files.rglob("*.safetensors"):
                if half:
                    _halve(file)
                shutil.copymode(files / CONFIG, file)  # safetensors leaves its files to their owner alone
            check_out(out, overwrite)
            if out.exists():
                out.rename(Path(hidden, "replaced"))
            files.rename(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}. Choose another place.") from error


def _write_parts(model: InContextSegmenter, spec: Spec, folder: Path) -> Spec:
    """Write the parts and return the spec that reads them."""
    spec = deepcopy(spec)
    arguments = spec["init_args"]
    _save(model.unet, folder / UNET)
    arguments["denoiser"] = _part("PretrainedUNet", UNET)
    arguments["autoencoder"] = _write_autoencoder(model.autoencoder, folder / VAE)
    extractor = arguments["instruction"]["init_args"]
    extractor["encoder"] = _write_encoder(model.instruction.encoder, extractor["encoder"], folder / PROMPT_ENCODER)
    if save_scheduler := getattr(getattr(model, "scheduler", None), "save_pretrained", None):
        save_scheduler(folder / SCHEDULER)
    settle(spec, "fine_tuning", "execution")  # of the training that is over
    if not arguments["optimizer"]["class_path"].startswith(PLAIN_OPTIMIZER):
        rate = arguments["optimizer"].get("init_args", {}).get("lr")
        arguments["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": rate} if rate else {}}
    return spec


def _part(name: str, subfolder: str, **arguments: Any) -> Spec:
    init_args = {"path": HERE, "subfolder": subfolder, **arguments}
    return {"class_path": f"ldis_lightning.latent.{name}", "init_args": init_args}


def _write_autoencoder(autoencoder: Autoencoder, folder: Path) -> Spec:
    _check_plain(autoencoder, Autoencoder, ("encode_together", "encode", "decode"), "model.autoencoder")
    _save(autoencoder.vae, folder)
    return _part("PretrainedAutoencoder", VAE, sample=autoencoder.sample)


def _write_encoder(encoder: PromptEncoder, spec: Spec, folder: Path) -> Spec:
    """A timm transformer with its input for the mask, in the layout of timm's own folders on the hub."""
    _check_plain(encoder, TimmPromptEncoder, ("forward",), "model.instruction.encoder")
    assert isinstance(encoder, TimmPromptEncoder)
    vit, given = encoder.vit, spec.get("init_args", {})
    source, model_args = vit.pretrained_cfg, dict(given.get("model_args") or {})
    statistics = _statistics(encoder)
    if any(not np.allclose(value, source[key], atol=1e-6) for key, value in statistics.items()):
        model_args["pretrained_cfg_overlay"] = statistics  # other ones than timm knows of the model
    folder.mkdir()
    _save_tensors(vit, folder / "model.safetensors")
    config = {
        "architecture": source["architecture"],
        "num_classes": 0,
        "num_features": encoder.width,
        "model_args": {
            **{key: value for key, value in model_args.items() if key != "pretrained_cfg_overlay"},
            "in_chans": vit.patch_embed.proj.in_channels,
        },
        "pretrained_cfg": {"input_size": [3, encoder.image_size, encoder.image_size], **statistics},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    arguments = {
        "name": given.get("name") or source["architecture"],
        "trainable": encoder.trainable,
        "final_norm": not isinstance(vit.norm, nn.Identity),
        "model_args": model_args or None,
        "weights": f"{HERE}/{PROMPT_ENCODER}/model.safetensors",
    }
    return {"class_path": "ldis_lightning.instruction.TimmPromptEncoder", "init_args": arguments}


def _statistics(encoder: TimmPromptEncoder) -> dict[str, list[float]]:
    """Mean and deviation that the encoder takes from pictures in [0, 1]; it holds them for [-1, 1]."""
    mean, std = (encoder.mean + 1) / 2, encoder.std / 2
    return {key: [round(x, 6) for x in value.flatten().tolist()] for key, value in (("mean", mean), ("std", std))}


def _check_plain(part: Any, base: type, methods: tuple[str, ...], key: str) -> None:
    """A subclass that computes something else would be read back as its base class."""
    if not isinstance(part, base) or any(getattr(type(part), name) is not getattr(base, name) for name in methods):
        raise UserError(
            f"{key}: {type(part).__name__} cannot be written to a folder, only what computes as {base.__name__} does."
        )


def _save(module: Any, folder: Path) -> None:
    """In diffusers' format, in one file, without the path that the module was once read from."""
    module.register_to_config(_name_or_path="")
    module.to(memory_format=torch.contiguous_format)  # safetensors takes no other
    module.save_pretrained(folder, safe_serialization=True, max_shard_size="1TB")


def _halve(file: Path) -> None:
    tensors = load_file(file)
    large = next((name for name, one in tensors.items() if one.is_floating_point() and one.abs().max() > 65504), None)
    if large:
        raise UserError(f"{large} has values that float16 cannot hold: convert without --half.")
    halved = {name: one.half() if one.is_floating_point() else one for name, one in tensors.items()}
    save_file(halved, file, {"format": "pt"})


def _save_tensors(module: nn.Module, path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path, {"format": "pt"})
