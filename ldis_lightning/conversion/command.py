"""`ldis convert`: a checkpoint, ours or the authors', as a folder that holds the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldis_lightning.command_line import Parser
from ldis_lightning.errors import UserError

if TYPE_CHECKING:
    from ldis_lightning.conversion.building import Spec
    from ldis_lightning.conversion.source import Source
    from ldis_lightning.meta_architectures.base import InContextSegmenter

DESCRIPTION = """Write a whole model as a folder: U-Net, autoencoder and prompt encoder in safetensors, and a config
for `ldis test --config FOLDER/config.yaml --config configs/benchmark.yaml`, which then needs no other file. Adapters
(LoRA) are merged. Nothing that a file contains is executed."""

DEFAULT_IMAGE_SIZE = 64
"""The datamodule's own default."""


def main(args: Sequence[str]) -> int:
    """Run `ldis convert`.

    Raises:
        UserError: the command line or a config is wrong, or the weights are missing, damaged or of another model.
    """
    options = _parser().parse(args)
    out = Path(options.out)
    from ldis_lightning.conversion.building import read_spec, settle
    from ldis_lightning.conversion.folder import check_out, write_folder
    from ldis_lightning.conversion.source import read_source

    check_out(out, options.overwrite)
    if not options.src.exists():
        raise UserError(f"`{options.src}` does not exist: name a file, or the folder of a sharded checkpoint.")
    blocks, image_size = model_blocks(options.src, options.config)
    spec = read_spec(blocks)
    source = read_source(options.src, options.weights)
    settle(spec, "execution")
    if not source.whole:  # a complete U-Net: there are no adapters
        settle(spec, "fine_tuning")
    model = restore(source, spec)
    write_folder(model, spec, image_size, out, options.overwrite, half=options.half)
    _report(source, model, out)
    return 0


def model_blocks(src: Path, names: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """The `model:` blocks of configs, after that of the run that a checkpoint is from where they name no class, and the
    side of a picture in pixels.

    Raises:
        UserError: a config is missing or wrong, or no model is named anywhere.
    """
    import json

    from ldis_lightning.config_files import read_mapping, resolve_configs, with_parents
    from ldis_lightning.lightning_cli import import_components, model_of_checkpoint

    import_components()  # so that short names of classes are known
    _, paths = resolve_configs([part for name in names for part in ("--config", name)])
    contents = [read_mapping(file) for path in paths for file in with_parents(path)]
    of_run = model_of_checkpoint(["--ckpt_path", str(src)], paths)
    contents = [*(json.loads(text) for text in of_run[1::2]), *contents]
    sizes = [(content.get("data") or {}).get("image_size") for content in contents]
    blocks = [content["model"] for content in contents if content.get("model")]
    return blocks, next((size for size in reversed(sizes) if size), DEFAULT_IMAGE_SIZE)


def restore(source: Source, spec: Spec) -> InContextSegmenter:
    """The model with the weights of `source`, its adapters merged.

    The U-Net's pretrained weights are read only where the source lacks some of them, as a checkpoint of adapters does.

    Raises:
        UserError: a part is missing, or the weights are of another model.
    """
    from ldis_lightning.conversion.building import build, emptied
    from ldis_lightning.conversion.matching import load

    model = build(emptied(spec))
    load(source, model)
    names = (name for tensors in (model.unet.named_parameters(), model.unet.named_buffers()) for name, _ in tensors)
    if any(f"{source.unet_prefix}{name}" not in source.state for name in names):
        model = build(spec)
        load(source, model)
    model.on_load_checkpoint(dict(source.rest))
    model.fine_tuning.merge(model.unet)
    return model.eval()


def _report(source: Source, model: InContextSegmenter, out: Path) -> None:
    for part, count in source.aside.items():
        print(f"not used: {count} tensors below `{part}`")
    count = sum(parameter.numel() for parameter in model.unet.parameters())
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{source.path}: {source.kind}; {type(model).__name__}, U-Net of {count:,} parameters")
    print(f"{out}: {size / 1e6:,.1f} MB")


def _parser() -> Parser:
    parser = Parser("ldis convert", DESCRIPTION)
    parser.add_argument(
        "src",
        type=Path,
        metavar="SRC",
        help="a checkpoint of `ldis fit` (a file, or a sharded folder), or any file of torch or safetensors that holds "
        "a U-Net with diffusers' names, such as the authors' mp_rank_00_model_states.pt",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the model is written")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="config of the model, e.g. configs/ldis1.yaml; may be repeated (default: that of the checkpoint's run)",
    )
    parser.add_argument(
        "--weights",
        choices=("averaged", "raw"),
        help="of a run that averaged its weights (EMA): which ones (default: averaged where there are any)",
    )
    parser.add_argument("--half", action="store_true", help="store float16, half the size; it is read back as float32")
    parser.add_argument("--overwrite", action="store_true", help="replace FOLDER if it is a converted model")
    return parser
