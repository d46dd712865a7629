"""What a pipeline knows of the concepts to look for, encoded once and used for any number of queries."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ldis_lightning.instruction import Instruction


@dataclass(frozen=True)
class Context:
    """C concepts, from `InContextSegmentationPipeline.encode`. It is not changed by being used.

    Attributes:
        parts: for each concept its instruction, of one row.
        references: K of each concept.
        names: of the concepts; one empty name where a concept was given without one.
        model: which pipeline encoded it: tokens of another model mean nothing.
    """

    parts: tuple[Instruction, ...]
    references: tuple[int, ...]
    names: tuple[str, ...]
    model: str

    @property
    def named(self) -> bool:
        """Whether the concepts were given by name: results then have an axis of concepts, even of one."""
        return self.names != ("",)

    @property
    def device(self) -> torch.device:
        """Where the tokens are."""
        return self.parts[0].tokens.device

    def __len__(self) -> int:
        """C."""
        return len(self.parts)

    def to(self, device: str | torch.device) -> Context:
        """The same context with its tokens on another device. A pipeline does this by itself where they are not on its
        own."""
        return replace(self, parts=tuple(_moved(part, torch.device(device)) for part in self.parts))


def _moved(instruction: Instruction, device: torch.device) -> Instruction:
    return Instruction(*(None if part is None else part.to(device) for part in instruction))  # pyright: ignore
