import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldis_lightning.instruction import CrossAttentionMask, NoPostMasking, PostMask, PrototypePooling
from ldis_lightning.instruction.post_masks import foreground_tokens

SIZE, GRID = 16, 4
TOKENS = tiny.pictures(2, GRID * GRID, 8)


def mask_of(*pixels: tuple[int, int]) -> Tensor:
    mask = torch.zeros(1, SIZE, SIZE)
    for row, column in pixels:
        mask[0, row, column] = 1
    return mask


def random_mask(seed: int, density: float) -> Tensor:
    with tiny.seeded(seed):
        return (torch.rand(1, SIZE, SIZE) < density).float()


def test_no_post_masking_attends_to_everything() -> None:
    tokens, attended = NoPostMasking()(TOKENS, torch.zeros(2, SIZE, SIZE))
    assert torch.equal(tokens, TOKENS)
    assert attended.shape == (2, 16) and bool(attended.all())


@given(seed=st.integers(0, 2**32 - 1), density=st.floats(0.2, 1))
@settings(max_examples=30, deadline=None)
def test_the_grid_is_nearest_in_the_order_of_the_tokens(seed: int, density: float) -> None:
    mask = random_mask(seed, density)
    mask[0, 0, 0] = 1
    # Nearest resizing from 16 to 4 takes every fourth pixel; tokens go row by row from the top left.
    expected = [bool(mask[0, 4 * (i // GRID), 4 * (i % GRID)]) for i in range(GRID * GRID)]
    tokens, attended = CrossAttentionMask()(TOKENS[:1], mask)
    assert torch.equal(tokens, TOKENS[:1])
    assert attended[0].tolist() == expected


def test_a_thin_object_gets_the_token_it_covers_best() -> None:
    line = mask_of(*((6, column) for column in range(1, 8)))  # 3 pixels in token (1, 0), 4 in token (1, 1)
    assert foreground_tokens(line, GRID * GRID)[0].nonzero().flatten().tolist() == [1 * GRID + 1]


@given(seed=st.integers(0, 2**32 - 1), density=st.sampled_from([0.0, 0.005, 0.02, 0.3]))
@settings(max_examples=60, deadline=None)
def test_a_row_is_never_empty_and_never_attends_to_pure_background(seed: int, density: float) -> None:
    mask = random_mask(seed, density)
    attended = foreground_tokens(mask, GRID * GRID)[0]
    covered = mask[0].reshape(GRID, 4, GRID, 4).sum((1, 3)).flatten() > 0
    assert bool(attended.any())
    if covered.any():
        assert bool(covered[attended].all())


def test_a_prototype_is_the_mean_of_the_foreground_tokens() -> None:
    masks = torch.zeros(2, SIZE, SIZE)
    masks[0, :4, :8] = 1  # tokens 0, 1
    masks[1, 8:12, 4:16] = 1  # tokens 9, 10, 11
    prototype, attended = PrototypePooling()(TOKENS, masks)
    assert prototype.shape == (2, 1, 8)
    torch.testing.assert_close(prototype[0, 0], (TOKENS[0, 0] + TOKENS[0, 1]) / 2)
    torch.testing.assert_close(prototype[1, 0], (TOKENS[1, 9] + TOKENS[1, 10] + TOKENS[1, 11]) / 3)
    assert attended.tolist() == [[True], [True]]


@pytest.mark.parametrize("post_mask", [NoPostMasking(), CrossAttentionMask(), PrototypePooling()])
def test_an_empty_mask_is_finite(post_mask: PostMask) -> None:
    tokens, attended = post_mask(TOKENS, torch.zeros(2, SIZE, SIZE))
    assert bool(attended.any(1).all())
    assert bool(denoised(tokens, attended).isfinite().all())


LATENT = tiny.pictures(2, 4, 8, 8, seed=5)


def denoised(tokens: Tensor, attended: Tensor) -> Tensor:
    """What the U-Net makes of it, which is where the attention mask takes effect."""
    with torch.no_grad():
        return tiny.unet()(LATENT[: len(tokens)], 10, tokens, encoder_attention_mask=attended).sample


@pytest.fixture(scope="module")
def half_masked() -> tuple[Tensor, Tensor]:
    masks = torch.zeros(2, SIZE, SIZE)
    masks[:, :8] = 1  # tokens 0 .. 7
    return CrossAttentionMask()(TOKENS, masks)


def test_masked_tokens_have_no_influence_on_the_denoiser(half_masked: tuple[Tensor, Tensor]) -> None:
    tokens, attended = half_masked
    changed = torch.where(attended[..., None], tokens, 50 * tiny.pictures(2, 16, 8, seed=9))
    before = denoised(tokens, attended)
    assert torch.equal(before, denoised(changed, attended))
    everything = torch.ones_like(attended)
    assert not torch.allclose(before, denoised(tokens, everything), atol=1e-5)  # so the tokens do matter otherwise


def test_masking_equals_truncation(half_masked: tuple[Tensor, Tensor]) -> None:
    tokens, attended = half_masked
    truncated = denoised(tokens[:, :8], torch.ones(2, 8, dtype=torch.bool))
    torch.testing.assert_close(denoised(tokens, attended), truncated, rtol=1e-5, atol=1e-6)
