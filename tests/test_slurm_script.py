"""The Slurm script: what it runs, shown by a stub in the place of srun."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from cluster_support import ROOT

from ldis_lightning.callbacks.preemption import Preemption
from ldis_lightning.cli import PREEMPTED_STATUS
from ldis_lightning.config_files import resolve_configs
from ldis_lightning.lightning_cli import parse_fit

SCRIPT = ROOT / "configs/cluster/slurm.sh"
TEXT = SCRIPT.read_text(encoding="utf-8")


def run(folder: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the script as Slurm would on two nodes of eight tasks; `srun` and `scontrol` write what they are given, one
    word a line, and `srun` ends with `status`."""
    for name, ending in {"srun": f"exit {status}\n", "scontrol": ""}.items():
        stub = folder / name
        stub.write_text(f'#!/bin/bash\nprintf "%s\\n" {name} "$@"\n{ending}', encoding="utf-8")
        stub.chmod(0o755)
    slurm = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_ID": "77"}
    environment = {**os.environ, **slurm, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=30
    )


def test_it_runs_fit_with_slurms_numbers(tmp_path: Path) -> None:
    done = run(tmp_path, "configs/quickstart.yaml", "--trainer.max_steps", "7")
    assert done.returncode == 0
    words = done.stdout.splitlines()
    options = words[words.index("fit") + 1 :]
    resolve_configs(options)  # every config that it names exists
    config = parse_fit(options)[1]
    assert (config.trainer.num_nodes, config.trainer.max_steps, config.ckpt_path) == (2, 7, "last")
    assert config.trainer.devices == "8"
    assert config.trainer.logger.init_args.version == "slurm_77"
    assert config.trainer.strategy.class_path.endswith("DDPStrategy")


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (2, False), (75, True), (137, False)])
def test_only_a_run_that_was_stopped_is_requeued(status: int, requeued: bool, tmp_path: Path) -> None:
    done = run(tmp_path, "configs/quickstart.yaml", status=status)
    assert done.returncode == status
    assert done.stdout.splitlines()[-3:] == ["scontrol", "requeue", "77"] or not requeued
    assert ("scontrol" in done.stdout.splitlines()) == requeued


def test_the_status_is_the_commands() -> None:
    assert f"[[ $status -eq {PREEMPTED_STATUS} ]]" in TEXT


def test_slurm_sends_a_signal_that_training_takes() -> None:
    (name,) = re.findall(r"^#SBATCH --signal=(\w+)@\d+ ", TEXT, re.MULTILINE)  # to the tasks: not `B:`, to the script
    assert signal.Signals[f"SIG{name}"] in Preemption().signals


def test_it_says_what_it_wants(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2
    assert "usage: sbatch slurm.sh CONFIG" in done.stderr


@pytest.mark.parametrize(
    "name", ["--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--time", "--signal"]
)
def test_what_must_be_edited_is_marked(name: str) -> None:
    (line,) = [line for line in TEXT.splitlines() if line.startswith(f"#SBATCH {name}=")]
    assert "# <--" in line


def test_every_task_has_a_gpu() -> None:
    numbers = dict(re.findall(r"^#SBATCH --(\S+-per-node)=(\d+)", TEXT, re.MULTILINE))
    assert numbers["ntasks-per-node"] == numbers["gpus-per-node"]


def test_the_page_submits_it() -> None:
    page = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    assert "configs/cluster/slurm.sh" in page and "\nsbatch slurm.sh configs/ldis1.yaml\n" in page
