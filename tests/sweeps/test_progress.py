"""What people see while a sweep runs: from the last lines of its runs to states and the time that is left."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from ldis_lightning.sweeps.launchers import Job, Outcome
from ldis_lightning.sweeps.progress import Step, SweepProgress, duration, read_step

JOBS = [Job(f"run{i}", ("fit",), Path(f"nowhere/{i}.txt")) for i in range(6)]
BAR = "Epoch 0:  45%|████▌     | 180/400 [00:33<00:40,  5.40it/s, v_num=, train/loss=0.123]"


@pytest.mark.parametrize(
    ("line", "steps", "step"),
    [
        (BAR, 400, Step("step 180/400", 0.45, "train/loss=0.123")),
        (BAR.replace("Epoch 0", "Epoch 1"), 1000, Step("step 580/1000", 0.58, "train/loss=0.123")),
        (BAR, None, Step("step 180/400", 0.45, "train/loss=0.123")),
        ("Testing DataLoader 0:  50%|#####     | 4/8 [00:01<00:01, 3.1it/s]", 400, Step("testing 4/8")),
        ("drawing the data", 400, Step("drawing the data")),
        ("", 400, Step("")),
    ],
)
def test_the_last_line_says_where_a_run_is(line: str, steps: int | None, step: Step) -> None:
    assert read_step(line, steps) == step


def progress(terminal: bool, past: tuple[float, ...] = ()) -> tuple[SweepProgress, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120)
    return SweepProgress(JOBS, console, lambda job: 400, past), file


def test_time_left_follows_from_speed_and_then_from_runs_that_have_ended() -> None:
    watched, _ = progress(terminal=False)
    assert watched.left() is None
    watched.started(JOBS[0])
    watched.active[JOBS[0]].begun -= 45
    watched.running(JOBS[0], BAR)
    assert watched.left() == pytest.approx(100 * 6 - 45, abs=1)  # 45 seconds for 45 % of the first
    watched.ended_with(Outcome(JOBS[0], 0, 60.0), "well", failed=False)
    assert watched.left() == pytest.approx(60 * 5)


def test_earlier_runs_of_the_sweep_count_and_failed_ones_do_not() -> None:
    watched, file = progress(terminal=False, past=(20.0, 40.0))
    assert watched.left() == pytest.approx(30 * 6)
    watched.started(JOBS[0])
    watched.ended_with(Outcome(JOBS[0], 3, 1.0), "failed (3)", failed=True)
    assert watched.left() == pytest.approx(30 * 5)
    assert "[1/6] run0: failed (3) after 1s" in file.getvalue()


def test_a_file_gets_plain_lines_and_a_terminal_a_table() -> None:
    for terminal in (False, True):
        watched, file = progress(terminal)
        with watched:
            watched.started(JOBS[0])
            watched.running(JOBS[0], BAR)
            watched.console.print(watched._table()) if terminal else None
        shown = file.getvalue()
        assert ("\x1b" in shown) == terminal
        assert ("step 180/400" in shown and "train/loss=0.123" in shown and "and 2 more wait" in shown) == terminal


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 59, 60, 3599, 3600, 90061)] == [
        "0s", "59s", "1m 00s", "59m 59s", "1h 00m", "25h 01m",
    ]  # fmt: skip
