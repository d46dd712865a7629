"""Local runs: order, failures, live output, clean-up."""

import os
import sys
import time
from pathlib import Path

import pytest

from ldis_lightning.errors import UserError
from ldis_lightning.sweeps.launchers import Job, Local, choice
from ldis_lightning.sweeps.launchers.local import LOCK, gpu_sets
from ldis_lightning.sweeps.locks import holder
from ldis_lightning.sweeps.logs import log_end


class Script(Job):
    """A job whose argument is a Python script."""

    @property
    def command(self) -> list[str]:
        return [sys.executable, *self.arguments]


class Recorder:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.lines: set[str] = set()

    def started(self, job: Job) -> None:
        self.names.append(job.name)

    def running(self, job: Job, line: str) -> None:
        self.lines.add(line)


def script(folder: Path, name: str, code: str) -> Script:
    path = folder / f"{name}.py"
    path.write_text(code, encoding="utf-8")
    return Script(name, (str(path),), folder / name / "log.txt")


def test_a_failure_stops_nothing_and_keeps_its_log(tmp_path: Path) -> None:
    jobs = [
        script(tmp_path, "bad", "import sys; print('what went wrong'); sys.exit(3)"),
        script(tmp_path, "good", "import os; print('threads', os.environ['OMP_NUM_THREADS'])"),
    ]
    watcher = Recorder()
    outcomes = list(Local(threads_per_job=2, poll_seconds=0.05).run(jobs, watcher))
    assert [(outcome.job.name, outcome.status) for outcome in outcomes] == [("bad", 3), ("good", 0)]
    assert watcher.names == ["bad", "good"]
    assert log_end(jobs[0].log) == ["what went wrong"]
    assert log_end(jobs[1].log) == ["threads 2"]


def test_jobs_run_side_by_side(tmp_path: Path) -> None:
    def meets(own: str, other: str) -> str:  # ends only when the other one runs at the same time
        return (
            f"import pathlib, time\npathlib.Path(r'{tmp_path}/{own}').touch()\n"
            f"while not pathlib.Path(r'{tmp_path}/{other}').exists(): time.sleep(0.02)"
        )

    jobs = [script(tmp_path, "a", meets("a", "b")), script(tmp_path, "b", meets("b", "a"))]
    outcomes = list(Local(jobs=2, poll_seconds=0.05).run(jobs, Recorder()))
    assert {outcome.job.name: outcome.status for outcome in outcomes} == {"a": 0, "b": 0}


