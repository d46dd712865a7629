"""The Slurm script: what it runs, shown by a stub in the place of srun."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from cluster_support import ROOT

from ldis_lightning.config_files import resolve_configs
from ldis_lightning.lightning_cli import parse_fit

SCRIPT = ROOT / "configs/cluster/slurm.sh"
TEXT = SCRIPT.read_text(encoding="utf-8")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script as Slurm would on two nodes of eight tasks; `srun` writes what it is given, a word a line."""
    stub = folder / "srun"
    stub.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n', encoding="utf-8")
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


def test_it_says_what_it_wants(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2
    assert "usage: sbatch slurm.sh CONFIG" in done.stderr


@pytest.mark.parametrize("name", ["--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--time"])
def test_what_must_be_edited_is_marked(name: str) -> None:
    (line,) = [line for line in TEXT.splitlines() if line.startswith(f"#SBATCH {name}=")]
    assert "# <--" in line


def test_every_task_has_a_gpu() -> None:
    numbers = dict(re.findall(r"^#SBATCH --(\S+-per-node)=(\d+)", TEXT, re.MULTILINE))
    assert numbers["ntasks-per-node"] == numbers["gpus-per-node"]


def test_the_page_submits_it() -> None:
    page = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    assert "configs/cluster/slurm.sh" in page and "\nsbatch slurm.sh configs/ldis1.yaml\n" in page
