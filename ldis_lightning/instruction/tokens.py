"""The instruction: the token sequence that tells the denoiser what to look for, and what can be done with it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Instruction(NamedTuple):
    """What the denoiser is told of the concept. The projection F of eq. 1 is the denoiser's own `encoder_hid_proj`."""

    tokens: Tensor  # (B, L, C)
    attention_mask: Tensor | None  # (B, L) bool, False = not attended to; None = every token is
    position: Tensor  # (B, L) int64: which of its reference's T tokens each one is, in [0, T)

    @property
    def attended(self) -> Tensor:
        """The attention mask (B, L) bool, also where there is none."""
        if self.attention_mask is not None:
            return self.attention_mask
        return torch.ones_like(self.position, dtype=torch.bool)


def compact(instruction: Instruction) -> Instruction:
    """The same instruction without tokens that no row attends to: masked attention and this give the same output.

    The attended tokens of a row come first, in their order, and L is cut to the most that any row has; where every row
    has as many, no mask is left. Reading the counts waits for the device once.
    """
    tokens, mask, position = instruction
    if mask is None:
        return instruction
    if mask.is_meta:  # how much a computation takes is being counted, where nothing can be looked at
        return instruction
    counts: list[int] = mask.sum(1).tolist()
    length = max(counts)
    order = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :length]  # (B, L')
    return Instruction(
        tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2])),  # (B, L', C)
        None if min(counts) == length else mask.gather(1, order),
        position.gather(1, order),
    )


def padded(instruction: Instruction, length: int) -> Instruction:
    """The same instruction with `length` >= L tokens a row, of which the new ones are not attended to."""
    tokens, _, position = instruction
    extra = length - tokens.shape[1]
    if extra == 0:
        return instruction
    mask = F.pad(instruction.attended, (0, extra))
    return Instruction(F.pad(tokens, (0, 0, 0, extra)), mask, F.pad(position, (0, extra)))


def stacked(instructions: Sequence[Instruction]) -> Instruction:
    """Instructions of B_i rows, of any lengths, as one of sum(B_i) rows."""
    parts = _alike(instructions)
    masks = [part.attention_mask for part in parts]
    return Instruction(
        torch.cat([part.tokens for part in parts]),
        None if masks[0] is None else torch.cat(masks),  # pyright: ignore[reportArgumentType]
        torch.cat([part.position for part in parts]),
    )


def where(rows: Tensor, chosen: Instruction, other: Instruction) -> Instruction:
    """Row by row `chosen` where `rows` (B,) bool is True, else `other`; both of B rows, of any lengths."""
    chosen, other = _alike([chosen, other])
    mask = None
    if chosen.attention_mask is not None and other.attention_mask is not None:
        mask = torch.where(rows[:, None], chosen.attention_mask, other.attention_mask)
    return Instruction(
        torch.where(rows[:, None, None], chosen.tokens, other.tokens),
        mask,
        torch.where(rows[:, None], chosen.position, other.position),
    )


def repeated(instruction: Instruction, times: int) -> Instruction:
    """B rows, all of them `times` over: (times * B) rows."""
    return stacked([instruction] * times)


def separated(instruction: Instruction, references: int) -> Instruction:
    """An instruction of B rows and K references (B, K*T, C) as one of B*K rows (B*K, T, C)."""
    tokens, mask, position = (
        None if part is None else part.unflatten(1, (references, -1)).flatten(0, 1) for part in instruction
    )
    return Instruction(tokens, mask, position)  # pyright: ignore[reportArgumentType]


def _alike(instructions: Sequence[Instruction]) -> list[Instruction]:
    """Instructions of one length which all have a mask or all have none."""
    length = max(instruction.tokens.shape[1] for instruction in instructions)
    parts = [padded(instruction, length) for instruction in instructions]
    if all(part.attention_mask is None for part in parts):
        return parts
    return [part._replace(attention_mask=part.attended) for part in parts]
