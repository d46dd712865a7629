"""A training step never waits for the device: on the meta device, which holds no values, it would fail if it did."""

from typing import Any

import pytest
import tiny
import torch

from ldis_lightning.alignment import Additive, Augmented, Perturbed, Vanilla
from ldis_lightning.instruction import (
    AlphaChannel,
    CropToMask,
    CrossAttentionMask,
    NoPostMasking,
    NoPreMasking,
    PixelProduct,
    PrototypePooling,
)
from ldis_lightning.losses import DiceCrossEntropy, LatentLoss, PixelLoss

EPISODES = tiny.batch(2)
BATCH: Any = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in EPISODES.items()}


def step(module: Any) -> torch.Tensor:
    loss = module.train().training_loss(BATCH)["loss"]
    loss.backward()
    return loss


def test_this_would_be_noticed() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        BATCH["seed"].sum().item()


@pytest.mark.parametrize("pseudo_mask", [Vanilla, Augmented, Additive, Perturbed])
@pytest.mark.parametrize("build", [tiny.ldis1, tiny.ldisn])
def test_pseudo_masks(build: Any, pseudo_mask: Any) -> None:
    with torch.device("meta"):
        assert step(build(pseudo_mask=pseudo_mask())).is_meta


@pytest.mark.parametrize("pre_mask", [NoPreMasking, PixelProduct, AlphaChannel, CropToMask])
@pytest.mark.parametrize("post_mask", [NoPostMasking, CrossAttentionMask, PrototypePooling])
def test_masking(pre_mask: Any, post_mask: Any) -> None:
    with torch.device("meta"):
        assert step(tiny.ldis1(instruction=tiny.extractor(pre_mask(), post_mask()))).is_meta


def test_losses_and_noise() -> None:
    with torch.device("meta"):
        losses = [LatentLoss(), PixelLoss(), DiceCrossEntropy()]
        module = tiny.ldis1(losses=losses, add_noise=True, timestep=300, autoencoder=tiny.autoencoder(sample=True))
        assert step(module).is_meta


def test_the_null_instruction() -> None:
    with torch.device("meta"):
        assert step(tiny.ldisn(null_keeps_mask=False)).is_meta


class Waited(Exception):
    pass


def wait(_: object) -> None:
    raise Waited


def test_many_references_are_worth_waiting_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their count is read to drop those that nothing attends to; that of few is not."""
    monkeypatch.setattr("ldis_lightning.meta_architectures.base.compact", wait)
    many = tiny.batch(1, references=20)
    batch: Any = {name: v.to("meta") if isinstance(v, torch.Tensor) else v for name, v in many.items()}
    with torch.device("meta"):
        tiny.ldis1().train().training_loss(BATCH)
        with pytest.raises(Waited):
            tiny.ldis1().train().training_loss(batch)
