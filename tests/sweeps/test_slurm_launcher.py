"""The Slurm launcher against a stand-in for Slurm: what is submitted, what is made of its answers, what is left behind.

`test_slurm.py` runs it against a real one.
"""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ldis_lightning.cli import PREEMPTED_STATUS, main
from ldis_lightning.errors import UserError
from ldis_lightning.sweeps.launchers import Job, Outcome, choice, log_end, slurm, slurm_queue, slurm_task
from ldis_lightning.sweeps.launchers.slurm import KILLED_BY_SIGNAL, Slurm, Ticket, script_end
from ldis_lightning.sweeps.launchers.slurm_queue import Queue, State

pytest.importorskip("submitit")

STAND_INS = {
    "sbatch": """
[[ $1 == --help ]] && { echo "  -A, --account=name  charge"; exit 0; }
number=$(( $(ls script-* 2>/dev/null | wc -l) + 101 ))
[[ -f refuse-$number ]] && { cat refuse-$number >&2; exit 1; }
cp "$1" script-$number; env > environment; echo "Submitted batch job $number" """,
    "squeue": """
if [[ -f silent ]]; then
    echo asked >> silent; echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1
fi
for script in script-*; do
    [[ -f $script ]] || continue
    number=${script#script-}
    name=$(sed -n "s/^#SBATCH --job-name=//p" $script)
    last=$(sed -n "s/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p" $script)
    for index in $(seq 0 ${last:-0}); do
        if [[ -n $last ]]; then id=${number}_$index key=$index; else id=$number key=N/A; fi
        state=$(cat state-$id 2>/dev/null || cat default)
        [[ $state == gone ]] || echo "$name|$key|$id|${state%%|*}|1:07|${state#*|}"
    done
done""",
    "sacct": """
[[ -f accounts ]] && { cat accounts; exit 0; }
echo "Slurm accounting storage is disabled" >&2; exit 1""",
    "scancel": 'echo "$@" >> cancelled',
    "sinfo": "echo debug; echo short",
    "srun": "exit 1",
}


@dataclass
class StandIn:
    """Slurm's commands as scripts; what they answer, and what they were asked, lies in `folder`."""

    folder: Path

    def default(self, state: str) -> None:
        """The state of all jobs of which `set` has said nothing: `STATE|reason`, or `gone`."""
        (self.folder / "default").write_text(state)

    def set(self, id: str, state: str) -> None:
        (self.folder / f"state-{id}").write_text(state)

    def scripts(self) -> list[str]:
        """What was submitted."""
        return [path.read_text() for path in sorted(self.folder.glob("script-*"))]


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    folder = tmp_path / "stand_in"
    folder.mkdir()
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\ncd {folder}\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "FILES_WITHIN", 0.0)  # the stand-in runs no scripts, so nobody leaves a status
    for variable in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(variable)
    own = StandIn(folder)
    own.default("RUNNING|None")
    return own


class Recorder:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.lines: list[str] = []

    def started(self, job: Job) -> None:
        self.names.append(job.name)

    def running(self, job: Job, line: str) -> None:
        assert job.name in self.names
        self.lines.append(line)


class Stop(Exception):
    pass


class Stopping(Recorder):
    """Ends the sweep when the first job runs."""

    def running(self, job: Job, line: str) -> None:
        raise Stop


def make_job(tmp_path: Path, name: str, nodes: int = 1, processes: int = 1) -> Job:
    folder = tmp_path / "out/points" / name / "seed-0"
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ("fit", "--config", str(folder / "point.yaml"), "--ckpt_path", "last")
    return Job(name, arguments, folder / "log.txt", nodes, processes)


def launcher(tmp_path: Path, **options: Any) -> Slurm:
    own = Slurm(poll_seconds=0.02, **options)
    own.folder = tmp_path / "out/slurm"
    return own


def statuses(outcomes: Iterator[Outcome]) -> dict[str, int]:
    return {outcome.job.name: outcome.status for outcome in outcomes}


def start_and_leave(tmp_path: Path, *jobs: Job) -> list[Ticket]:
    """Submit jobs and leave them; their tickets."""
    with pytest.raises(Stop):
        list(launcher(tmp_path).run(jobs, Stopping()))
    tickets = [Ticket.read(job) for job in jobs]
    assert None not in tickets
    return tickets  # type: ignore[return-value]


def leave_status(tmp_path: Path, ticket: Ticket, status: int) -> None:
    """What a job's script does at its end."""
    (tmp_path / "out/slurm" / f"{ticket.name}-{ticket.index}.status").write_text(f"{status}\n")


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


