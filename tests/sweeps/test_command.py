"""`ldis sweep` from a config to its table."""

import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
import yaml
from cli_support import tiny, write_config
from fake_runs import FakeRuns, starts
from in_process import InProcess, sweep_with

from ldis_lightning.cli import main
from ldis_lightning.sweeps.execution import lock_sweep
from ldis_lightning.sweeps.launchers import Launcher
from ldis_lightning.sweeps.launchers.local import lock_run

SWEEP = {
    "extends": "configs/autoencoder_tiny.yaml",  # the quickest to train a step of
    "sweep": {"grid": {"model.latent_weight": [0.0, 0.1], "model.schedule": ["OneCycle"]}, "seeds": [0, 3]},
}


Use = Callable[[Launcher], Launcher]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    def use(launcher: Launcher) -> Launcher:
        sweep_with(launcher, monkeypatch)
        return launcher

    return use


@pytest.fixture
def launcher(use: Use) -> InProcess:
    own = InProcess()
    use(own)
    return own


def sweep_args(tmp_path: Path, out: str = "out") -> list[str]:
    config = write_config(tmp_path / "sweep.yaml", SWEEP)
    return ["sweep", "--config", config, *tiny(tmp_path), "--out", str(tmp_path / out)]


# ---- With real runs


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
    assert main(args) == 1  # what has failed is reported again, and left alone
    assert launcher.ran == []
    assert "    the end of the log" in capsys.readouterr().out

    assert main([*args, "--retry"]) == 0
    assert launcher.ran == ["latent_weight=0.1,schedule=OneCycle seed 3"]  # the other one had results already
    assert "2 runs in" in capsys.readouterr().out
    assert (tmp_path / "out/results.md").read_text(encoding="utf-8").startswith("| latent_weight | schedule | test/nov")
    assert len((tmp_path / "out/results.csv").read_text(encoding="utf-8").splitlines()) == 3

    folder = tmp_path / "out/points/latent_weight=0.1,schedule=OneCycle/seed-3"
    content = yaml.safe_load((folder / "point.yaml").read_text(encoding="utf-8"))
    assert (content["seed_everything"], content["model"]["init_args"]["latent_weight"]) == (3, 0.1)
    assert "sweep" not in content and "extends" not in content
    callbacks = [callback["class_path"].rpartition(".")[2] for callback in content["trainer"]["callbacks"]]
    assert callbacks == ["ModelCheckpoint", "Previews", "ResultTable", "PredictedMasks", "ResultRows"]
    assert {"results.jsonl", "tiles", "manifests", "episodes", "checkpoints"} <= {
        path.name for path in folder.iterdir()
    }


def test_a_shared_training_is_tested_by_every_point(
    launcher: InProcess, in_miniature_world: Path, tmp_path: Path
) -> None:
    grid = {"data.evaluation.novel.treatment": [None, "Hidden"]}
    own = ["--sweep.grid", json.dumps(grid), "--sweep.shared_training", "true", "--sweep.seeds", "[1]"]
    args = [*sweep_args(tmp_path), *own]
    assert main(args) == 0
    assert launcher.ran == ["training seed 1", "treatment=null seed 1", "treatment=Hidden seed 1"]
    text = (tmp_path / "out/points/treatment=Hidden/seed-1/point.yaml").read_text(encoding="utf-8")
    last = tmp_path / "out/training/seed-1/checkpoints/last.ckpt"
    assert last.is_file() and text.splitlines()[0].endswith(f"--ckpt_path {last}")
    assert yaml.safe_load((tmp_path / "out/sweep.yaml").read_text(encoding="utf-8"))["shared_training"] is True

    launcher.ran = []
    assert main(args) == 0
    assert launcher.ran == []


