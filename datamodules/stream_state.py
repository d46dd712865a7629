"""Where a training stream stands, as a checkpoint keeps it, and whether another stream may go on from there."""

import json
from collections.abc import Mapping
from typing import Any

from ldis_lightning import __version__
from ldis_lightning.errors import UserError

STATE_VERSION = 2
"""Changes whenever the keys below do, or an equal plan gives other batches than before. States before 2 had none."""


def stream_state(
    batches: int, plan: Mapping[str, Any], trained_on: Mapping[str, Any] | None, damaged: list[dict[str, str]]
) -> dict[str, Any]:
    """The state of a stream, of plain values, which `torch.load(weights_only=True)` reads.

    Args:
        batches: global batches that were processed.
        plan: all that decides what a batch holds.
        trained_on: data set -> names of the classes that are drawn.
        damaged: entries of the run's `Ledger`.
    """
    return {
        "version": STATE_VERSION,
        "written_by": f"ldis_lightning {__version__}",
        "batches": batches,
        "plan": _plain(plan),
        "trained_on": trained_on,
        "damaged": damaged,
    }


def check_state(state: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Check that a stream of this plan may go on from a state.

    Raises:
        UserError: another version wrote the state, it is no state, or it is of another plan: a line for each change.
    """
    start_new = "Start a new run from the checkpoint's weights."
    if not state:
        raise UserError(
            "the checkpoint cannot be continued: it holds no state of this datamodule's stream, so it was trained with "
            f"another. {start_new}"
        )
    if state.get("version") != STATE_VERSION:
        writer = state.get("written_by", "ldis_lightning 0.1.0, before its release")
        held = f"version {state['version']!r}" if "version" in state else "without a version"
        raise UserError(
            f"the checkpoint cannot be continued: its stream state is {held}, written by {writer}, and this is "
            f"ldis_lightning {__version__}, which reads version {STATE_VERSION}. Continue with the version that wrote "
            f"it. {start_new}"
        )
    batches, saved = state.get("batches"), state.get("plan")
    if type(batches) is not int or batches < 0 or not isinstance(saved, Mapping):
        raise UserError(f"the checkpoint cannot be continued: its stream state is damaged. {start_new}")
    plan = _plain(plan)
    changes = [
        f"  {name} was {_shown(saved, name)} and is {_shown(plan, name)}"
        for name in sorted({*saved, *plan})
        if (name in saved) != (name in plan) or saved.get(name) != plan.get(name)
    ]
    if changes:
        lines = "\n".join(changes)
        raise UserError(
            "the checkpoint cannot be continued, because the training data would be another:\n"
            f"{lines}\nRestore these settings, or start a new run from the checkpoint's weights."
        )


def _plain(plan: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples as lists, numbers of numpy as Python's."""
    return json.loads(json.dumps(plan, default=lambda value: value.item() if hasattr(value, "item") else repr(value)))


def _shown(plan: Mapping[str, Any], name: str) -> str:
    return repr(plan[name]) if name in plan else "not set"