def test_the_latest_line_of_a_progress_bar_is_shown(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    code = (
        "import pathlib, sys, time\nsys.stdout.write('first\\n10%\\r\\x1b[32m20%\\x1b[0m\\r'); sys.stdout.flush()\n"
        f"while not pathlib.Path(r'{seen}').exists(): time.sleep(0.02)"
    )

    class Waiting(Recorder):
        def running(self, job: Job, line: str) -> None:
            super().running(job, line)
            if line == "20%":
                seen.touch()

    watcher = Waiting()
    (outcome,) = Local(poll_seconds=0.05).run([script(tmp_path, "bar", code)], watcher)
    assert outcome.status == 0
    assert watcher.lines <= {"", "20%"}


def test_what_was_started_is_ended_when_the_sweep_stops(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time\nopen(r'{pid}', 'w').write(str(os.getpid()))\nwhile True: time.sleep(0.1)"

    class Stop(Exception):
        pass

    class Stopping(Recorder):
        def running(self, job: Job, line: str) -> None:
            if pid.is_file() and pid.read_text():
                raise Stop

    outcomes = Local(poll_seconds=0.05).run([script(tmp_path, "endless", code)], Stopping())
    with pytest.raises(Stop):
        next(outcomes)
    deadline = time.monotonic() + 20
    while is_alive(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(int(pid.read_text()))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_job_is_a_plain_command(tmp_path: Path) -> None:
    job = Job("lost", ("fit", "--config", str(tmp_path / "point.yaml")), tmp_path / "log.txt")
    (outcome,) = Local(poll_seconds=0.1).run([job], Recorder())
    assert outcome.status == 2
    assert any("point.yaml` does not exist" in line for line in log_end(job.log))


def test_what_there_is_of_a_log_stays(tmp_path: Path) -> None:
    for said in ("first", "second"):
        job = script(tmp_path, "again", f"print('{said}')")
        list(Local(poll_seconds=0.05).run([job], Recorder()))
    assert log_end(job.log) == ["first", "second"]


# ---- GPUs


@pytest.mark.parametrize(
    ("jobs", "each", "sets"),
    [
        (1, None, [None]),  # all of them, as they are
        (2, None, ["3,4", "5,7"]),
        (3, None, ["3", "4", "5"]),
        (5, None, ["3", "4", "5", "7", "3"]),  # shared
        (2, 1, ["3", "4"]),
        (1, 2, ["3,4"]),
        (2, 0, ["", ""]),
    ],
)
def test_gpus_are_shared_out(
    jobs: int, each: int | None, sets: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4, 5,7")
    assert gpu_sets(jobs, each) == sets


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(UserError, match=r"2 jobs at a time with 2 GPUs each need 4, and there are 2 \(0, 1\)"):
        Local(jobs=2, gpus_per_job=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="there are none"):
        Local(gpus_per_job=1)


def test_a_set_of_gpus_is_never_given_out_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    code = (  # fails if another one holds the same GPU
        "import os, time\nname = os.environ['CUDA_VISIBLE_DEVICES']\nassert name in '01'\n"
        f"path = r'{tmp_path}/gpu' + name\nos.close(os.open(path, os.O_CREAT | os.O_EXCL))\n"
        "time.sleep(0.05)\nos.remove(path)"
    )
    jobs = [script(tmp_path, f"job{i}", code) for i in range(6)]
    outcomes = list(Local(jobs=2, poll_seconds=0.01).run(jobs, Recorder()))
    assert [outcome.status for outcome in outcomes] == [0] * 6


# ---- One writer a folder


def test_a_folder_in_use_is_not_written_to(tmp_path: Path) -> None:
    go_on = tmp_path / "go_on"
    code = f"import pathlib, time\nwhile not pathlib.Path(r'{go_on}').exists(): time.sleep(0.02)"
    job = script(tmp_path, "busy", code)

    class Second(Recorder):
        refused = ""

        def running(self, job: Job, line: str) -> None:
            try:
                list(Local(poll_seconds=0.05).run([job], Recorder()))
            except UserError as error:
                self.refused = str(error)
            go_on.touch()

    watcher = Second()
    (outcome,) = Local(poll_seconds=0.05).run([job], watcher)
    assert outcome.status == 0
    assert f"{tmp_path / 'busy'} is in use by process " in watcher.refused
    assert holder(tmp_path / "busy" / LOCK) is None  # free again


# ---- Launchers of others


class Own(Local):
    """A launcher of a user's.

    Args:
        size: of something.
    """

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.size = size


OWN = f"{__name__}.Own"


def test_a_class_of_ones_own_is_built_from_its_options() -> None:
    own, others = choice.split(["--launcher.size", "3", "--trainer.max_steps", "2"], OWN)
    assert others == ["--trainer.max_steps", "2"]
    built = choice.build(OWN, own, {"jobs": None})
    assert type(built).__name__ == "Own" and vars(built)["size"] == 3


@pytest.mark.parametrize(
    ("name", "options", "given", "message"),
    [
        ("lokal", [], {}, "no launcher `lokal`; did you mean `local`?"),
        ("not.there.Class", [], {}, "cannot be imported"),
        ("pathlib.Path", [], {}, "no subclass"),
        (OWN, ["--launcher.size", "big"], {}, "expected int, got `big`"),
        (OWN, ["--launcher.sise", "1"], {}, "did you mean `--size`?"),
        (OWN, ["--launcher.size"], {}, "needs a value"),
        (OWN, ["--slurm.partition", "x"], {}, "needs `--launcher slurm`"),
        (OWN, [], {"jobs": 2}, "has no option `--jobs`"),
    ],
)
def test_mistakes_about_launchers(name: str, options: list[str], given: dict[str, int], message: str) -> None:
    with pytest.raises(UserError) as error:
        own, _ = choice.split(options, name)
        choice.build(name, own, given)
    assert message in str(error.value)
