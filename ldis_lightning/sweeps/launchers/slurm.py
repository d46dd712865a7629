"""Runs as jobs of a Slurm cluster, submitted through submitit. The sweep only watches them: they live without it."""

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from ldis_lightning.cli import PREEMPTED_STATUS
from ldis_lightning.errors import UserError
from ldis_lightning.suggestions import did_you_mean
from ldis_lightning.sweeps.launchers.launcher import Job, Launcher, Outcome, Watcher
from ldis_lightning.sweeps.launchers.slurm_queue import FAILED, FORGOTTEN, Key, Queue, Silent, State, ask, read_status
from ldis_lightning.sweeps.launchers.slurm_task import become
from ldis_lightning.sweeps.logs import last_line, log_end

PATIENCE = 1800.0
"""Seconds without an answer of Slurm after which the sweep stops watching."""
FILES_WITHIN = 60.0
"""Seconds that a shared file system may take to show here what a job has written there."""
LARGEST_ARRAY = 1000  # Slurm's MaxArraySize is 1001 unless the cluster says otherwise
SIGNAL_BEFORE = 120
"""Seconds before the time is up at which the ranks are told to save a checkpoint and leave."""
KILLED_BY_SIGNAL = 128 + 10  # SIGUSR1, where there was no training that would have taken it
OURS = ("array", "job-name", "nodes", "ntasks", "ntasks-per-node", "output", "error", "open-mode", "chdir", "requeue")
USUAL = ("Priority", "Resources", "JobArrayTaskLimit", "BeginTime", "Dependency", "Cleaning", "None", "")
"""Why a job waits that will start by itself."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Ticket:
    """What a run's folder keeps of its job while that is in Slurm's hands, in `slurm.json`.

    Attributes:
        name: of the array, made up for it. Slurm is asked by it, since its numbers begin anew with a new cluster.
        index: in the array.
        id: Slurm's, to be shown; "" from just before it is submitted until just after.
    """

    name: str
    index: int
    id: str = ""

    @property
    def key(self) -> Key:
        """What Slurm is asked by."""
        return self.name, self.index

    @classmethod
    def read(cls, job: Job) -> Self | None:
        """The ticket in a job's folder; None if there is none that can be read."""
        try:
            content = json.loads(_ticket_file(job).read_text(encoding="utf-8"))
            return cls(str(content["name"]), int(content["index"]), str(content["id"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, job: Job) -> None:
        """Put it into the job's folder, whole or not at all."""
        path = _ticket_file(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(asdict(self)), encoding="utf-8")
        os.replace(partial, path)


def _ticket_file(job: Job) -> Path:
    return job.log.parent / "slurm.json"


def _tickets(jobs: Sequence[Job]) -> dict[Job, Ticket]:
    return {job: ticket for job in jobs if (ticket := Ticket.read(job)) is not None}


class Slurm(Launcher):
    """Jobs of a Slurm cluster, in arrays of those that need the same, on a file system that all nodes share.

    A job that is preempted, that runs out of time or whose node fails goes back into the queue and on from its last
    checkpoint. One that a sweep has left behind is found again by the next, by the ticket in its folder.

    Args:
        partition: a partition, or several with commas between; default: Slurm's.
        timeout_min: minutes until a job has to leave, and is queued again; default: the partition's.
        gpus_per_node: GPUs on each node of a job, and at least one for each process; default: none.
        cpus_per_task: processors of each process.
        mem_gb: memory on each node.
        array_parallelism: how many jobs of an array at a time.
        requeues: how often a job may go back into the queue.
        additional: further options of sbatch by their long names, e.g. `{"account": "vision"}`.
        poll_seconds: how often to ask Slurm.

    Raises:
        UserError: submitit or Slurm is not installed; a number is out of its range; `additional` has an option that the
            sweep sets itself.
    """

    def __init__(
        self,
        partition: str | None = None,
        timeout_min: int | None = None,
        gpus_per_node: int | None = None,
        cpus_per_task: int | None = None,
        mem_gb: float | None = None,
        array_parallelism: int = 256,
        requeues: int = 20,
        additional: Mapping[str, Any] | None = None,
        poll_seconds: float = 10.0,
    ) -> None:
        self.partition = partition
        self.timeout_min = timeout_min
        self.gpus_per_node = gpus_per_node
        self.cpus_per_task = cpus_per_task
        self.mem_gb = mem_gb
        self.array_parallelism = array_parallelism
        self.requeues = requeues
        chosen = {str(key).replace("_", "-"): value for key, value in (additional or {}).items()}
        self.additional = {key: value for key, value in chosen.items() if value is not None and value is not False}
        self.poll_seconds = poll_seconds
        self.queue = Queue()
        self._check_options()
        _check_installed()

    def _check_options(self) -> None:
        for name in ("timeout_min", "gpus_per_node", "cpus_per_task", "array_parallelism"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise UserError(f"--slurm.{name}: expected at least 1, got {number}")
        if self.mem_gb is not None and not self.mem_gb > 0:
            raise UserError(f"--slurm.mem_gb: expected more than 0, got {self.mem_gb}")
        if not self.poll_seconds > 0:
            raise UserError(f"--slurm.poll_seconds: expected more than 0, got {self.poll_seconds}")
        if taken := [key for key in self.additional if key in OURS]:
            raise UserError(f"--slurm.additional: `{taken[0]}` is set by the sweep itself")

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> Generator[Outcome]:
        """Find the jobs that are in Slurm's hands already, submit the others, and tell of each as it ends.

        Raises:
            UserError: Slurm refuses a job, or has not answered for half an hour.
        """
        tickets: dict[Job, Ticket] = {}
        try:
            tickets.update(self._attach(jobs))
            self._submit([job for job in jobs if job not in tickets], tickets)
            yield from self._watch(tickets, watcher)
        finally:
            if tickets:
                ids = sorted({ticket.id.partition("_")[0] for ticket in tickets.values() if ticket.id})
                say(
                    f"left with Slurm: {_runs(tickets)} (jobs {', '.join(ids)}); the same command watches them again, "
                    f"`scancel {' '.join(ids)}` ends them"
                )

    # ---- Those of an earlier sweep

    def held(self, jobs: Sequence[Job]) -> dict[Job, str]:
        """The jobs that wait or run in Slurm's hands, and what to call them, e.g. `Slurm's job 12_3`."""
        kept = _tickets(jobs)
        states = self._states(kept.values())
        found = {job: states[ticket.key] for job, ticket in kept.items()}
        return {job: f"Slurm's job {state.id}" for job, state in found.items() if not state.has_ended}

    def _attach(self, jobs: Sequence[Job]) -> dict[Job, Ticket]:
        """The tickets of the jobs that need not be submitted: they live, or have failed while nobody watched."""
        kept = _tickets(jobs)
        states = self._states(kept.values())
        attached = {}
        for job, ticket in kept.items():
            state = states[ticket.key]
            if not state.has_ended or state.name in FAILED:
                attached[job] = replace(ticket, id=state.id)
        if attached:
            say(f"with Slurm already: {_runs(attached)}")
        return attached

    # ---- Submission

    def _submit(self, jobs: Sequence[Job], tickets: dict[Job, Ticket]) -> None:
        """Submit jobs, an array for all that need the same, and add their tickets. If Slurm refuses one array, none is
        left in the queue."""
        groups: dict[tuple[int, int], list[Job]] = {}
        for job in jobs:
            groups.setdefault((job.nodes, job.processes), []).append(job)
        try:
            for (nodes, processes), group in groups.items():
                for start in range(0, len(group), LARGEST_ARRAY):
                    part = group[start : start + LARGEST_ARRAY]
                    tickets.update(self._submit_array(part, nodes, processes))
        except UserError:
            own = [ticket for job in jobs if (ticket := tickets.pop(job, None)) is not None]
            if own:
                with contextlib.suppress(Silent):
                    ask("scancel", *{ticket.id.partition("_")[0] for ticket in own})
            for job in jobs:
                _ticket_file(job).unlink(missing_ok=True)
            raise

    def _submit_array(self, jobs: Sequence[Job], nodes: int, processes: int) -> dict[Job, Ticket]:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        name = f"ldis-{uuid.uuid4().hex[:10]}"
        tickets = {job: Ticket(name, index) for index, job in enumerate(jobs)}
        for job, ticket in tickets.items():  # before sbatch: a sweep that is killed now finds the job by its name
            ticket.write(job)
        executor = submitit.SlurmExecutor(self.folder)
        executor.update_parameters(**self._parameters(name, nodes, processes))
        shown = io.StringIO()
        try:
            with _outside_of_a_job(), contextlib.redirect_stderr(shown), executor.batch():
                submitted = [executor.submit(become, job.command, str(job.log.absolute())) for job in jobs]
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(self._refusal(str(error) or shown.getvalue())) from error
        ids = [one.job_id for one in submitted]
        tickets = {job: replace(ticket, id=id) for (job, ticket), id in zip(tickets.items(), ids, strict=True)}
        for job, ticket in tickets.items():
            ticket.write(job)
        size = f" of {nodes * processes} processes" if nodes * processes > 1 else ""
        say(f"submitted as Slurm's job {ids[0].partition('_')[0]}: {_runs(jobs)}{size}")
        return tickets

    def _parameters(self, name: str, nodes: int, processes: int) -> dict[str, Any]:
        """submitit's parameters of an array."""
        gpus = max(self.gpus_per_node, processes) if self.gpus_per_node else None
        before = SIGNAL_BEFORE if self.timeout_min is None else min(SIGNAL_BEFORE, self.timeout_min * 60 // 2)
        root = shlex.quote(str(Path(__file__).resolve().parents[3]))
        srun = ["--kill-on-bad-exit=1"]
        if self.cpus_per_task:  # srun does not take that over from sbatch
            srun.append(f"--cpus-per-task={self.cpus_per_task}")
        return {
            "job_name": name,
            "partition": self.partition,
            "time": self.timeout_min,
            "nodes": nodes,
            "ntasks_per_node": processes,
            "gpus_per_node": gpus,
            "cpus_per_task": self.cpus_per_task,
            "mem": None if self.mem_gb is None else f"{round(self.mem_gb * 1024)}MB",
            "array_parallelism": self.array_parallelism,
            "wckey": None,
            "setup": [f'export PYTHONPATH={root}"${{PYTHONPATH:+:$PYTHONPATH}}"'],  # a bare checkout is importable
            "srun_args": srun,
            "teardown": script_end(self.folder.absolute(), self.requeues),
            "additional_parameters": {"signal": f"USR1@{before}", "requeue": True, **self.additional},
        }

    def _refusal(self, answer: str) -> str:
        """What to tell the user of what sbatch has said."""
        marks = ("sbatch: error: ", "sbatch: ")
        lines = [line.removeprefix(marks[0]).removeprefix(marks[1]) for line in answer.strip().splitlines()]
        lines = [line for line in lines if not line.startswith("Try ")] or ["nothing"]
        hint = ""
        if "artition" in lines[-1] and self.partition:
            hint = f" (--slurm.partition {self.partition}{did_you_mean(self.partition, _partitions())})"
        elif "unrecognized option" in lines[0]:
            option = lines[0].partition("--")[2].rstrip("'").partition("=")[0]
            hint = f" (--slurm.additional takes options of sbatch{did_you_mean(option, _options_of_sbatch())})"
        return f"sbatch refuses the sweep's jobs, none is queued: {lines[-1]}{hint}"

    # ---- Watching

    def _watch(self, tickets: dict[Job, Ticket], watcher: Watcher) -> Generator[Outcome]:
        """Tell of the jobs until there are none left; takes those out of `tickets` that have ended."""
        started: set[Job] = set()
        told: set[str] = set()
        while tickets:
            states = self._states(tickets.values())
            for job, ticket in list(tickets.items()):
                state = states[ticket.key]
                if state.name == "PENDING" and state.reason not in USUAL and state.reason not in told:
                    told.add(state.reason)
                    say(f"Slurm lets {state.id} ({job.name}) wait: {state.reason}")
                if job not in started and (state.name == "RUNNING" or state.has_ended):
                    started.add(job)
                    watcher.started(job)
                if state.has_ended:
                    outcome = self._outcome(job, ticket, state)
                    _ticket_file(job).unlink(missing_ok=True)
                    del tickets[job]
                    yield outcome
            self._pause({job: states[ticket.key] for job, ticket in tickets.items() if job in started}, watcher)

    def _pause(self, begun: Mapping[Job, State], watcher: Watcher) -> None:
        """Show what the jobs write until it is time to ask Slurm again."""
        until = time.monotonic() + self.poll_seconds
        while (left := until - time.monotonic()) > 0:
            for job, state in begun.items():
                watcher.running(job, "in the queue again" if state.name == "PENDING" else last_line(job.log))
            time.sleep(min(1.0, left))

    def _states(self, tickets: Collection[Ticket]) -> dict[Key, State]:
        """The state of every ticket's job.

        Slurm may be down for a while; that does not hurt its jobs.

        Raises:
            UserError: Slurm has not answered for half an hour.
        """
        if not tickets:
            return {}
        names = {ticket.name for ticket in tickets}
        found = self._patiently(lambda: self.queue.states(names))
        missing = {ticket.name for ticket in tickets if ticket.key not in found}
        accounts = self.queue.forgotten(missing) if missing else {}
        return {
            ticket.key: found.get(ticket.key) or accounts.get(ticket.key) or self._left_by(ticket) for ticket in tickets
        }

    def _left_by(self, ticket: Ticket) -> State:
        """The state of a job that Slurm has forgotten: what its script has left behind."""
        status = read_status(self._status_file(ticket))
        name = FORGOTTEN if status is None else "FAILED" if status else "COMPLETED"
        return State(name, ticket.id)

    def _patiently(self, question: Callable[[], Answer]) -> Answer:
        """An answer of Slurm, which may be down for a while: that does not hurt its jobs."""
        begun = time.monotonic()
        is_told = False
        while True:
            try:
                answer = question()
            except Silent as error:
                if time.monotonic() - begun > PATIENCE:
                    raise UserError(
                        f"Slurm has not answered for {PATIENCE / 60:.0f} minutes ({error}); its jobs are not lost: "
                        "run the same command when it is back"
                    ) from error
                if not is_told:
                    say(f"Slurm does not answer at present ({error}); asking again")
                    is_told = True
                time.sleep(self.poll_seconds)
            else:
                if is_told:
                    say("Slurm answers again")
                return answer

    # ---- Ends

    def _outcome(self, job: Job, ticket: Ticket, state: State) -> Outcome:
        """How a job has ended. Of one that has not succeeded, the end of the log says what Slurm made of it."""
        path = self._status_file(ticket)
        if state.name == "COMPLETED":
            _wait_for(path)
            return Outcome(job, 0, state.seconds)
        status = read_status(path) if state.name in FAILED else PREEMPTED_STATUS
        own = self.folder / f"{ticket.id}_0_log.err"
        lines = [] if log_end(job.log, 1) else log_end(own)
        reason = f" ({state.reason})" if state.reason not in ("", state.name, "NonZeroExitCode") else ""
        lines.append(f"Slurm's job {ticket.id}: {state.name}{reason}; what Slurm has said of it is in {own}")
        with job.log.open("a", encoding="utf-8") as log:
            log.writelines(f"{line}\n" for line in lines)
        return Outcome(job, status or 1, state.seconds)

    def _status_file(self, ticket: Ticket) -> Path:
        return self.folder / f"{ticket.name}-{ticket.index}.status"


def script_end(folder: Path, requeues: int) -> list[str]:
    """The lines of the job's script behind `srun`: back into the queue, or leave the status and end with it.

    As in configs/cluster/slurm.sh, but that a signal which ended a process outside of training is a reason to go on as
    well, and that there is an end to it.
    """
    # By its own number the last task of an array to start is the whole array: Slurm would requeue all of it.
    return [
        "status=$?",
        "job=$SLURM_JOB_ID",
        "[[ -n ${SLURM_ARRAY_JOB_ID:-} ]] && job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID",
        f"if [[ ( $status -eq {PREEMPTED_STATUS} || $status -eq {KILLED_BY_SIGNAL} ) && "
        f"${{SLURM_RESTART_COUNT:-0}} -lt {requeues} ]]; then",
        '    scontrol requeue "$job" && exit "$status"',
        "fi",
        f"file={shlex.quote(str(folder))}/$SLURM_JOB_NAME-${{SLURM_ARRAY_TASK_ID:-0}}.status",
        'echo "$status" > "$file.partial" && mv "$file.partial" "$file"',
        'exit "$status"',
    ]


def _wait_for(path: Path) -> None:
    """Until a file is there that a job has written, or would have by now."""
    deadline = time.monotonic() + FILES_WITHIN
    while not path.is_file() and time.monotonic() < deadline:
        time.sleep(1.0)
        os.listdir(path.parent)  # which makes a network's file system look again


@contextlib.contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """Where the sweep itself runs in a job, hide the variables of that one from sbatch, which would take them over.

    submitit's own `clean_env` hides too much: where Slurm's configuration is, and the user's defaults of sbatch.
    """
    of_a_job = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
    hidden = {name: value for name, value in os.environ.items() if name.startswith(of_a_job) and name != "SLURM_CONF"}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _check_installed() -> None:
    if importlib.util.find_spec("submitit") is None:
        raise UserError(
            "--launcher slurm needs submitit, which is not installed: `pip install 'ldis-lightning[slurm]'`"
        )
    for name in ("sbatch", "squeue", "scancel", "srun"):
        if shutil.which(name) is None:
            raise UserError(f"--launcher slurm: there is no `{name}` here; run it where you would run sbatch")


def _partitions() -> list[str]:
    try:
        return ask("sinfo", "--noheader", "--format", "%R").split()
    except Silent:
        return []


def _options_of_sbatch() -> list[str]:
    try:
        return re.findall(r"--([a-z-]+)", ask("sbatch", "--help"))
    except Silent:
        return []


def _runs(found: Collection[Any]) -> str:
    return f"{len(found)} run{'' if len(found) == 1 else 's'}"


def say(line: str) -> None:
    """Tell the user."""
    print(line, flush=True)