def test_a_metric_that_nothing_measures_stops_the_sweep_after_one_run(
    launcher: InProcess, in_miniature_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = '[{"class_path": "cli_support.PressCtrlC"}]'  # of somebody's own, so that it might log anything
    args = [*sweep_args(tmp_path), "--trainer.callbacks", own, "--trainer.limit_train_batches", "0"]
    assert main([*args, "--sweep.metric", "test/novel/mio"]) == 2
    assert "`test/novel/mio` is not measured; did you mean `test/novel/miou`?" in capsys.readouterr().err
    assert len(launcher.ran) == 1


# ---- What is written, with runs that only pretend


def test_the_folder_of_a_sweep(use: Use, tmp_path: Path) -> None:
    use(FakeRuns())
    baseline = '{"latent_weight": 0.1}'
    assert main([*sweep_args(tmp_path), "--sweep.baseline", baseline]) == 0
    content = yaml.safe_load((tmp_path / "out/sweep.yaml").read_text(encoding="utf-8"))
    assert content["baseline"] == "latent_weight=0.1,schedule=OneCycle"
    assert content["points"][0] == {
        "slug": "latent_weight=0,schedule=OneCycle",
        "labels": {"latent_weight": "0", "schedule": "OneCycle"},
        "values": {"model.latent_weight": 0.0, "model.schedule": "OneCycle"},
    }
    assert (content["metric"], content["mode"], content["seeds"]) == ("test/novel/miou", "max", [0, 3])
    assert starts(tmp_path / "out") == {f"{p['slug']}/seed-{n}": 1 for p in content["points"] for n in (0, 3)}


def test_another_config_never_meets_old_results_or_checkpoints(
    use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(FakeRuns())
    args = [*sweep_args(tmp_path), "--sweep.seeds", "[0]"]
    assert main(args) == 0
    assert main([*args, "--data.batch_size", "3"]) == 0
    assert set(starts(tmp_path / "out").values()) == {1}  # in folders that are new
    aside = tmp_path / "out/replaced/points/latent_weight=0,schedule=OneCycle/seed-0-1"
    assert (aside / "results.json").is_file() and (aside / "checkpoints/last.ckpt").is_file()
    assert f"that is in {aside} now" in capsys.readouterr().out


def test_results_are_found_again_however_the_folder_is_spelt(
    use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakeRuns())
    args = sweep_args(tmp_path)
    assert main(args) == 0
    monkeypatch.chdir(tmp_path)
    assert main([*args, "--out", "out"]) == 0
    assert set(starts(tmp_path / "out").values()) == {1}


def test_no_run_starts_beyond_the_budget(use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use(FakeRuns(seconds=0.5))
    args = sweep_args(tmp_path)
    assert main([*args, "--sweep.budget", str(0.6 / 3600)]) == 75
    assert len(starts(tmp_path / "out")) == 1  # a second one would have ended beyond it
    assert "not started: 3 runs" in capsys.readouterr().out
    assert main([*args, "--sweep.budget", "1"]) == 0
    assert list(starts(tmp_path / "out").values()) == [1, 1, 1, 1]


# ---- Stopped and started again


def run_and_kill(args: list[str], out: Path, runs: int, number: int) -> None:
    """Run a sweep in a process of its own, and send it a signal when so many runs have been started."""
    process = get_context("fork").Process(target=main, args=(args,))
    process.start()
    deadline = time.monotonic() + 100
    while len(starts(out)) < runs and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)  # into the run
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_sweep_goes_on(
    number: signal.Signals, use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(FakeRuns(seconds=1.0))
    args, out = sweep_args(tmp_path), tmp_path / "out"
    run_and_kill(args, out, 2, number)
    before = {path: path.stat().st_mtime_ns for path in out.glob("points/*/*/results.json")}
    assert len(before) == 1

    assert main(args) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert list(starts(out).values()) == [1, 1, 2, 1]  # by folder: the second of seed 0 was cut short
    assert main(sweep_args(tmp_path, "uninterrupted")) == 0
    uninterrupted = tmp_path / "uninterrupted/results.csv"
    assert (out / "results.csv").read_bytes() == uninterrupted.read_bytes()


def test_two_sweeps_do_not_share_a_folder(use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use(FakeRuns())
    lock = lock_sweep(tmp_path / "out")
    try:
        assert main(sweep_args(tmp_path)) == 2
        assert f"is at work in {tmp_path / 'out'} (process {os.getpid()} on " in capsys.readouterr().err
    finally:
        lock.release()
    assert main(sweep_args(tmp_path)) == 0  # who is gone holds nothing


def test_a_run_that_a_killed_sweep_left_alone_is_waited_for(
    use: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(FakeRuns())
    args = [*sweep_args(tmp_path), "--sweep.seeds", "[0]"]
    assert main(args) == 0
    capsys.readouterr()
    lock = lock_run(tmp_path / "out/points/latent_weight=0.1,schedule=OneCycle/seed-0")
    lock.sign(4321)
    looked = []

    def look(seconds: float) -> None:
        looked.append(seconds)
        if len(looked) == 3:
            lock.release()

    monkeypatch.setattr("ldis_lightning.sweeps.execution.time.sleep", look)
    assert main(args) == 0
    assert len(looked) == 3
    shown = capsys.readouterr().out
    assert shown.count("waiting for latent_weight=0.1,schedule=OneCycle seed 0: process 4321 on ") == 1


# ---- Mistakes, all found before anything runs


def test_dry_run_says_what_every_point_costs_and_runs_none(
    launcher: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*sweep_args(tmp_path), "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "4 runs in" in shown and "2 points x 2 seeds" in shown
    assert shown.count("2 to do") == 2 and "676k" in shown
    assert not launcher.ran and not (tmp_path / "out").exists()


MISTAKES = {
    "no config": (["sweep"], "needs `--config`"),
    "no grid": (["sweep", "--config", "configs/quickstart.yaml"], "nothing to sweep"),
    "no number": (["--jobs", "two"], "--jobs"),
    "zero": (["--jobs", "0"], "`0` is no whole number from 1 on"),
    "option": (["--trainer.max_step", "1"], "did you mean `--trainer.max_steps`?"),
    "own option": (["--job", "1"], "unknown option `--job`"),
    "grid key": (["--sweep.grid", "{model.latent_wait: [1]}"], "did you mean `latent_weight`?"),
    "grid group": (["--sweep.grid", "{trianer.max_steps: [1]}"], "did you mean `trainer`?"),
    "grid class": (["--sweep.grid", "{model.schedule: [OneCicle]}"], "did you mean `OneCycle`?"),
    "grid value": (["--sweep.grid", "{model.latent_weight: [1, much]}"], "model.latent_weight: expected float"),
    "grid values": (["--sweep.grid", "{model.latent_weight: 1}"], "sweep.grid"),
    "named point": (["--sweep.points", "{own: {model.latent_wait: 1}}"], "(at the point own,latent_weight=0"),
    "block key": (["--sweep.seed", "[0]"], "did you mean `--sweep.seeds`?"),
    "metric": (["--sweep.metric", "test/novell/miou"], "did you mean `test/novel/miou`?"),
    "score": (["--sweep.metric", "test/novel/mio"], "did you mean `test/novel/miou`?"),
    "same configs": (["--sweep.grid", "{model.latent_weight: [1, 1.0]}"], "two points are the same"),
    "equal configs": (["--sweep.grid", "{model.schedule: [OneCycle, {class_path: OneCycle}]}"], "two points are the"),
    "baseline": (["--sweep.baseline", "{latent_wait: 1}"], "did you mean `latent_weight`?"),
    "shared": (["--sweep.shared_training", "true"], "`model.schedule` changes the training"),
    "launcher": (["--launcher", "lokal"], "did you mean `local`?"),
}


@pytest.mark.parametrize(("options", "expected"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_found_before_anything_runs(
    options: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = options if options[0] == "sweep" else [*sweep_args(tmp_path), *options]
    assert main(args) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and expected in output.err
    assert "Traceback" not in output.err
    assert not (tmp_path / "out").exists()


def test_points_of_another_meta_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scheduler = {"class_path": "diffusers.DDIMScheduler"}
    of_ldisn = {"scheduler": scheduler, "dropout": "ConditionDropout", "guidance": "DualGuidance", "steps": 2}
    ldisn = {"model.class_path": "LDISn", **{f"model.{key}": value for key, value in of_ldisn.items()}}
    points = json.dumps({"ldis-1": {}, "ldis-n": ldisn})
    args = ["sweep", "--config", "configs/quickstart.yaml", "--sweep.points", points, "--out", str(tmp_path / "out")]
    assert main([*args, "--sweep.baseline", "ldis-1", "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "ldis-1" in shown and "ldis-n" in shown
