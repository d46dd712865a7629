"""The shipped ablations: every point of each runs, and each is lifted to paper scale by the command that it names."""

import csv
import re
import shlex
from pathlib import Path

import pytest
from cli_support import provide_weights_and_data, tiny, tiny_paper_scale
from in_process import InProcess, sweep_with

from ldis_lightning.cli import main
from ldis_lightning.config_files import find_config, packaged_configs
from ldis_lightning.sweeps.estimate import ModelCost

ABLATIONS = sorted(name for name in packaged_configs() if name.startswith("configs/ablation_"))
AXES = {  # METHOD section 6, and the resolution
    "alignment", "fine_tuning", "initialisation", "input_timestep", "loss_space", "masking", "masking_all",
    "meta_architecture", "prompt_encoder", "references", "resolution", "sampler", "training_data",
}  # fmt: skip
IN_A_MINUTE = {"initialisation", "meta_architecture", "training_data"}
"""The others' points run in the slow tests alone, but for those of masking, which docs/sweeps.md shows. What each
config trains by itself runs in tests/test_cli.py."""
COMMAND = re.compile(r"^#.*?(ldis sweep --config .*)$", re.MULTILINE)


def short(name: str) -> str:
    return name.removeprefix("configs/ablation_").removesuffix(".yaml")


def commands(name: str) -> list[list[str]]:
    """The commands in a config's first lines: the sweep at its own scale, and at the paper's."""
    return [shlex.split(line)[1:] for line in COMMAND.findall(find_config(name).read_text(encoding="utf-8"))]


def test_every_axis_has_a_config() -> None:
    assert set(map(short, ABLATIONS)) == AXES


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name", [name if short(name) in IN_A_MINUTE else pytest.param(name, marks=pytest.mark.slow) for name in ABLATIONS]
)
def test_every_point_trains_and_is_scored(
    name: str, in_miniature_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provide_weights_and_data(in_miniature_world)
    sweep_with(InProcess(), monkeypatch)
    own = next(command for command in commands(name) if len(command) == 3)
    options = [*tiny(tmp_path), "--sweep.seeds", "[0]", "--out", str(tmp_path / "out")]
    assert main([*own, *options]) == 0
    with (tmp_path / "out/results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(list((tmp_path / "out/points").iterdir())) >= 2
    assert all(row["test/novel/miou"] for row in rows)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_is_lifted_to_paper_scale(
    name: str, in_miniature_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its points are checked; tests/test_recipes.py builds models of them."""
    monkeypatch.setattr("ldis_lightning.sweeps.estimate.model_cost", lambda *_: ModelCost())  # takes most of the time
    provide_weights_and_data(in_miniature_world)
    (lifted,) = (command for command in commands(name) if len(command) > 3)
    assert lifted[-1].startswith("configs/scale/sd15")
    options = [*tiny(tmp_path), *tiny_paper_scale(lifted[-1], tmp_path)]
    assert main([*lifted, *options, "--dry_run"]) == 0
