"""The options of the Slurm launcher."""

import inspect
from pathlib import Path

import pytest
from slurm_stand_in import (
    StandIn,
    install,
)

from ldis_lightning.cli import main
from ldis_lightning.errors import UserError
from ldis_lightning.sweeps.launchers import choice
from ldis_lightning.sweeps.launchers.slurm import Slurm

pytest.importorskip("submitit")


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return install(tmp_path / "stand_in", monkeypatch)


# ---- The command line


def test_every_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--help"]) == 0
    shown = capsys.readouterr().out
    missing = [name for name in inspect.signature(Slurm).parameters if f"--slurm.{name} " not in shown]
    assert not missing


def test_options_of_the_command_line_arrive() -> None:
    words = ["--slurm.partition", "debug", "--slurm.additional", "{account: vision, nice: 3}", "--slurm.mem_gb=4"]
    own, others = choice.split([*words, "--trainer.max_steps", "1"], "slurm")
    assert others == ["--trainer.max_steps", "1"]
    built = choice.build("slurm", own, {"jobs": None})
    assert isinstance(built, Slurm)
    assert (built.partition, built.mem_gb) == ("debug", 4.0)
    assert built.additional == {"account": "vision", "nice": 3}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--slurm.partitoin", "x"], "did you mean `--partition`?"),
        (["--slurm.timeout_min", "long"], "timeout_min: expected int"),
        (["--slurm.timeout_min", "0"], "--slurm.timeout_min: expected at least 1, got 0"),
        (["--slurm.additional", "[1]"], "additional"),
    ],
)
def test_wrong_options_are_refused(words: list[str], expected: str) -> None:
    own, _ = choice.split(words, "slurm")
    with pytest.raises(UserError) as caught:
        choice.build("slurm", own, {})
    assert expected in str(caught.value)


# ---- What cannot be


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"timeout_min": 0}, "--slurm.timeout_min: expected at least 1, got 0"),
        ({"gpus_per_node": -1}, "--slurm.gpus_per_node"),
        ({"mem_gb": 0}, "--slurm.mem_gb"),
        ({"additional": {"array": "1-3"}}, "`array` is set by the sweep itself"),
        ({"additional": {"ntasks_per_node": 3}}, "`ntasks-per-node` is set by the sweep itself"),
    ],
)
def test_options_that_cannot_be(options: dict, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        Slurm(**options)
    assert expected in str(caught.value)


def test_slurm_must_be_there(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(stand_in.folder))
    (stand_in.folder / "sbatch").unlink()
    with pytest.raises(UserError, match="there is no `sbatch` here"):
        Slurm()


def test_submitit_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ldis-lightning\[slurm\]'"):
        Slurm()
