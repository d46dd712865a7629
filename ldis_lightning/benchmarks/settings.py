"""What both benchmarks are told on the command line, and how a model is set up for it. No heavy import at the top."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ldis_lightning.command_line import Parser, at_least
from ldis_lightning.errors import UserError

if TYPE_CHECKING:
    from ldis_lightning.execution import Execution
    from ldis_lightning.meta_architectures import InContextSegmenter

SCALES = ("tiny", "mid", "sd15")
PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class Settings:
    """What every contender of a run has in common.

    Attributes:
        scale: a name of `parts.SCALES`.
        device: `cpu` or `cuda`.
        precision: Lightning's name, one of `PRECISIONS`.
        compile: compile ours; the baseline is eager.
        calls: how often the work is done in one turn.
    """

    scale: str
    device: str
    precision: str
    compile: bool
    calls: int

    def rehearsal(self) -> Settings:
        """The same at the smallest size."""
        return replace(self, scale="tiny", compile=False, calls=1)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that Lightning runs a model of this precision in."""
        import torch

        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    def frozen_dtype(self) -> Any:
        """In which the baseline holds frozen weights: the run's."""
        import torch

        return torch.bfloat16 if self.precision == "bf16-mixed" else torch.float32

    def execution(self) -> Execution:
        """How ours is carried out: with what changes nothing but rounding and costs no time."""
        from ldis_lightning.execution import Execution

        return Execution(self.compile, channels_last=self.device == "cuda", frozen_in_bfloat16=True)

    def set_up(self, module: InContextSegmenter) -> None:
        """Apply the module's execution, as its `configure_model` does in a run of this precision."""
        module.apply_execution(self.precision)


def parser(program: str, description: str) -> Parser:
    """A parser with the options that both benchmarks have."""
    made = Parser(program, description)
    made.add_argument(
        "--scale", choices=SCALES, default="mid", help="sizes; U-Nets of 60M and 860M parameters (default: mid)"
    )
    made.add_argument("--device", type=_device, help="cpu or cuda (default: cuda where there is one)")
    made.add_argument("--precision", choices=PRECISIONS, help="default: bf16-mixed on a GPU, else 32-true")
    made.add_argument("--compile", action="store_true", help="compile ours; takes minutes, on a CPU many")
    made.add_argument("--turns", type=at_least(1), default=5, metavar="N", help="turns of each contender (default: 5)")
    made.add_argument("--calls", type=at_least(1), metavar="N", help="of the work, a turn (default: 1; GPU: 10)")
    made.add_argument(
        "--alone", action="store_true", help="baseline and ours one after the other: each has the GPU's whole memory"
    )
    return made


def settings(parsed: Namespace) -> Settings:
    """The settings that were asked for, with what depends on the device filled in.

    Raises:
        UserError: there is no such device.
    """
    import torch

    device = parsed.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; use --device cpu.")
    on_gpu = device == "cuda"
    return Settings(
        parsed.scale,
        device,
        parsed.precision or ("bf16-mixed" if on_gpu else "32-true"),
        parsed.compile,
        parsed.calls or (10 if on_gpu else 1),
    )


def count_flops(module: InContextSegmenter, settings: Settings, computation: Callable[[], object]) -> int | None:
    """Operations of a computation on a GPU; None on a CPU, whose peak memory this would spoil.

    To be called before `set_up`, so that what checkpointing computes again is not counted as work.
    """
    if settings.device != "cuda":
        return None
    from ldis_lightning.benchmarks.flops import count

    with settings.autocast():
        flops = count(computation)
    module.zero_grad(set_to_none=True)
    return flops


def _device(text: str) -> str:
    if text not in ("cpu", "cuda"):
        raise ArgumentTypeError(f"must be cpu or cuda, got `{text}`")
    return text
