import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldis_lightning.alignment import Additive, Augmented, Perturbed, PseudoMask, Vanilla
from ldis_lightning.errors import UserError
from ldis_lightning.randomness import normal

MASK = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)  # one row of three pixels: background, foreground, ignored
IMAGE = torch.tensor([0.5, -0.25, 1.0]).view(1, 3, 1, 1).expand(1, 3, 1, 3)
SEED = torch.tensor([3])
RED, GREEN = [1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]

values = st.sampled_from([(-1.0, 1.0), (-0.5, 0.25), (-1.0, 0.0), (0.2, 0.9)])
seeds = st.integers(0, 2**32 - 1)


@st.composite
def queries(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Mask, image and seed of two queries: uniform pictures, extremes only, constant, adverse; any density of mask."""
    seed = draw(seeds)
    with tiny.seeded(seed):
        image = torch.rand(2, 3, 9, 7) * 2 - 1
        mask = (torch.rand(2, 9, 7) < draw(st.sampled_from([0, 0.1, 0.5, 1]))).to(torch.uint8)
        mask[torch.rand(2, 9, 7) < 0.1] = 255
    kind = draw(st.sampled_from(["uniform", "extremes", "constant", "adverse"]))
    if kind == "extremes":
        image = image.sign()
    elif kind == "constant":
        image = torch.full_like(image, draw(st.floats(-1, 1, width=32)))
    elif kind == "adverse":  # red where the mask is green and the other way round
        image = torch.where((mask == 1)[:, None], torch.tensor(RED).view(3, 1, 1), torch.tensor(GREEN).view(3, 1, 1))
    return mask, image, torch.tensor([seed, seed + 1])


def decodes_exactly(pseudo_mask: PseudoMask, mask: Tensor, image: Tensor, seed: Tensor) -> bool:
    picture = pseudo_mask.encode(mask, image, seed)
    assert picture.shape == image.shape
    assert picture.dtype == torch.float32
    assert picture.abs().max() <= 1 + 1e-6
    return torch.equal(pseudo_mask.logits(picture, image) > 0, mask == 1)


def pixels(picture: Tensor) -> list[list[float]]:
    """(1, 3, 1, 3) -> the colours of the three pixels."""
    return picture[0, :, 0].T.tolist()


def test_eq_2_background_is_red_and_foreground_green() -> None:
    pseudo_mask = Vanilla()
    picture = pseudo_mask.encode(MASK, IMAGE, SEED)
    assert pixels(picture) == [RED, GREEN, RED]
    assert pseudo_mask.logits(picture, IMAGE).tolist() == [[[-2, 2, -2]]]


def test_eq_2_with_other_values() -> None:
    picture = Vanilla(low=-0.5, high=0.25).encode(MASK, IMAGE, SEED)
    assert pixels(picture) == [[0.25, -0.5, -0.125], [-0.5, 0.25, -0.125], [0.25, -0.5, -0.125]]
    whole = Vanilla(-1, 1).encode(MASK, IMAGE, SEED)  # as whole numbers, as one would write them
    assert whole.dtype == torch.float32 and pixels(whole) == [RED, GREEN, RED]


def test_eq_3_mixes_in_the_image_and_eq_4_takes_it_out() -> None:
    pseudo_mask = Augmented()
    assert pseudo_mask.gamma == 0.4  # the released code's
    picture = pseudo_mask.encode(MASK, IMAGE, SEED)
    background = [0.6 * 1 + 0.4 * 0.5, 0.6 * -1 + 0.4 * -0.25, 0.4 * 1.0]
    foreground = [0.6 * -1 + 0.4 * 0.5, 0.6 * 1 + 0.4 * -0.25, 0.4 * 1.0]
    torch.testing.assert_close(torch.tensor(pixels(picture)), torch.tensor([background, foreground, background]))
    clean = pseudo_mask.remove_image(picture, IMAGE)
    torch.testing.assert_close(clean, 0.6 * Vanilla().encode(MASK, IMAGE, SEED))
    torch.testing.assert_close(pseudo_mask.logits(picture, IMAGE), torch.tensor([[[-1.2, 1.2, -1.2]]]))


def test_without_taking_the_image_out_augmented_masks_would_be_misread() -> None:
    mask, image = torch.ones(1, 1, 1, dtype=torch.uint8), torch.tensor(RED).view(1, 3, 1, 1)
    pseudo_mask = Augmented(0.6)
    picture = pseudo_mask.encode(mask, image, SEED)
    assert float(picture[0, 1] - picture[0, 0]) < 0 < float(pseudo_mask.logits(picture, image))


def test_the_first_versions_additive_mask() -> None:
    pseudo_mask = Additive(alpha=2.0)
    picture = pseudo_mask.encode(MASK, IMAGE, SEED)
    added = Vanilla().encode(MASK, IMAGE, SEED) + IMAGE / 2  # M_v + I / alpha, in [-1.5, 1.5]
    torch.testing.assert_close(picture * 1.5, added)
    torch.testing.assert_close(pseudo_mask.logits(picture, IMAGE), torch.tensor([[[-2.0, 2.0, -2.0]]]))
    torch.testing.assert_close(picture, Augmented(1 / 3).encode(MASK, IMAGE, SEED))


def test_perturbed_mixes_in_noise_of_the_episode() -> None:
    pseudo_mask = Perturbed(0.4)
    mask, image = tiny.masks(64), tiny.pictures(64, 3, 32, 32)
    seed = torch.arange(64)
    picture = pseudo_mask.encode(mask, image, seed)
    noise = (picture - 0.6 * Vanilla().encode(mask, image, seed)) / 0.4
    assert noise.abs().max() <= 1 + 1e-5
    inner = noise[noise.abs() < 0.999]
    assert inner.numel() / noise.numel() == pytest.approx(0.6827, abs=0.005)  # a standard normal within one deviation
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert torch.equal(picture, pseudo_mask.encode(mask, -image, seed))  # nothing of the image
    assert torch.equal(picture[5:6], pseudo_mask.encode(mask[5:6], image[5:6], seed[5:6]))
    assert not torch.equal(noise[0], noise[1])


@given(query=queries(), gamma=st.floats(0, 0.9), span=values)
@settings(max_examples=100, deadline=None)
def test_logits_of_encode_is_the_mask(
    query: tuple[Tensor, Tensor, Tensor], gamma: float, span: tuple[float, float]
) -> None:
    assert decodes_exactly(Vanilla(*span), *query)
    assert decodes_exactly(Augmented(gamma, *span), *query)
    assert decodes_exactly(Additive(1.1 + 10 * gamma, *span), *query)


@given(query=queries(), share=st.floats(0, 0.99), span=values)
@settings(max_examples=60, deadline=None)
def test_perturbed_is_exact_below_its_bound(
    query: tuple[Tensor, Tensor, Tensor], share: float, span: tuple[float, float]
) -> None:
    gap = span[1] - span[0]
    assert decodes_exactly(Perturbed(share * gap / (gap + 2), *span), *query)


@given(query=queries(), strength=st.floats(0.5, 0.9))
@settings(max_examples=30, deadline=None)
def test_perturbed_beyond_its_bound_errs_only_where_the_noise_wins(
    query: tuple[Tensor, Tensor, Tensor], strength: float
) -> None:
    mask, image, seed = query
    pseudo_mask = Perturbed(strength)
    wrong = (pseudo_mask.logits(pseudo_mask.encode(mask, image, seed), image) > 0) != (mask == 1)
    noise = normal(seed, "pseudo_mask", (3, 9, 7)).clamp(-1, 1)
    assert not wrong[(1 - strength) * 2 > strength * (noise[:, 1] - noise[:, 0]).abs() + 1e-6].any()


def test_the_bound_itself_is_not_below_it() -> None:
    """At strength 0.5 noise of (1, -1) just cancels a foreground pixel."""
    mask = torch.ones(4, 32, 32, dtype=torch.uint8)
    assert not decodes_exactly(Perturbed(0.5), mask, tiny.pictures(4, 3, 32, 32), torch.arange(4))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Vanilla(low=0.5, high=0.5),
        lambda: Vanilla(low=1.0, high=-1.0),
        lambda: Vanilla(low=-1.5),
        lambda: Augmented(high=1.1),
        lambda: Augmented(gamma=1.0),
        lambda: Augmented(gamma=-0.1),
        lambda: Augmented(gamma=float("nan")),
        lambda: Additive(alpha=1.0),
        lambda: Perturbed(strength=1.0),
        lambda: Perturbed(strength=-0.1),
    ],
)
def test_values_out_of_range_are_refused(build) -> None:
    with pytest.raises(UserError, match=r"^model\.pseudo_mask"):
        build()
