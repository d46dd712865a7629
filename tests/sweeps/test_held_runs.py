"""Runs that still live with a launcher when their sweep is started again: nothing of theirs is touched."""

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import pytest
from cli_support import tiny, write_config

from ldis_lightning.cli import PREEMPTED_STATUS, main
from ldis_lightning.sweeps.launchers import Job, Launcher, Outcome, Watcher

SWEEP = {
    "extends": "configs/autoencoder_tiny.yaml",
    "sweep": {"points": {"plain": {}}, "seeds": [0]},
}


class Holding(Launcher):
    """Starts nothing, and says of all jobs that they live if `holds` is set."""

    holds = False
    folders: list[Path] = []  # noqa: RUF012

    def held(self, jobs: Sequence[Job]) -> dict[Job, str]:
        return dict.fromkeys(jobs, "job 12") if self.holds else {}

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> Generator[Outcome]:
        self.folders.append(self.folder)
        for job in jobs:
            watcher.started(job)
            yield Outcome(job, PREEMPTED_STATUS, 1.0)


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch, in_miniature_world: Path, tmp_path: Path) -> Iterator[list[str]]:
    """The command of a sweep whose only run was left to its launcher while it was scored."""
    monkeypatch.setattr("ldis_lightning.sweeps.launchers.choice.find", lambda name: Holding)
    monkeypatch.setattr(Holding, "folders", [])
    config = write_config(tmp_path / "sweep.yaml", SWEEP)
    command = ["sweep", "--config", config, *tiny(tmp_path), "--out", str(tmp_path / "out"), "--launcher", "holding"]
    assert main(command) == PREEMPTED_STATUS
    rows_of(tmp_path).write_text("half of the rows\n")
    monkeypatch.setattr(Holding, "holds", True)
    yield command


def rows_of(tmp_path: Path) -> Path:
    return tmp_path / "out/points/plain/seed-0/results.jsonl"


def test_what_a_living_run_has_written_stays(left: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(left) == PREEMPTED_STATUS
    assert rows_of(tmp_path).read_text() == "half of the rows\n"
    assert Holding.folders == [tmp_path / "out/launcher"] * 2
    monkeypatch.setattr(Holding, "holds", False)
    assert main(left) == PREEMPTED_STATUS
    assert not rows_of(tmp_path).exists()  # it did not come to its end


def test_a_living_run_of_another_config_is_not_set_aside(
    left: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*left, "--data.batch_size", "3"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: job 12 is still at work on plain seed 0 with another config")
    assert rows_of(tmp_path).exists()