# ---- Reading its answers


@pytest.mark.parametrize(
    ("text", "seconds"), [("0:07", 7), ("1:02:03", 3723), ("2-00:00:01", 172801), ("INVALID", 0), ("", 0), ("59", 59)]
)
def test_elapsed_times(text: str, seconds: float) -> None:
    assert slurm_queue._seconds(text) == seconds


def test_accounts_know_what_the_controller_has_forgotten(stand_in: StandIn) -> None:
    lines = ["n|12_0|COMPLETED|70", "n|12_1|CANCELLED by 1000|5", "m|13|FAILED|1", "n|12_[2-5%2]|PENDING|0", "odd"]
    (stand_in.folder / "accounts").write_text("\n".join(lines))
    assert Queue().forgotten(["n", "m"]) == {
        ("n", 0): State("COMPLETED", "12_0", 70.0),
        ("n", 1): State("CANCELLED", "12_1", 5.0),
        ("m", 0): State("FAILED", "13", 1.0),
    }


def test_a_cluster_without_accounts_is_asked_for_them_once(stand_in: StandIn) -> None:
    queue = Queue()
    assert queue.forgotten(["n"]) == {} and not queue.has_accounts
    (stand_in.folder / "accounts").write_text("n|12_0|COMPLETED|70\n")
    assert queue.forgotten(["n"]) == {}


# ---- Inside a job


@pytest.mark.parametrize("array", [True, False])
@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [
        (0, None, False),
        (1, None, False),
        (2, 1, False),
        (137, None, False),
        (PREEMPTED_STATUS, None, True),
        (PREEMPTED_STATUS, 2, True),
        (PREEMPTED_STATUS, 3, False),
        (KILLED_BY_SIGNAL, 2, True),
        (KILLED_BY_SIGNAL, 3, False),
    ],
)
def test_the_end_of_a_jobs_script(
    status: int, restarts: int | None, requeued: bool, array: bool, stand_in: StandIn, tmp_path: Path
) -> None:
    scontrol = stand_in.folder / "scontrol"
    scontrol.write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    folder = tmp_path / "with space"
    folder.mkdir()
    lines = [f"(exit {status})", *script_end(folder, requeues=3)]
    environment = {"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "ldis-x"}
    if array:  # the last task of an array to start has the array's own number
        environment |= {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    if restarts is not None:
        environment["SLURM_RESTART_COUNT"] = str(restarts)
    done = subprocess.run(["bash", "-c", "\n".join(lines)], env={**os.environ, **environment}, timeout=30)
    assert done.returncode == status
    asked, left = tmp_path / "asked", folder / f"ldis-x-{3 if array else 0}.status"
    assert (asked.read_text() if asked.exists() else None) == (
        f"requeue {'12_3' if array else '12'}\n" if requeued else None
    )
    assert slurm_queue.read_status(left) == (None if requeued else status)


def test_a_task_becomes_the_command(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("earlier\n")
    show = "import json, os; print(json.dumps(dict(os.environ))); raise SystemExit(7)"
    task = "from ldis_lightning.sweeps.launchers.slurm_task import become"
    code = f"{task}\nbecome({[sys.executable, '-c', show]}, {str(log)!r})"
    slurms = {"SLURM_JOB_ID": "20017", "SLURM_JOB_NUM_NODES": "2", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}
    for rank in ("0", "1"):
        environment = {**os.environ, **slurms, "SLURM_PROCID": rank, "SLURM_CPUS_PER_TASK": "3", "MASTER_PORT": "1"}
        assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode == 7
    first, line = log.read_text().splitlines()
    assert first == "earlier"
    for shown in (line, (tmp_path / "log.1.txt").read_text()):
        found = json.loads(shown)
        assert (found["MASTER_ADDR"], found["MASTER_PORT"], found["OMP_NUM_THREADS"]) == ("10.0.0.7", "10017", "3")


def test_jobs_of_one_host_meet_at_ports_of_their_own() -> None:
    ports = {slurm_task.environment({"SLURM_JOB_ID": str(number)})["MASTER_PORT"] for number in range(500, 1500)}
    assert len(ports) == 1000
    assert all(10000 <= int(port) < 30000 for port in ports)


def test_a_task_imports_little() -> None:
    code = "import sys, ldis_lightning.sweeps.launchers.slurm_task; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"torch", "lightning", "submitit"} & set(done.stdout.split())


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
    with pytest.raises(UserError, match=r"pip install ldis-lightning\[slurm\]"):
        Slurm()
