"""What can be done with an instruction without changing what it says."""

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldis_lightning.instruction import Instruction, compact
from ldis_lightning.instruction.tokens import padded, repeated, separated, stacked, where

UNET = tiny.unet().double()
LATENT = tiny.pictures(6, 4, 8, 8).double()


def instruction(mask: Tensor, seed: int = 0) -> Instruction:
    """Random tokens, of which those in `mask` (B, L) are attended to, of references with four tokens each."""
    position = torch.arange(mask.shape[1]).expand(len(mask), -1) % 4
    return Instruction(tiny.pictures(*mask.shape, 8, seed=seed).double(), mask, position)


def denoised(told: Instruction) -> Tensor:
    with torch.no_grad():
        return UNET(
            LATENT[: len(told.tokens)],
            7,
            encoder_hidden_states=told.tokens,
            encoder_attention_mask=told.attention_mask,
        ).sample


@st.composite
def attention_masks(draw: st.DrawFn) -> Tensor:
    """(B, L) bool with at least one True in every row, as post-masks make them."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    rows = st.lists(st.booleans(), min_size=length, max_size=length).filter(any)
    return torch.tensor([draw(rows) for _ in range(batch)])


@settings(max_examples=60, deadline=None)
@given(attention_masks())
def test_dropping_tokens_is_masking_them(mask: Tensor) -> None:
    told = instruction(mask)
    short = compact(told)
    counts = mask.sum(1)
    assert short.tokens.shape[1] == counts.max()
    assert (short.attention_mask is None) == bool((counts == counts.max()).all())
    torch.testing.assert_close(denoised(short), denoised(told), rtol=0, atol=1e-10)
    assert compact(short).tokens.shape == short.tokens.shape


def test_dropped_tokens_have_no_gradient() -> None:
    told = instruction(torch.tensor([[True, False, True, False]]))
    tokens = told.tokens.requires_grad_()
    compact(told).tokens.sum().backward()
    assert tokens.grad is not None and tokens.grad[0, :, 0].tolist() == [1, 0, 1, 0]


def test_tokens_keep_their_order_and_positions() -> None:
    told = instruction(
        torch.tensor([[False, True, False, True, True, False], [True, False, False, False, False, True]])
    )
    short = compact(told)
    assert torch.equal(short.tokens[0], told.tokens[0, [1, 3, 4]])
    assert short.position[0].tolist() == [1, 3, 0]
    assert torch.equal(short.tokens[1, :2], told.tokens[1, [0, 5]])
    assert short.attention_mask is not None and short.attention_mask.tolist() == [[True] * 3, [True, True, False]]


def test_padding_says_nothing() -> None:
    for told in (instruction(torch.tensor([[True, False, True]])), compact(instruction(torch.ones(2, 3).bool()))):
        longer = padded(told, 9)
        assert longer.tokens.shape[1] == longer.position.shape[1] == 9
        torch.testing.assert_close(denoised(longer), denoised(told), rtol=0, atol=1e-10)
        assert padded(told, 3) is told


def test_instructions_of_different_lengths_stack() -> None:
    short = compact(instruction(torch.ones(2, 3).bool(), seed=1))
    long = instruction(torch.tensor([[True, False, True, True, False]]), seed=2)
    both = stacked([short, long])
    assert both.attention_mask is not None and both.tokens.shape == (3, 5, 8)
    for latents, part in ((slice(0, 2), short), (slice(2, 3), long)):
        with torch.no_grad():
            alone = UNET(
                LATENT[latents], 7, encoder_hidden_states=part.tokens, encoder_attention_mask=part.attention_mask
            ).sample
        torch.testing.assert_close(denoised(both)[latents], alone, rtol=0, atol=1e-10)
    assert stacked([short, short]).attention_mask is None
    assert torch.equal(repeated(short, 2).tokens, torch.cat([short.tokens, short.tokens]))


def test_rows_are_chosen_from_either() -> None:
    short = compact(instruction(torch.ones(2, 3).bool(), seed=1))
    long = instruction(torch.tensor([[True, False, True, True], [False, True, True, False]]), seed=2)
    mixed = where(torch.tensor([True, False]), short, long)
    assert mixed.attention_mask is not None
    assert mixed.attention_mask.tolist() == [[True, True, True, False], [False, True, True, False]]
    assert torch.equal(mixed.tokens[0, :3], short.tokens[0]) and torch.equal(mixed.tokens[1], long.tokens[1])
    assert where(torch.tensor([True, False]), short, short).attention_mask is None


@pytest.mark.parametrize("masked", [True, False])
def test_an_instruction_is_separated_by_references(masked: bool) -> None:
    tokens, mask = torch.arange(2 * 6 * 4.0).view(2, 6, 4), torch.arange(12).view(2, 6) % 5 > 0
    position = torch.arange(2).repeat(2, 3)
    apart = separated(Instruction(tokens, mask if masked else None, position), 3)
    assert apart.tokens.shape == (6, 2, 4)
    assert apart.position.tolist() == [[0, 1]] * 6
    for row in range(2):
        for k in range(3):
            assert torch.equal(apart.tokens[3 * row + k], tokens[row, 2 * k : 2 * k + 2])
            if apart.attention_mask is not None:
                assert torch.equal(apart.attention_mask[3 * row + k], mask[row, 2 * k : 2 * k + 2])
    assert (apart.attention_mask is None) != masked
