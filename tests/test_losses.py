from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from ldis_lightning.losses import Alignment, AlignmentLoss, DiceCrossEntropy, LatentLoss, PixelLoss


def double(latent: Tensor) -> Tensor:
    """A decoder to compute by hand: three of four channels, enlarged, doubled."""
    return 2 * latent[:, :3].repeat_interleave(4, 2).repeat_interleave(4, 3)


def difference(picture: Tensor) -> Tensor:
    return picture[:, 1] - picture[:, 0]


def make_alignment(**changes: Any) -> Alignment:
    """Three episodes of 8 x 8 pixels, latents 2 x 2."""
    mask = tiny.masks(3, 8, seed=4)
    mask[1, :, :5] = 255
    parts = {
        "latent": tiny.pictures(3, 4, 2, 2, seed=1),
        "target_latent": tiny.pictures(3, 4, 2, 2, seed=2),
        "target_picture": tiny.pictures(3, 3, 8, 8, seed=3),
        "mask": mask,
        "valid": torch.ones(3, dtype=torch.bool),
        "decode": double,
        "to_logits": difference,
    }
    return Alignment(**(parts | changes))


def arrays(alignment: Alignment) -> tuple[np.ndarray, ...]:
    parts = alignment.latent, alignment.target_latent, alignment.target_picture, alignment.mask
    return tuple(part.numpy().astype(np.float64) for part in parts)


def decoded(latent: np.ndarray) -> np.ndarray:
    return 2 * np.kron(latent[:, :3], np.ones((1, 1, 4, 4)))


def test_latent_loss_is_eq_6() -> None:
    alignment = make_alignment()
    latent, target, _, _ = arrays(alignment)
    assert float(LatentLoss()(alignment)) == pytest.approx(np.mean((target - latent) ** 2))


def test_pixel_loss_is_eq_5_over_the_counted_pixels() -> None:
    alignment = make_alignment()
    latent, _, target, mask = arrays(alignment)
    squared = ((target - decoded(latent)) ** 2).mean(1)
    expected = np.mean([squared[i][mask[i] != 255].mean() for i in range(3)])
    assert float(PixelLoss()(alignment)) == pytest.approx(expected)


def test_dice_and_cross_entropy_by_hand() -> None:
    alignment = make_alignment()
    latent, _, _, mask = arrays(alignment)
    picture = decoded(latent)
    dice, entropy = [], []
    for i in range(3):
        counted = mask[i] != 255
        truth = (mask[i] == 1)[counted]
        p = 1 / (1 + np.exp(-4 * (picture[i, 1] - picture[i, 0])[counted]))
        dice.append(1 - (2 * p[truth].sum() + 1) / (p.sum() + truth.sum() + 1))
        entropy.append(-np.where(truth, np.log(p), np.log(1 - p)).mean())
    loss = DiceCrossEntropy(dice=0.7, cross_entropy=0.2, temperature=4.0)
    assert float(loss(alignment)) == pytest.approx(0.7 * np.mean(dice) + 0.2 * np.mean(entropy), rel=1e-5)


def test_dice_and_cross_entropy_of_the_truth_vanish() -> None:
    mask = tiny.masks(2, 8)
    right = torch.where(mask == 1, 20.0, -20.0)
    parts = {"mask": mask, "valid": torch.ones(2, dtype=torch.bool), "decode": lambda _: right}
    alignment = make_alignment(**parts, to_logits=lambda picture: picture)
    assert float(DiceCrossEntropy()(alignment)) == pytest.approx(0, abs=1e-5)


LOSSES = [LatentLoss(), PixelLoss(), DiceCrossEntropy()]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_invalid_episodes_count_nowhere(loss: AlignmentLoss) -> None:
    whole = make_alignment(valid=torch.tensor([True, False, True]))
    keep = [0, 2]
    names = "latent", "target_latent", "target_picture", "mask", "valid"
    part = make_alignment(**{name: getattr(whole, name)[keep] for name in names})
    assert float(loss(whole)) == pytest.approx(float(loss(part)))
    assert float(loss(make_alignment(valid=torch.zeros(3, dtype=torch.bool)))) == 0


@pytest.mark.parametrize("loss", [PixelLoss(), DiceCrossEntropy()], ids=lambda loss: type(loss).__name__)
def test_ignored_pixels_count_nowhere(loss: AlignmentLoss) -> None:
    mask = tiny.masks(3, 8, seed=4)
    mask[:, :4, :4] = 255  # just the block of one latent pixel
    latent = tiny.pictures(3, 4, 2, 2, seed=1)
    changed = latent.clone()
    changed[:, :, 0, 0] += 3
    assert float(loss(make_alignment(mask=mask, latent=latent))) == float(
        loss(make_alignment(mask=mask, latent=changed))
    )
    assert float(loss(make_alignment(mask=mask, latent=latent))) != float(loss(make_alignment(latent=latent)))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_a_query_of_ignored_pixels_only_is_finite(loss: AlignmentLoss) -> None:
    value = loss(make_alignment(mask=torch.full((3, 8, 8), 255, dtype=torch.uint8)))
    assert bool(value.isfinite())


def test_the_decoder_runs_once_and_only_if_asked() -> None:
    calls = []

    def decode(latent: Tensor) -> Tensor:
        calls.append(latent)
        return double(latent)

    alignment = make_alignment(decode=decode)
    LatentLoss()(alignment)
    assert not calls
    PixelLoss()(alignment)
    DiceCrossEntropy()(alignment)
    assert len(calls) == 1


@pytest.mark.parametrize("loss", [PixelLoss(), DiceCrossEntropy()], ids=lambda loss: type(loss).__name__)
def test_the_gradient_flows_through_the_frozen_decoder(loss: AlignmentLoss) -> None:
    autoencoder = tiny.autoencoder()
    latent = tiny.pictures(3, 4, 8, 8).requires_grad_()
    size = tiny.PICTURE
    alignment = make_alignment(
        latent=latent,
        target_picture=tiny.pictures(3, 3, size, size, seed=3),
        mask=tiny.masks(3),
        decode=autoencoder.decode,
    )
    loss(alignment).backward()
    assert latent.grad is not None and bool((latent.grad.flatten(1).abs().sum(1) > 0).all())
    assert all(weight.grad is None for weight in autoencoder.parameters())
