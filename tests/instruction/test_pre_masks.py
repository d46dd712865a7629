import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldis_lightning.instruction import AlphaChannel, CropToMask, NoPreMasking, PixelProduct, PreMask
from ldis_lightning.instruction.pre_masks import bounding_boxes

SIZE = 16
seeds = st.integers(0, 2**32 - 1)


def rectangle(top: int, bottom: int, left: int, right: int, size: int = SIZE) -> Tensor:
    mask = torch.zeros(1, size, size)
    mask[:, top:bottom, left:right] = 1
    return mask


def random_masks(seed: int, count: int, shape: tuple[int, int]) -> np.ndarray:
    """Masks of every density, empty and full ones among them."""
    generator = np.random.default_rng(seed)
    density = generator.choice([0, 0.01, 0.1, 0.5, 1], (count, 1, 1))
    return generator.random((count, *shape)) < density


@pytest.mark.parametrize("pre_mask", [NoPreMasking(), PixelProduct(), AlphaChannel(), CropToMask()])
def test_shapes_and_kinds(pre_mask: PreMask) -> None:
    image, mask = tiny.pictures(5, 3, SIZE, SIZE), (tiny.masks(5, SIZE) == 1).float()
    prompt = pre_mask(image, mask)
    assert (prompt.image.shape, prompt.alpha.shape, prompt.mask.shape) == (image.shape, (5, 1, SIZE, SIZE), mask.shape)
    assert set(prompt.mask.unique().tolist()) == {0, 1}
    assert prompt.image.abs().max() <= 1 + 1e-6


def test_no_pre_masking_hides_the_mask_from_the_encoder() -> None:
    image, mask = tiny.pictures(2, 3, SIZE, SIZE), rectangle(2, 5, 3, 9).repeat(2, 1, 1)
    prompt = NoPreMasking()(image, mask)
    assert torch.equal(prompt.image, image)
    assert not prompt.alpha.any()
    assert torch.equal(prompt.mask, mask)


def test_pixel_product_blanks_the_background() -> None:
    image, mask = tiny.pictures(1, 3, SIZE, SIZE), rectangle(2, 5, 3, 9)
    prompt = PixelProduct()(image, mask)
    expected = torch.zeros_like(image)
    expected[:, :, 2:5, 3:9] = image[:, :, 2:5, 3:9]
    assert torch.equal(prompt.image, expected)
    assert not prompt.alpha.any()
    assert torch.equal(prompt.mask, mask)


def test_alpha_channel_is_normalised_as_in_alpha_clip() -> None:
    image, mask = tiny.pictures(1, 3, SIZE, SIZE), rectangle(2, 5, 3, 9)
    prompt = AlphaChannel()(image, mask)
    assert torch.equal(prompt.image, image)
    assert prompt.alpha[0, 0, 3, 4].item() == pytest.approx((1 - 0.5) / 0.26)
    assert prompt.alpha[0, 0, 0, 0].item() == pytest.approx((0 - 0.5) / 0.26)
    assert torch.equal(prompt.alpha[:, 0] > 0, mask == 1)


@given(seed=seeds, height=st.integers(1, 12), width=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_bounding_boxes(seed: int, height: int, width: int) -> None:
    masks = random_masks(seed, 4, (height, width))
    low, high = bounding_boxes(torch.from_numpy(masks).float())
    for i, mask in enumerate(masks):
        ys, xs = np.nonzero(mask) if mask.any() else np.nonzero(np.ones_like(mask))
        # Pixel n of N covers [2n/N - 1, 2(n+1)/N - 1].
        expected_low = [2 * xs.min() / width - 1, 2 * ys.min() / height - 1]
        expected_high = [2 * (xs.max() + 1) / width - 1, 2 * (ys.max() + 1) / height - 1]
        assert low[i].tolist() == pytest.approx(expected_low, abs=1e-6)
        assert high[i].tolist() == pytest.approx(expected_high, abs=1e-6)


@pytest.mark.parametrize("mask", [rectangle(0, 0, 0, 0), rectangle(0, SIZE, 0, SIZE)], ids=["empty", "full"])
def test_crop_keeps_the_whole_picture_where_there_is_no_box(mask: Tensor) -> None:
    image = tiny.pictures(1, 3, SIZE, SIZE)
    prompt = CropToMask()(image, mask)
    torch.testing.assert_close(prompt.image, image, rtol=0, atol=1e-5)
    assert torch.equal(prompt.mask, mask)
    assert not prompt.alpha.any()


def test_crop_without_margin_is_the_box_resized() -> None:
    image = tiny.pictures(1, 3, SIZE, SIZE)
    prompt = CropToMask(margin=0, min_size=0.1)(image, rectangle(4, 12, 2, 10))
    expected = torch.nn.functional.interpolate(image[:, :, 4:12, 2:10], (SIZE, SIZE), mode="bilinear")
    inner = slice(1, -1)  # at its border the crop sees the pixels beyond
    torch.testing.assert_close(prompt.image[:, :, inner, inner], expected[:, :, inner, inner], rtol=0, atol=1e-5)
    assert bool(prompt.mask.all())


def test_a_speck_is_not_blown_up_beyond_the_smallest_size() -> None:
    prompt = CropToMask(margin=0, min_size=0.25)(tiny.pictures(1, 3, SIZE, SIZE), rectangle(8, 9, 8, 9))
    assert int(prompt.mask.sum()) == 16  # the crop is 4 x 4 pixels, so each becomes 4 x 4


@given(seed=seeds, margin=st.floats(0, 0.5), min_size=st.floats(0.1, 1))
@settings(max_examples=40, deadline=None)
def test_cropped_image_and_mask_stay_aligned(seed: int, margin: float, min_size: float) -> None:
    """The picture holds its own coordinates, so a cropped pixel says where it came from, and the mask must agree."""
    masks = random_masks(seed, 3, (SIZE, SIZE))
    centres = (2 * torch.arange(SIZE) + 1) / SIZE - 1
    x, y = centres.expand(SIZE, SIZE), centres[:, None].expand(SIZE, SIZE)
    image = torch.stack([x, y, torch.ones_like(x)]).expand(3, -1, -1, -1)
    prompt = CropToMask(margin, min_size)(image, torch.from_numpy(masks).float())
    for i, mask in enumerate(masks):
        column, row = (((prompt.image[i, axis].numpy() + 1) * SIZE - 1) / 2 for axis in (0, 1))  # in pixels
        inside = prompt.image[i, 2].numpy() > 0.999
        tie = (np.abs(column % 1 - 0.5) < 1e-3) | (np.abs(row % 1 - 0.5) < 1e-3)
        sure = inside & ~tie
        source = mask[row[sure].round().astype(int), column[sure].round().astype(int)]
        assert np.array_equal(prompt.mask[i].numpy()[sure] == 1, source)
        assert bool(prompt.mask[i].any()) == bool(mask.any())
