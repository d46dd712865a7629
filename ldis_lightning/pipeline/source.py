"""From what people call a model, a folder, a shipped name or a hub id, to a folder whose loading runs nothing of it."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ldis_lightning.config_files import read_mapping
from ldis_lightning.conversion.building import Spec
from ldis_lightning.conversion.folder import CONFIG, PROMPT_ENCODER, SCHEDULER, UNET, VAE
from ldis_lightning.errors import UserError, first_line
from ldis_lightning.suggestions import did_you_mean
from ldis_lightning.weights.known import SAFETENSORS

MODELS = Path(__file__).resolve().parent.parent / "models"
"""Folders of the models that come with the package, as `ldis convert` writes them."""
SHIPPED = ("tiny",)
"""Their names."""
FILES = (
    CONFIG,
    *(f"{part}/*.{kind}" for part in (UNET, VAE, PROMPT_ENCODER, SCHEDULER) for kind in ("json", "safetensors")),
)
"""What is downloaded of a hub repository."""
TEXTS = ("name", "path", "subfolder", "weights")
"""Arguments of components that are texts, whatever they look like."""
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
OF_TIMM = ("checkpoint_path", "pretrained_cfg", "cache_dir", "pretrained")
"""Arguments by which timm can be made to read files or addresses."""


def find_model(
    source: str | os.PathLike[str], revision: str | None = None, token: str | bool | None = None, offline: bool = False
) -> Path:
    """The folder of a model.

    Args:
        source: a folder of `ldis convert` or `save_pretrained`, the name of a shipped model, or a hub id.
        revision: branch, tag or commit on the hub.
        token: for the hub.
        offline: look at the hub's cache alone.

    Raises:
        UserError: there is no such model; the message says what to do.
    """
    text = os.fspath(source)
    if Path(text).expanduser().is_dir():
        return Path(text).expanduser()
    if (MODELS / text / CONFIG).is_file() and text in SHIPPED:
        return MODELS / text
    if text in SHIPPED:
        raise UserError(
            f"the model `{text}` does not come with this installation. Train it in minutes: `ldis fit --config "
            "configs/quickstart.yaml`, then `ldis convert runs/quickstart/version_0/checkpoints/last.ckpt --out "
            f"models/{text}`, and name that folder."
        )
    if not _may_be_on_hub(text):
        known = f"{did_you_mean(text, SHIPPED)}" or f"; shipped models: {', '.join(SHIPPED)}"
        raise UserError(f"there is no folder `{text}`{known}")
    return _download(text, revision, token, offline)


def _may_be_on_hub(text: str) -> bool:
    """A hub id of a model is `owner/name`."""
    return re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", text) is not None


def _download(hub_id: str, revision: str | None, token: str | bool | None, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {"revision": revision, "token": token, "local_files_only": offline}
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=list(FILES), **options))
    except Exception as error:  # the errors of its network clients have no class in common
        raise UserError(
            f"there is no folder `{hub_id}` here, and as a hub id it cannot be had ({type(error).__name__}: "
            f"{first_line(error)})."
        ) from error
    if not (folder / CONFIG).is_file():
        raise UserError(f"`{hub_id}` on the hub is no model of this package: it has no {CONFIG}.")
    return folder


def read_model(folder: Path, trust_classes: bool = False) -> tuple[Spec, int]:
    """What a folder's config says of its model, and the side of the pictures that it sees, in pixels.

    Without `trust_classes` a config may name nothing but components of this package, schedulers of diffusers and
    optimizers of torch, and read nothing but safetensors inside its folder.

    Raises:
        UserError: it is no such folder, or names something else; the message names the key.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"`{folder}` is no model: it has no {CONFIG}. `ldis convert CKPT --out FOLDER` writes one.")
    content = read_mapping(path)
    spec, size = content.get("model"), (content.get("data") or {}).get("image_size")
    if not isinstance(spec, dict) or "class_path" not in spec:
        raise UserError(f"`{path}` has no `model:` block with a class_path.")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"`{path}`: data.image_size is {size!r}: the side of the pictures in pixels is needed.")
    if not trust_classes:
        _check(spec, "model", path)
    return spec, size


def _check(value: Any, key: str, config: Path) -> None:
    """Look for whatever would import foreign code or read foreign files."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            _check(item, f"{key}[{number}]", config)
    elif isinstance(value, dict):
        for name, item in value.items():
            where = f"{key}.{name}"
            if name in OF_TIMM and item:
                raise UserError(f"`{config}`: {where} would read what lies outside the folder. {_consent()}")
            if name in ("path", "weights") and item is not None:
                _check_inside(item, value.get("subfolder") if name == "path" else None, where, config)
            if name not in TEXTS or not isinstance(item, str):
                _check(item, where, config)
            elif "://" in item or ":" in item:
                raise UserError(f"`{config}`: {where} names an address, `{item}`. {_consent()}")
    elif isinstance(value, str) and DOTTED.fullmatch(value) and not _is_ours(value):
        raise UserError(
            f"`{config}`: {key} names `{value}`, which is no component of ldis_lightning, scheduler of diffusers or "
            f"optimizer of torch: importing it runs its code. {_consent()}"
        )


def _consent() -> str:
    return "Where you trust the folder as you would trust a program, pass trust_classes=True."


def _check_inside(item: object, subfolder: object, key: str, config: Path) -> None:
    """Check a file of weights, or a path with what is read below it: a folder in diffusers' format."""
    path, is_file = Path(str(item), str(subfolder or "")), key.endswith("weights")
    try:
        path = path.expanduser()
        # Files, but not folders, of the hub's cache are links to where it keeps their bytes.
        path = path.parent.resolve() / path.name if is_file else path.resolve()
        inside = path.is_relative_to(config.parent.resolve())
    except (OSError, ValueError, RuntimeError):  # a zero byte, links in a circle, nobody's home
        inside = False
    if not inside:
        raise UserError(f"`{config}`: {key} is `{path}`, outside the folder: write ${{here}}/... {_consent()}")
    safe = path.suffix == ".safetensors" if is_file else (path / SAFETENSORS).is_file() and not any(path.glob("*.bin"))
    if not safe:
        raise UserError(f"`{config}`: {key}: weights must be safetensors, and `{path}` is something else. {_consent()}")


def _is_ours(name: str) -> bool:
    """Whether a dotted name is that of a class which may be made. Nothing but this package is imported for it."""
    module, _, attribute = name.rpartition(".")
    if re.fullmatch(r"torch\.optim(\.\w+)?", module):
        found: Any = getattr(torch.optim, attribute, None)
        return isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
    if module.split(".")[0] == "diffusers":
        import diffusers

        found = getattr(diffusers, attribute, None)
        return isinstance(found, type) and issubclass(found, SchedulerMixin)
    if module.split(".")[0] != "ldis_lightning":
        return False
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return False
    return isinstance(found, type) and found.__module__.startswith("ldis_lightning.")
