"""Whether weights fit a model, said before and after loading in words that name the config that would fit."""

from collections.abc import Mapping

from torch import Tensor

from ldis_lightning.checkpoints import left_out
from ldis_lightning.conversion.source import Source
from ldis_lightning.errors import UserError
from ldis_lightning.meta_architectures.base import InContextSegmenter
from ldis_lightning.suggestions import some


def load(source: Source, model: InContextSegmenter) -> None:
    """Give `model` the weights of `source`.

    Raises:
        UserError: they belong to another model; the message says how they differ and what to do.
    """
    target = source.target(model)
    own: dict[str, Tensor] = dict(target.named_parameters())
    own.update(target.named_buffers())
    _check_shapes(source, model, own)
    missing, unexpected = target.load_state_dict(source.state, strict=False)
    if target is model.unet:
        _check_frozen(source, model)
    if missing or unexpected:
        parts = [f"lacks {some(missing)}"] if missing else []
        parts += [f"has {some(unexpected)}, which the model has not"] if unexpected else []
        raise UserError(
            f"`{source.path}` does not fit the config's model, {type(model).__name__}: it {' and '.join(parts)}. "
            "Name with `--config` the config that it was trained with."
        )


def _check_frozen(source: Source, model: InContextSegmenter) -> None:
    """Raise the `UserError` of parts that neither the source nor the config's files hold."""
    held = left_out(model)
    random = [name for name, _ in model.named_parameters() if name not in held and not name.startswith("unet.")]
    if random:
        raise UserError(
            f"`{source.path}` holds a U-Net alone, and the config gives {some(random)} random weights: use a config "
            "whose prompt encoder and autoencoder read theirs from files, e.g. configs/ldis1.yaml."
        )


def _check_shapes(source: Source, model: InContextSegmenter, own: Mapping[str, Tensor]) -> None:
    """Raise the `UserError` of tensors with other shapes, the telling ones first."""
    wrong = {
        name: (tuple(tensor.shape), tuple(own[name].shape))
        for name, tensor in source.state.items()
        if name in own and tensor.shape != own[name].shape
    }
    if not wrong:
        return
    start = f"`{source.path}` does not fit the config's model, {type(model).__name__}: "
    if sizes := wrong.get(f"{source.unet_prefix}conv_in.weight"):
        raise UserError(start + _input_message(sizes[0][1], sizes[1][1], model.autoencoder.latent_channels))
    if sizes := wrong.get(f"{source.unet_prefix}encoder_hid_proj.weight"):
        raise UserError(
            f"{start}its projection takes tokens of width {sizes[0][1]}, but the config's prompt encoder "
            f"(model.instruction.encoder) makes tokens of width {sizes[1][1]}: use the encoder of its training."
        )
    name, (found, expected) = next(iter(wrong.items()))
    others = f" (and {len(wrong) - 1} more tensors)" if len(wrong) > 1 else ""
    raise UserError(
        f"{start}{name} has the shape {found}, but the model needs {expected}{others}. Name with `--config` the config "
        "that it was trained with."
    )


def _input_message(found: int, expected: int, latent: int) -> str:
    """What the channels of the U-Net's input tell of a file: the latent's alone, or the query's latent beside it."""
    kinds = {latent: ("LDIS-1", "configs/ldis1.yaml"), 2 * latent: ("LDIS-n", "configs/ldisn.yaml")}
    what = f"its U-Net takes {found} channels, the config's {expected}"
    if found not in kinds:
        return f"{what}; with latents of {latent} channels no model takes so many: check model.autoencoder."
    kind, config = kinds[found]
    return f"{what}. So it is an {kind}: use `--config {config}`, or the config that it was trained with."
