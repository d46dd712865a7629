"""The Slurm launcher against a stand-in for Slurm: what is submitted, how jobs end, what is left behind.

`test_slurm.py` runs it against a real one.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from slurm_stand_in import Recorder, StandIn, install, launcher, leave_status, make_job, start_and_leave, statuses

from ldis_lightning.cli import PREEMPTED_STATUS
from ldis_lightning.errors import UserError
from ldis_lightning.sweeps.launchers import Job, slurm, slurm_queue, slurm_task
from ldis_lightning.sweeps.launchers.slurm import Ticket
from ldis_lightning.sweeps.launchers.slurm_queue import Queue
from ldis_lightning.sweeps.logs import log_end

pytest.importorskip("submitit")


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return install(tmp_path / "stand_in", monkeypatch)


# ---- What is submitted


def option(script: str, name: str) -> str | None:
    found = [line.partition("=")[2] for line in script.splitlines() if line.startswith(f"#SBATCH --{name}=")]
    return found[0] if found else None


def test_jobs_that_need_the_same_share_an_array(stand_in: StandIn, tmp_path: Path) -> None:
    sizes = {"a": (1, 1), "b": (1, 2), "c": (1, 1), "d": (2, 2)}
    jobs = [make_job(tmp_path, name, *size) for name, size in sizes.items()]
    stand_in.default("COMPLETED|None")
    options = {"partition": "debug", "timeout_min": 60, "cpus_per_task": 4, "mem_gb": 1.5, "array_parallelism": 1}
    own = launcher(tmp_path, gpus_per_node=1, additional={"account": "vision", "exclusive": True}, **options)
    assert statuses(own.run(jobs, Recorder())) == dict.fromkeys("abcd", 0)
    scripts = stand_in.scripts()

    def options_of(name: str) -> list[str | None]:
        return [option(script, name) for script in scripts]

    assert options_of("array") == ["0-1%1", None, None]
    assert options_of("nodes") == ["1", "1", "2"]
    assert options_of("ntasks-per-node") == ["1", "2", "2"]
    assert options_of("gpus-per-node") == ["1", "2", "2"]  # one for each process
    for name, value in {"partition": "debug", "time": "60", "cpus-per-task": "4", "mem": "1536MB"}.items():
        assert options_of(name) == [value] * 3
    assert options_of("account") == ["vision"] * 3
    assert options_of("signal") == ["USR1@120"] * 3
    for script in scripts:
        assert "#SBATCH --requeue\n" in script and "#SBATCH --exclusive\n" in script
        assert "--kill-on-bad-exit=1 --cpus-per-task=4" in script


def test_an_array_is_no_larger_than_slurm_takes(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "LARGEST_ARRAY", 2)
    stand_in.default("COMPLETED|None")
    list(launcher(tmp_path).run([make_job(tmp_path, name) for name in "abc"], Recorder()))
    assert [option(script, "array") for script in stand_in.scripts()] == ["0-1%2", None]


def test_a_sweep_inside_a_job_hides_that_job_and_nothing_else(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SRUN_DEBUG", "SLURM_CONF", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "7")
    start_and_leave(tmp_path, make_job(tmp_path, "a"))
    shown = {line.partition("=")[0] for line in (stand_in.folder / "environment").read_text().splitlines()}
    assert {"SLURM_CONF", "SBATCH_ACCOUNT"} <= shown
    assert not {"SLURM_JOB_ID", "SLURM_NTASKS", "SRUN_DEBUG"} & shown
    assert os.environ["SLURM_JOB_ID"] == "7"


def test_what_is_pickled_is_a_function_of_ours_and_words(tmp_path: Path) -> None:
    one = make_job(tmp_path, "a")
    start_and_leave(tmp_path, one)
    (path,) = (tmp_path / "out/slurm").glob("*_submitted.pkl")
    from submitit.core.utils import DelayedSubmission

    submitted = DelayedSubmission.load(path)
    assert submitted.function is slurm_task.become
    assert submitted.args == (one.command, str(one.log))
    assert path.stat().st_size < 2000


def test_what_sbatch_refuses_leaves_nothing_behind(stand_in: StandIn, tmp_path: Path) -> None:
    jobs = [make_job(tmp_path, "a"), make_job(tmp_path, "b", processes=64)]
    (stand_in.folder / "refuse-102").write_text("sbatch: error: Batch job submission failed: Node count\n")
    with pytest.raises(UserError, match="sbatch refuses the sweep's jobs, none is queued: Batch job submission failed"):
        list(launcher(tmp_path).run(jobs, Recorder()))
    assert (stand_in.folder / "cancelled").read_text() == "101\n"
    assert not any(Ticket.read(job) for job in jobs)


@pytest.mark.parametrize(
    ("options", "answer", "expected"),
    [
        ({"partition": "shrt"}, "Invalid partition name specified", "--slurm.partition shrt; did you mean `short`?"),
        ({"additional": {"acount": 1}}, "unrecognized option '--acount=1'", "did you mean `account`?"),
        ({}, "Unable to contact slurm controller", "none is queued: Unable to contact slurm controller"),
    ],
)
def test_refusals_name_what_would_do(
    options: dict, answer: str, expected: str, stand_in: StandIn, tmp_path: Path
) -> None:
    (stand_in.folder / "refuse-101").write_text(f'sbatch: error: {answer}\nTry "sbatch --help" for more information\n')
    with pytest.raises(UserError) as caught:
        list(launcher(tmp_path, **options).run([make_job(tmp_path, "a")], Recorder()))
    assert expected in str(caught.value)


# ---- How jobs end


@pytest.mark.parametrize(
    ("state", "left", "status"),
    [
        ("COMPLETED|None", None, 0),
        ("FAILED|NonZeroExitCode", 3, 3),
        ("FAILED|NonZeroExitCode", 75, PREEMPTED_STATUS),  # as often as it may
        ("FAILED|NodeDown", None, 1),
        ("OUT_OF_MEMORY|OutOfMemory", None, 1),
        ("OUT_OF_MEMORY|OutOfMemory", 0, 1),
        ("CANCELLED|None", None, PREEMPTED_STATUS),
        ("CANCELLED|None", 1, PREEMPTED_STATUS),
        ("TIMEOUT|TimeLimit", None, PREEMPTED_STATUS),
        ("NODE_FAIL|None", None, PREEMPTED_STATUS),
        ("PREEMPTED|None", None, PREEMPTED_STATUS),
        ("gone", None, PREEMPTED_STATUS),
        ("gone", 0, 0),
        ("gone", 4, 4),
    ],
)
def test_ends(state: str, left: int | None, status: int, stand_in: StandIn, tmp_path: Path) -> None:
    one = make_job(tmp_path, "a")

    class Ending(Recorder):
        def running(self, job: Job, line: str) -> None:
            ticket = Ticket.read(job)
            if left is not None and ticket is not None:
                leave_status(tmp_path, ticket, left)
            stand_in.default(state)

    watcher = Ending()
    (outcome,) = launcher(tmp_path).run([one], watcher)
    assert outcome.status == status
    assert watcher.names == ["a"]
    assert Ticket.read(one) is None
    if status == 0:
        assert not one.log.exists()
    else:
        name = {"gone": "FORGOTTEN" if left is None else "FAILED"}.get(state, state.partition("|")[0])
        assert log_end(one.log)[-1].startswith(f"Slurm's job 101: {name}")


def test_a_job_that_never_ran_is_told_of_as_well(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.default("CANCELLED|None")
    (tmp_path / "out/slurm").mkdir(parents=True)
    (tmp_path / "out/slurm/101_0_log.err").write_text("slurmstepd: error: no such folder\n")
    one, watcher = make_job(tmp_path, "a"), Recorder()
    assert statuses(launcher(tmp_path).run([one], watcher)) == {"a": PREEMPTED_STATUS}
    assert watcher.names == ["a"]
    assert log_end(one.log)[0] == "slurmstepd: error: no such folder"  # since there is no output of its own


def test_a_job_that_waits_says_why(stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Waiting(Recorder):
        def running(self, job: Job, line: str) -> None:
            super().running(job, line)
            stand_in.set("101_0", "PENDING|BeginTime" if line != "in the queue again" else "COMPLETED|None")
            stand_in.set("101_1", "COMPLETED|None")

    stand_in.set("101_1", "PENDING|PartitionTimeLimit")
    watcher = Waiting()
    jobs = [make_job(tmp_path, name) for name in "ab"]
    assert statuses(launcher(tmp_path).run(jobs, watcher)) == {"a": 0, "b": 0}
    assert "in the queue again" in watcher.lines  # a job that was requeued
    assert capsys.readouterr().out.count("Slurm lets 101_1 (b) wait: PartitionTimeLimit") == 1


# ---- Going on


def test_jobs_are_left_and_found_again(stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [make_job(tmp_path, name) for name in "abc"]
    start_and_leave(tmp_path, *jobs)
    assert "left with Slurm: 3 runs (jobs 101); the same command watches them again" in capsys.readouterr().out
    assert not (stand_in.folder / "cancelled").exists()

    own = launcher(tmp_path)
    assert own.held(jobs) == {job: f"Slurm's job 101_{index}" for index, job in enumerate(jobs)}
    stand_in.default("COMPLETED|None")
    stand_in.set("101_1", "PENDING|Priority")
    assert own.held(jobs) == {jobs[1]: "Slurm's job 101_1"}
    stand_in.set("101_0", "RUNNING|None")

    class Completing(Recorder):
        def running(self, job: Job, line: str) -> None:
            stand_in.set("101_0", "COMPLETED|None")
            stand_in.set("101_1", "COMPLETED|None")

    assert statuses(own.run(jobs[:2], Completing())) == {"a": 0, "b": 0}
    assert len(stand_in.scripts()) == 1
    assert own.held(jobs[:2]) == {}


@pytest.mark.parametrize("state", ["CANCELLED|None", "gone", "COMPLETED|None", "TIMEOUT|None"])
def test_what_has_ended_without_a_result_is_submitted_again(state: str, stand_in: StandIn, tmp_path: Path) -> None:
    one = make_job(tmp_path, "a")
    start_and_leave(tmp_path, one)
    stand_in.set("101", state)
    stand_in.default("COMPLETED|None")
    assert statuses(launcher(tmp_path).run([one], Recorder())) == {"a": 0}
    assert len(stand_in.scripts()) == 2


def test_what_has_failed_while_nobody_watched_is_told_of_once(stand_in: StandIn, tmp_path: Path) -> None:
    one = make_job(tmp_path, "a")
    (ticket,) = start_and_leave(tmp_path, one)
    leave_status(tmp_path, ticket, 3)
    stand_in.set("101", "gone")
    assert statuses(launcher(tmp_path).run([one], Recorder())) == {"a": 3}
    assert len(stand_in.scripts()) == 1
    stand_in.default("COMPLETED|None")
    assert statuses(launcher(tmp_path).run([one], Recorder())) == {"a": 0}  # asked for once more
    assert len(stand_in.scripts()) == 2


def test_a_sweep_that_was_killed_while_it_submitted_finds_its_jobs(stand_in: StandIn, tmp_path: Path) -> None:
    jobs = [make_job(tmp_path, name) for name in "ab"]
    for job, ticket in zip(jobs, start_and_leave(tmp_path, *jobs), strict=True):
        Ticket(ticket.name, ticket.index).write(job)  # as before sbatch has answered
    assert launcher(tmp_path).held(jobs) == {jobs[0]: "Slurm's job 101_0", jobs[1]: "Slurm's job 101_1"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', '{"name": "x", "index": "y", "id": "1"}'])
def test_a_damaged_ticket_is_none(text: str, stand_in: StandIn, tmp_path: Path) -> None:
    one = make_job(tmp_path, "a")
    (one.log.parent / "slurm.json").write_text(text)
    stand_in.default("COMPLETED|None")
    assert statuses(launcher(tmp_path).run([one], Recorder())) == {"a": 0}


def test_jobs_of_other_names_are_not_ours(stand_in: StandIn, tmp_path: Path) -> None:
    one = make_job(tmp_path, "a")
    (ticket,) = start_and_leave(tmp_path, one)
    Ticket("ldis-another", ticket.index, ticket.id).write(one)  # a new cluster counts from 1 again
    assert launcher(tmp_path).held([one]) == {}


# ---- A controller that is down


def test_slurm_may_be_down_for_a_while(stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = stand_in.folder / "silent"

    class Breaking(Recorder):
        def running(self, job: Job, line: str) -> None:
            silent.touch()
            stand_in.default("COMPLETED|None")

    own = launcher(tmp_path)
    states = own.queue.states

    def asked(names: Any) -> Any:
        if silent.exists() and silent.read_text().count("asked") >= 3:
            silent.unlink()
        return states(names)

    own.queue.states = asked  # type: ignore[method-assign]
    assert statuses(own.run([make_job(tmp_path, "a")], Breaking())) == {"a": 0}
    shown = capsys.readouterr().out
    assert shown.count("Slurm does not answer at present (slurm_load_jobs error: Unable to contact") == 1
    assert "Slurm answers again" in shown


def test_but_not_for_ever(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm, "PATIENCE", 0.1)
    (stand_in.folder / "silent").touch()
    one = make_job(tmp_path, "a")
    with pytest.raises(UserError, match=r"has not answered for .* its jobs are not lost"):
        list(launcher(tmp_path).run([one], Recorder()))
    assert Ticket.read(one) is not None
    assert "left with Slurm: 1 run " in capsys.readouterr().out


def test_a_command_that_hangs_is_a_silent_slurm(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    (stand_in.folder / "squeue").write_text("#!/bin/bash\nexec sleep 60\n")
    monkeypatch.setattr(slurm_queue, "TIMEOUT", 0.2)
    with pytest.raises(slurm_queue.Silent, match="says nothing"):
        Queue().states(["x"])
