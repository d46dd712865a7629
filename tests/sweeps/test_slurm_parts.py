"""Slurm's answers, and what runs inside a job."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_stand_in import StandIn, install

from ldis_lightning.cli import PREEMPTED_STATUS
from ldis_lightning.sweeps.launchers import slurm_queue, slurm_task
from ldis_lightning.sweeps.launchers.slurm import KILLED_BY_SIGNAL, script_end
from ldis_lightning.sweeps.launchers.slurm_queue import Queue, State

pytest.importorskip("submitit")


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return install(tmp_path / "stand_in", monkeypatch)


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
