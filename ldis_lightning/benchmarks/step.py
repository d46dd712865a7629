"""`ldis bench step`: a training step of LDIS-1 against the released script's way, by turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ldis_lightning.benchmarks.report import print_rows, raced
from ldis_lightning.benchmarks.settings import Settings, count_flops, parser, settings
from ldis_lightning.benchmarks.turns import Work
from ldis_lightning.command_line import at_least
from ldis_lightning.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from ldis_lightning.meta_architectures import LDIS1

BATCHES = 3
"""Batches that are taken in turn: how many tokens are attended to differs between them, as it does in training."""
OPTIMIZER = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
CLIP = 1.0
"""Largest norm of the gradient; this and the above are the paper's."""


def main(args: Sequence[str]) -> int:
    """Run the benchmark and print its table.

    Raises:
        UserError: the arguments are wrong.
    """
    options = parser(
        "ldis bench step",
        "A training step of LDIS-1 (forward, backward, clipping, optimizer), the released script's way and ours, by\n"
        "turns, each in a process of its own; then ours with each way to save memory. Random weights and inputs.",
    )
    options.add_argument("--batch", type=at_least(1), default=2, metavar="N", help="episodes of a step (default: 2)")
    names = ", ".join(VARIANTS)
    options.add_argument(
        "--rows", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="ROW", help=f"some of {names}"
    )
    parsed = options.parse(list(args))
    from tqdm import tqdm

    common = settings(parsed)
    variants = [variant for name, variant in VARIANTS.items() if name in parsed.rows]
    rows = []
    for variant in tqdm(variants, "rows", leave=False, disable=None):
        builds = (partial(baseline_step, parsed.batch), partial(our_step, parsed.batch, variant.options))
        rows.append(raced(variant.label, common, builds, parsed, BATCHES, parsed.batch))
    print_rows(f"Training step of LDIS-1, batch {parsed.batch}", common, rows)
    return 0


@dataclass(frozen=True)
class Variant:
    """A way to train ours.

    Attributes:
        label: in the table.
        options: from the settings to arguments of `LDIS1`, its `optimizer` among them.
    """

    label: str
    options: Callable[[Settings], dict[str, Any]]


def baseline_step(batch: int, common: Settings) -> Work:
    """Training as the released script does it: see `ldis_lightning.benchmarks.baseline`."""
    import torch

    from ldis_lightning.benchmarks import baseline, parts

    module = parts.ldis1(parts.SCALES[common.scale], common.device).train()
    flops = _flops(module, common)
    networks = baseline.Networks.of(module, common.frozen_dtype())
    optimizer = torch.optim.AdamW(module.unet.parameters(), **OPTIMIZER)

    def loss(batch: Any) -> Tensor:
        value = baseline.training_loss(networks, batch)
        value.item()  # the script shows it after every step
        return value

    return _training(common, batch, loss, optimizer, flops)


def our_step(batch: int, options: Callable[[Settings], dict[str, Any]], common: Settings) -> Work:
    """Training of our model; `options` as in `Variant`."""
    from ldis_lightning.benchmarks import parts

    module = parts.ldis1(parts.SCALES[common.scale], common.device, **options(common)).train()
    flops = _flops(module, common)
    common.set_up(module)
    optimizer = module.optimizer(module.trainable_parameters())
    return _training(common, batch, lambda batch: module.training_loss(batch)["loss"], optimizer, flops)


def _flops(module: LDIS1, common: Settings) -> int | None:
    """Of one step with one episode, forward and backward: what the model needs, however it is carried out."""
    (batch,) = _batches(common, 1, different=1)
    return count_flops(module, common, lambda: module.training_loss(batch)["loss"].backward())


def _batches(common: Settings, episodes: int, different: int = BATCHES) -> list[Any]:
    from ldis_lightning.benchmarks import parts

    return [parts.episodes(parts.SCALES[common.scale], common.device, episodes, seed=i) for i in range(different)]


def _training(
    common: Settings, episodes: int, loss: Callable[[Any], Tensor], optimizer: Optimizer, flops: int | None
) -> Work:
    """Turns of `common.calls` steps; `flops` are those of one step with one episode."""
    import torch

    batches = _batches(common, episodes)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def turn(number: int) -> None:
        for call in range(common.calls):
            with common.autocast():
                value = loss(batches[(number * common.calls + call) % len(batches)])
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            optimizer.zero_grad()

    return Work(turn, None if flops is None else flops * episodes * common.calls)


def ours(common: Settings) -> dict[str, Any]:
    """What costs no time: see `Settings.execution`; and a fused optimizer."""
    import torch

    return {"execution": common.execution(), "optimizer": partial(torch.optim.AdamW, **OPTIMIZER, fused=True)}


def cheap_operations_again(common: Settings) -> dict[str, Any]:
    """`ours`, and norms, activations and sums are computed again in the backward."""
    from ldis_lightning.execution import CheapOperations

    return ours(common) | {"execution": replace(common.execution(), checkpointing=CheapOperations())}


def every_block_again(common: Settings) -> dict[str, Any]:
    """`ours`, and all of every block is computed again in the backward."""
    from ldis_lightning.execution import EveryBlock

    return ours(common) | {"execution": replace(common.execution(), checkpointing=EveryBlock())}


def eight_bit_adamw(common: Settings) -> dict[str, Any]:
    """`ours`, and the optimizer's moments have eight bits.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError("needs bitsandbytes") from error
    return ours(common) | {"optimizer": partial(AdamW8bit, **OPTIMIZER)}


def lean(common: Settings) -> dict[str, Any]:
    """`ours` with `CheapOperations` and 8-bit AdamW. Raises as `eight_bit_adamw`."""
    return cheap_operations_again(common) | {"optimizer": eight_bit_adamw(common)["optimizer"]}


def low_rank(common: Settings) -> dict[str, Any]:
    """`ours`, and only adapters of rank 4 are trained."""
    from ldis_lightning.latent.fine_tuning import LoRA

    return ours(common) | {"fine_tuning": LoRA(4)}


VARIANTS = {
    "ours": Variant("ours", ours),
    "cheap": Variant("ours + CheapOperations", cheap_operations_again),
    "blocks": Variant("ours + EveryBlock", every_block_again),
    "adam8bit": Variant("ours + 8-bit AdamW", eight_bit_adamw),
    "lean": Variant("ours + CheapOperations + 8-bit AdamW", lean),
    "lora": Variant("ours + LoRA rank 4", low_rank),
}
"""Name on the command line -> row."""
