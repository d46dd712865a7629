"""From the `model:` block of a config to the model, apart from data and Trainer."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, NoReturn

import torch
from diffusers import UNet2DConditionModel
from jsonargparse import ActionConfigFile, ArgumentParser

from ldis_lightning.errors import UserError
from ldis_lightning.latent import Denoiser
from ldis_lightning.meta_architectures.base import InContextSegmenter
from ldis_lightning.parse_errors import explain

Spec = dict[str, Any]
"""`{class_path, init_args}` of a model, with all defaults, as plain values."""


class EmptyUNet(Denoiser):
    """The U-Net of another denoiser with its memory uninitialised: weights that will be replaced are not read.

    Args:
        denoiser: says what the U-Net is like.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def build(self, latent_channels: int, token_width: int) -> UNet2DConditionModel:
        """See `Denoiser`."""
        try:
            with torch.device("meta"):
                unet = self.denoiser.build(latent_channels, token_width)
        except UserError:  # what it is like is only known from its files
            return self.denoiser.build(latent_channels, token_width)
        return unet.to_empty(device="cpu")


def emptied(spec: Spec) -> Spec:
    """The spec of the same model with an `EmptyUNet`."""
    spec = deepcopy(spec)
    inner = spec["init_args"]["denoiser"]
    spec["init_args"]["denoiser"] = {"class_path": f"{__name__}.EmptyUNet", "init_args": {"denoiser": inner}}
    return spec


def settle(spec: Spec, *names: str) -> None:
    """Set arguments to null, in place, where the model has them."""
    spec["init_args"].update({name: None for name in names if name in spec["init_args"]})


class _Parser(ArgumentParser):
    """Its errors are one short message each, a `UserError`; jsonargparse's own trials are left alone."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if self.exit_on_error:
            raise UserError(explain(message, ["model"])) from ex
        super().error(message, ex)


def _parser() -> ArgumentParser:
    parser = _Parser(prog="ldis")
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_subclass_arguments(InContextSegmenter, "model", required=True, fail_untyped=False)
    return parser


def read_spec(blocks: Sequence[Mapping[str, Any]]) -> Spec:
    """The spec of a model from the `model:` blocks of configs, later ones over earlier ones.

    Raises:
        UserError: a key or a value in them is wrong, or none names the class.
    """
    parser = _parser()
    parsed = parser.parse_args([arg for block in blocks for arg in ("--config", json.dumps({"model": block}))])
    return json.loads(json.dumps(parsed.model.as_dict(), default=str))


def build(spec: Spec) -> InContextSegmenter:
    """The model of a spec, in float32 on the CPU.

    Raises:
        UserError: a part cannot be built, e.g. its weights are missing, or the parts do not fit.
    """
    parser = _parser()
    parsed = parser.parse_object({"model": spec})
    try:
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name before 4.49
        built: Any = instantiate(parsed)
        return built.model
    except ValueError as error:
        raise _mistake(error) from error


def _mistake(error: BaseException) -> BaseException:
    """The `UserError` of a part, which jsonargparse wraps once for every union of types that the part lies in."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, UserError):
        inner = inner.__cause__
    return inner or error
