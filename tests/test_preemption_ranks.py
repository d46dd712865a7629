"""A signal to one rank of several: all save at the same step and leave, and the resumed run ends as it would have."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import write_config
from survival_support import (
    TIMEOUT,
    arguments,
    end_group,
    final,
    settings,
    start,
    steps_logged,
    validations_logged,
    wait_for,
)

from ldis_lightning.checkpoint_files import damage

STOPPED_WITHIN = 30
"""Seconds from the signal to the end of the last rank."""


@pytest.fixture(scope="module")
def uninterrupted(miniature_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The final state of two ranks that nothing ends before."""
    out = tmp_path_factory.mktemp("uninterrupted")
    finish(miniature_world, arguments(out, settings(out, devices=2), overlays=["cluster/ddp"]), out / "log.txt")
    return final(out)


def finish(world: Path, args: list[str], log: Path) -> int:
    """Run `ldis` to its end; its status."""
    process = start(world, args, log)
    try:
        return process.wait(2 * TIMEOUT)
    finally:
        end_group(process)


def ranks_of(process: int) -> list[int]:
    """The processes that a process has started and that run `ldis`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                words = (entry / "cmdline").read_bytes()
            except (OSError, ValueError):
                continue
            if parent == process and b"ldis_lightning" in words:
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks in /proc")
@pytest.mark.timeout(900)
def test_a_signal_from_outside_to_the_second_rank(miniature_world: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    args = arguments(tmp_path, settings(tmp_path, devices=2, max_steps=10), overlays=["cluster/ddp"])
    process = start(miniature_world, args, log)
    try:
        wait_for(lambda: process.poll() is not None or list(tmp_path.rglob("*.ckpt")))  # it trains
        (second,) = ranks_of(process.pid)
        os.kill(second, signal.SIGTERM)
        sent = time.monotonic()
        assert process.wait(STOPPED_WITHIN + 60) == 75, log.read_text()[-3000:]
        wait_for(lambda: not Path(f"/proc/{second}").exists(), STOPPED_WITHIN)
        print(f"left after {time.monotonic() - sent:.1f} s")
    finally:
        end_group(process)
    assert "stopped by SIGTERM after step " in log.read_text()
    assert log.read_text().count("go on with --ckpt_path last") == 1  # by one rank
    (last,) = tmp_path.rglob("last.ckpt")
    assert damage(last) is None
    assert steps_logged(tmp_path) == list(range(final(tmp_path)["global_step"]))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "validation"), [("SIGUSR1", True), ("SIGTERM", False), ("SIGINT", False)])
def test_a_signal_to_the_second_rank_alone(
    name: str, validation: bool, uninterrupted: dict[str, Any], miniature_world: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    where = {"name": name, "step": 4 if validation else 2, "rank": 1, "validation": validation}
    content = settings(tmp_path, {"class_path": "survival_support.SendSignal", "init_args": where}, devices=2)
    first = arguments(tmp_path, content, overlays=["cluster/ddp"])
    assert finish(miniature_world, first, log) == (130 if name == "SIGINT" else 75), log.read_text()[-3000:]
    assert f"stopped by {name} after step {4 if validation else 3}; go on" in log.read_text()
    second = arguments(tmp_path, settings(tmp_path, devices=2), "--ckpt_path", "last", overlays=["cluster/ddp"])
    assert finish(miniature_world, second, log) == 0, log.read_text()[-3000:]
    assert_close(final(tmp_path), uninterrupted)
    assert steps_logged(tmp_path) == list(range(10))
    assert validations_logged(tmp_path) == [3, 7]


def assert_close(found: Any, expected: dict[str, Any]) -> None:
    """gloo adds up two ranks' gradients in one order: here it should be exact, and may be 1e-6 elsewhere."""
    assert found["global_step"] == expected["global_step"]
    for name, tensor in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], tensor, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sharded_ranks(miniature_world: Path, tmp_path: Path) -> None:
    """Two ranks of FSDP, the signal to the second in validation; the resumed run ends as the uninterrupted one."""
    from ldis_lightning.sharded_files import read_weights

    found = {}
    for kind in ("whole", "stopped"):
        out, log = tmp_path / kind, tmp_path / f"{kind}.txt"
        out.mkdir()
        where = {"name": "SIGUSR1", "step": 4, "rank": 1, "validation": True}
        send = [{"class_path": "survival_support.SendSignal", "init_args": where}] if kind == "stopped" else []
        args = arguments(out, settings(out, *send, devices=2), overlays=["cluster/fsdp"])
        assert finish(miniature_world, args, log) == (75 if send else 0), log.read_text()[-3000:]
        if send:
            plain = write_config(out / "plain.yaml", settings(out, devices=2))
            again = [*args[:-1], plain, "--ckpt_path", "last"]
            assert finish(miniature_world, again, log) == 0, log.read_text()[-3000:]
        (last,) = out.rglob("last.ckpt")
        found[kind] = read_weights(last)
    for name, tensor in found["whole"].items():
        torch.testing.assert_close(found["stopped"][name], tensor, atol=1e-6, rtol=0)
