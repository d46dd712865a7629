"""`ldis sweep` from a config to its table."""

from collections.abc import Generator, Sequence
from pathlib import Path

import pytest
import yaml
from cli_support import tiny, write_config

from ldis_lightning.cli import main
from ldis_lightning.sweeps.launchers import Job, Launcher, Outcome, Watcher

SWEEP = {
    "extends": "configs/autoencoder_tiny.yaml",  # the quickest to train a step of
    "sweep": {"grid": {"model.latent_weight": [0.0, 0.1], "model.schedule": ["OneCycle"]}, "seeds": [0, 3]},
}


class InProcess(Launcher):
    """Runs jobs in this process; those of a name in `failing` fail."""

    def __init__(self, jobs: int = 1, threads_per_job: int | None = None) -> None:
        self.failing = ""
        self.ran: list[str] = []

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> Generator[Outcome]:
        for job in jobs:
            watcher.started(job)
            self.ran.append(job.name)
            job.log.write_text("the end of the log\n", encoding="utf-8")
            failed = self.failing and self.failing in job.name
            yield Outcome(job, 1 if failed else main(job.arguments), 1.0)


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    own = InProcess()
    monkeypatch.setattr("ldis_lightning.sweeps.command.Local", lambda jobs, threads: own)
    return own


def sweep_args(tmp_path: Path) -> list[str]:
    config = write_config(tmp_path / "sweep.yaml", SWEEP)
    return ["sweep", "--config", config, *tiny(tmp_path), "--out", str(tmp_path / "out")]


def test_a_sweep_fails_goes_on_and_is_resumed(
    launcher: InProcess, in_miniature_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*sweep_args(tmp_path), "--sweep.seeds", "[3]"]
    launcher.failing = "latent_weight=0.1"
    assert main(args) == 1
    shown = capsys.readouterr().out
    assert "    the end of the log" in shown
    assert "failed: latent_weight=0.1,schedule=OneCycle seed 3" in shown

    launcher.failing, launcher.ran = "", []
    assert main(args) == 0
    assert launcher.ran == ["latent_weight=0.1,schedule=OneCycle seed 3"]  # the other one had results already
    assert "2 runs in" in capsys.readouterr().out
    assert (tmp_path / "out/results.md").read_text(encoding="utf-8").startswith("| latent_weight | schedule | test/nov")
    assert len((tmp_path / "out/results.csv").read_text(encoding="utf-8").splitlines()) == 3

    point = tmp_path / "out/points/latent_weight=0.1,schedule=OneCycle/seed-3/point.yaml"
    content = yaml.safe_load(point.read_text(encoding="utf-8"))
    assert (content["seed_everything"], content["model"]["init_args"]["latent_weight"]) == (3, 0.1)
    assert "sweep" not in content and "extends" not in content

    launcher.ran = []
    assert main([*args, "--data.batch_size", "3"]) == 0
    assert len(launcher.ran) == 2  # another config: old results do not count


def test_dry_run_lists_every_run_and_runs_none(
    launcher: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*sweep_args(tmp_path), "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("to do") == 4
    assert not launcher.ran and not (tmp_path / "out").exists()


MISTAKES = {
    "no config": (["sweep"], "needs `--config`"),
    "no grid": (["sweep", "--config", "configs/quickstart.yaml"], "nothing to sweep"),
    "no number": (["--jobs", "two"], "--jobs"),
    "zero": (["--jobs", "0"], "expected at least 1"),
    "option": (["--trainer.max_step", "1"], "did you mean `--trainer.max_steps`?"),
    "own option": (["--job", "1"], "unknown option `--job`"),
    "grid key": (["--sweep.grid", "{model.latent_wait: [1]}"], "did you mean `latent_weight`?"),
    "grid group": (["--sweep.grid", "{trianer.max_steps: [1]}"], "did you mean `trainer`?"),
    "grid class": (["--sweep.grid", "{model.schedule: [OneCicle]}"], "did you mean `OneCycle`?"),
    "grid value": (["--sweep.grid", "{model.latent_weight: [1, much]}"], "model.latent_weight: expected float"),
    "block key": (["--sweep.seed", "[0]"], "did you mean `--sweep.seeds`?"),
    "metric": (["--sweep.metric", "test/novell/miou"], "did you mean `novel`?"),
}


@pytest.mark.parametrize(("options", "expected"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_found_before_anything_runs(
    options: list[str], expected: str, launcher: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = options if options[0] == "sweep" else [*sweep_args(tmp_path), *options]
    assert main(args) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and expected in output.err
    assert "Traceback" not in output.err
    assert not launcher.ran


def test_a_metric_that_nothing_measures_stops_the_sweep_after_one_run(
    launcher: InProcess, in_miniature_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*sweep_args(tmp_path), "--sweep.metric", "test/novel/mio"]) == 2
    assert "`test/novel/mio` is not measured; did you mean `test/novel/miou`?" in capsys.readouterr().err
    assert len(launcher.ran) == 1


@pytest.mark.parametrize("name", ["configs/ablation_masking.yaml", "configs/ablation_alignment.yaml"])
def test_shipped_ablations_are_valid_at_every_point(name: str, tmp_path: Path) -> None:
    assert main(["sweep", "--config", name, "--out", str(tmp_path), "--dry_run"]) == 0
