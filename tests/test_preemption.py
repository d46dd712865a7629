"""Signals and errors in a run of one process: it saves at the end of a batch, and goes on as if nothing had been."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from survival_support import (
    arguments,
    assert_same,
    final,
    settings,
    steps_logged,
    validations_logged,
)

from ldis_lightning.callbacks.preemption import Preemption
from ldis_lightning.cli import main
from ldis_lightning.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture(autouse=True)
def signals_are_given_back() -> Iterator[None]:
    before = {one: signal.getsignal(one) for one in SIGNALS}
    yield
    after = {one: signal.getsignal(one) for one in SIGNALS}
    for one, handler in before.items():
        signal.signal(one, handler)
    if after[signal.SIGINT] == signal.SIG_IGN:  # Lightning leaves it so after a Ctrl-C that is not ours
        after[signal.SIGINT] = before[signal.SIGINT]
    assert after == before


@pytest.fixture(scope="module")
def uninterrupted(miniature_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The final state of a run that nothing ends before."""
    out = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(miniature_world)
        assert main(arguments(out, settings(out))) == 0
    assert steps_logged(out) == list(range(10))
    return final(out)


def send(name: str, step: int, **where: Any) -> dict[str, Any]:
    return {"class_path": "survival_support.SendSignal", "init_args": {"name": name, "step": step, **where}}


def resume(out: Path, **changes: Any) -> None:
    """Go on to the end, and check that no batch was repeated or left out."""
    assert main(arguments(out, settings(out, **changes), "--ckpt_path", "last")) == 0
    assert steps_logged(out) == list(range(10))
    assert validations_logged(out) == [3, 7]
    assert [path.name for path in (out / "runs/run").iterdir()] == ["version_0"]
    assert [path.name for path in out.rglob("*.ckpt*")] == ["last.ckpt"]


@pytest.mark.parametrize(
    ("name", "step", "where", "after"),
    [
        ("SIGTERM", 5, {}, 6),
        ("SIGUSR1", 4, {"validation": True}, 4),
        pytest.param("SIGUSR1", 4, {}, 5, marks=pytest.mark.slow),  # where the run saves anyway
        pytest.param("SIGTERM", 3, {}, 4, marks=pytest.mark.slow),  # before a validation
        pytest.param("SIGTERM", 9, {}, 10, marks=pytest.mark.slow),  # at the very end
    ],
)
def test_a_stopped_run_is_resumed_exactly(
    name: str,
    step: int,
    where: dict[str, Any],
    after: int,
    uninterrupted: dict[str, Any],
    in_miniature_world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments(tmp_path, settings(tmp_path, send(name, step, **where)))) == 75
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line == f"stopped by {name} after step {after}; go on with --ckpt_path last"
    assert final(tmp_path)["global_step"] == after
    resume(tmp_path)
    assert_same(final(tmp_path), uninterrupted)


@pytest.mark.slow
def test_an_average_of_the_weights(in_miniature_world: Path, tmp_path: Path) -> None:
    """In validation it lies where the weights belong, and they where it does."""
    average = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.8}}
    found = {}
    for kind, more in {"whole": [], "stopped": [send("SIGTERM", 4, validation=True)]}.items():
        out = tmp_path / kind
        assert main(arguments(out, settings(out, average, *more))) == (75 if more else 0)
        if more:
            assert main(arguments(out, settings(out, average), "--ckpt_path", "last")) == 0
        found[kind] = final(out)
    assert "current_model_state" in found["whole"]
    assert_same(found["stopped"], found["whole"])


def test_a_second_ctrl_c_leaves_at_once(
    in_miniature_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, settings(tmp_path, send("SIGINT", 2, times=2)))) == 130
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1] == "interrupted"
    assert not list(tmp_path.rglob("*.ckpt*"))


def test_ctrl_c_saves(in_miniature_world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, settings(tmp_path, send("SIGINT", 2)))) == 130
    shown = capfd.readouterr().err
    assert "saving a checkpoint at the end of this step ... (Ctrl-C again to leave at once)\n" in shown
    assert shown.splitlines()[-1] == "stopped by SIGINT after step 3; go on with --ckpt_path last"
    assert final(tmp_path)["global_step"] == 3


@pytest.mark.parametrize(
    ("hook", "step", "saved"),
    [
        ("on_train_batch_start", 6, 6),  # an error of the data, or of the forward
        ("on_before_optimizer_step", 6, 5),  # the gradients are there, the step is not done: 5 was saved before
        pytest.param("on_before_zero_grad", 6, 6, marks=pytest.mark.slow),  # before the backward
        pytest.param("on_train_batch_end", 6, 6, marks=pytest.mark.slow),  # of another callback
        pytest.param("on_validation_batch_end", 8, 8, marks=pytest.mark.slow),
    ],
)
def test_an_error_loses_no_whole_step(
    hook: str,
    step: int,
    saved: int,
    uninterrupted: dict[str, Any],
    in_miniature_world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail = {"class_path": "survival_support.Fail", "init_args": {"hook": hook, "step": step}}
    with pytest.raises(ZeroDivisionError, match=hook):
        main(arguments(tmp_path, settings(tmp_path, fail)))
    assert final(tmp_path)["global_step"] == saved
    assert (f"after step {saved}, before the error" in capsys.readouterr().err) == (saved == step)
    assert main(arguments(tmp_path, settings(tmp_path), "--ckpt_path", "last")) == 0
    assert_same(final(tmp_path), uninterrupted)
    assert validations_logged(tmp_path) == [3, 7]


def test_it_can_be_switched_off(in_miniature_world: Path, tmp_path: Path) -> None:
    off = {"class_path": "Preemption", "init_args": {"signals": [], "save_on_error": False}}
    fail = {"class_path": "survival_support.Fail", "init_args": {"hook": "on_train_batch_start", "step": 2}}
    with pytest.raises(ZeroDivisionError):
        main(arguments(tmp_path, settings(tmp_path, off, fail)))
    assert not list(tmp_path.rglob("*.ckpt*"))


@pytest.mark.parametrize("name", ["SIGKILL", "TERM", "SIG_DFL"])
def test_signals_that_there_are_not(name: str) -> None:
    with pytest.raises(UserError, match=f"Preemption.signals: `{name}` is no signal"):
        Preemption(signals=[name])
