"""Reading folders of finished runs: whole, partial, damaged, hostile, and such as no sweep planned."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_up_sweep import MadeUp

from ldis_lightning.errors import UserError
from ldis_lightning.sweeps.finished import read_sweep
from ldis_lightning.sweeps.unplanned import differing

TWO = {"mask=None,rank=4": 0.3, "mask=Alpha,rank=4": 0.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return MadeUp(TWO, seeds=(0, 7), plan={"baseline": "mask=None,rank=4"}).write(tmp_path / "sweep")


def test_everything_of_a_finished_sweep(folder: Path) -> None:
    sweep = read_sweep(folder)
    assert [point.slug for point in sweep.points] == list(TWO)
    assert sweep.headings == ["mask", "rank"] and sweep.points[1].labels == {"mask": "Alpha", "rank": "4"}
    assert (sweep.metric, sweep.mode, sweep.baseline, sweep.seeds) == (
        "test/novel/miou",
        "max",
        "mask=None,rank=4",
        [0, 7],
    )
    assert not sweep.unfinished and not sweep.notes and sweep.metric_set == "novel"
    run = sweep.runs["mask=Alpha,rank=4", 7]
    assert run.metrics["test/novel/miou"] == pytest.approx(0.5, abs=0.1)
    assert set(run.manifests) == {"novel", "novel_swapped", "seen"}
    assert run.config == folder / "points/mask=Alpha,rank=4/seed-7/point.yaml"
    assert [path.suffix for path in run.event_files] == [".0", ".1"]
    assert run.log_end() == "it went well"


def test_what_is_missing_is_told(folder: Path) -> None:
    shutil.rmtree(folder / "points/mask=Alpha,rank=4/seed-7")
    (folder / "points/mask=Alpha,rank=4/seed-0/results.json").unlink()
    sweep = read_sweep(folder)
    assert [run.problem for run in sweep.unfinished] == ["started, but not finished", "not started"]
    assert sweep.runs_of("mask=Alpha,rank=4") == [] and len(sweep.runs_of("mask=None,rank=4")) == 2


DAMAGE = {
    "empty": b"",
    "half": b'{"metrics": {"test/no',
    "not UTF-8": b'{"metrics": {"\xff\xfe": 1}}',
    "a list": b"[]",
    "no metrics": b"{}",
    "a word": b'{"metrics": {"test/novel/miou": "high"}}',
    "truth": b'{"metrics": {"test/novel/miou": true}}',
    "manifests": b'{"metrics": {}, "manifests": ["a"]}',
    "hash": b'{"metrics": {}, "manifests": {"novel": 3}}',
    "beyond floats": b'{"metrics": {"test/novel/miou": 1' + b"0" * 400 + b"}}",
    "deep": b'{"metrics": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_results_are_a_gap_and_no_traceback(folder: Path, content: bytes) -> None:
    path = folder / "points/mask=Alpha,rank=4/seed-7/results.json"
    path.write_bytes(content)
    sweep = read_sweep(folder)
    (run,) = sweep.unfinished
    assert run.problem.startswith("damaged: results.json cannot be read")
    assert any("seed 7: damaged" in note for note in sweep.notes)


@pytest.mark.parametrize("word", ["null", "NaN", "1e999"])
def test_what_is_no_number_is_nan(folder: Path, word: str) -> None:
    path = folder / "points/mask=Alpha,rank=4/seed-7/results.json"
    path.write_text(f'{{"metrics": {{"test/novel/miou": {word}}}}}')
    assert math.isnan(read_sweep(folder).runs["mask=Alpha,rank=4", 7].metrics["test/novel/miou"])


PLANS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda plan: [plan],
    "no points": lambda plan: {**plan, "points": []},
    "a word for points": lambda plan: {**plan, "points": "all"},
    "no metric": lambda plan: {key: value for key, value in plan.items() if key != "metric"},
    "another mode": lambda plan: {**plan, "mode": "best"},
    "seeds of words": lambda plan: {**plan, "seeds": ["one"]},
    "a way out": lambda plan: {**plan, "points": [{"slug": "../../etc", "labels": {}}]},
    "twice": lambda plan: {**plan, "points": plan["points"][:1] * 2},
}


@pytest.mark.parametrize("change", PLANS.values(), ids=PLANS.keys())
def test_a_damaged_plan_is_one_message(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(change(yaml.safe_load(path.read_text()))))
    with pytest.raises(UserError, match=r"sweep\.yaml is damaged"):
        read_sweep(folder)


def test_a_plan_runs_no_code(folder: Path) -> None:
    (folder / "sweep.yaml").write_text("!!python/object/apply:os.system ['touch hacked']")
    with pytest.raises(UserError, match="damaged"):
        read_sweep(folder)


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        read_sweep(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"did you mean `test/novel/miou`\?"):
        read_sweep(folder, metric="test/novel/mio")
    with pytest.raises(UserError, match=r"no point is `mask=Alfa,rank=4`; did you mean `mask=Alpha,rank=4`"):
        read_sweep(folder, baseline="mask=Alfa,rank=4")
    with pytest.raises(UserError, match="2 points are `rank=4`"):
        read_sweep(folder, baseline="rank=4")
    for path in folder.rglob("results.json"):
        path.unlink()
    with pytest.raises(UserError, match="has finished"):
        read_sweep(folder)


@pytest.mark.parametrize("name", ["Alpha", "mask=Alpha", "rank=4,mask=Alpha", "mask=Alpha,rank=4"])
def test_a_baseline_by_what_sets_it_apart(folder: Path, name: str) -> None:
    assert read_sweep(folder, baseline=name).baseline == "mask=Alpha,rank=4"


def test_another_metric_has_its_own_direction(folder: Path) -> None:
    assert read_sweep(folder, metric="test/seen/miou").mode == "max"
    path = folder / "points/mask=Alpha,rank=4/seed-7/results.json"
    path.write_text('{"metrics": {"test/novel/fpr": 0.1}}')
    assert read_sweep(folder, metric="test/novel/fpr").mode == "min"
    assert read_sweep(folder, metric="test/novel/fpr", mode="max").mode == "max"


# ---- Folders that no sweep planned


def write_run(folder: Path, config: dict[str, Any], score: float = 0.5, name: str = "config.yaml") -> None:
    folder.mkdir(parents=True)
    (folder / name).write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "results.json").write_text(json.dumps({"metrics": {"test/novel/miou": score, "test/a/x": 1.0}}))


def config(seed: int, mask: str, folder: str, **arguments: Any) -> dict[str, Any]:
    component = {"class_path": f"my.masks.{mask}", **({"init_args": arguments} if arguments else {})}
    callbacks = [{"class_path": "Checkpoint", "init_args": {"dirpath": folder, "save_last": True}}]
    trainer = {"default_root_dir": folder, "logger": {"init_args": {"name": folder}}, "callbacks": callbacks}
    model = {"class_path": "my.Model", "init_args": {"mask": component, "depth": 2}}
    return {"seed_everything": seed, "trainer": trainer, "model": model, "ckpt_path": folder}


def test_points_are_what_configs_differ_in(tmp_path: Path) -> None:
    for number, (seed, mask, arguments) in enumerate(
        [(0, "Alpha", {}), (1, "Alpha", {}), (0, "Noise", {"strength": 0.4})]
    ):
        write_run(tmp_path / f"runs/quick/version_{number}", config(seed, mask, f"folder-{number}", **arguments))
    sweep = read_sweep(tmp_path / "runs", baseline="Alpha")
    assert [dict(point.labels) for point in sweep.points] == [{"mask": "Alpha"}, {"mask": "Noise"}]
    assert sweep.metric == "test/novel/miou" and sweep.seeds == [0, 1] and sweep.baseline == "mask=Alpha"
    assert set(sweep.runs) == {("mask=Alpha", 0), ("mask=Alpha", 1), ("mask=Noise", 0)}
    assert sweep.runs["mask=Noise", 0].config == tmp_path / "runs/quick/version_2/config.yaml"


def test_arguments_of_one_class_are_axes_of_their_own(tmp_path: Path) -> None:
    for number, strength in enumerate([0.2, 0.4]):
        write_run(
            tmp_path / f"{number}", config(0, "Noise", f"folder-{number}", strength=strength, low=0), 0.1 * number
        )
    assert [dict(point.labels) for point in read_sweep(tmp_path).points] == [{"strength": "0.2"}, {"strength": "0.4"}]


def test_runs_that_have_little_in_common_go_by_their_folders(tmp_path: Path) -> None:
    for number in range(2):
        other = {f"key{k}": number for k in range(9)}
        write_run(tmp_path / f"run/version_{number}", {**config(0, "Alpha", "x"), **other})
    sweep = read_sweep(tmp_path)
    assert [dict(point.labels) for point in sweep.points] == [{"run": "run/version_0"}, {"run": "run/version_1"}]
    assert [point.slug for point in sweep.points] == ["run_version_0", "run_version_1"]


def test_one_run_alone_and_the_same_twice(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config(0, "Alpha", "a"), 0.1, "point.yaml")
    assert [dict(point.labels) for point in read_sweep(tmp_path).points] == [{"runs": "all"}]
    write_run(tmp_path / "b", config(0, "Alpha", "b"), 0.2)
    sweep = read_sweep(tmp_path)
    assert len(sweep.runs) == 1 and "the later one counts" in sweep.notes[0]


def test_what_cannot_be_used_is_left_out_and_told(tmp_path: Path) -> None:
    write_run(tmp_path / "good", config(0, "Alpha", "a"))
    write_run(tmp_path / "damaged", config(0, "Noise", "b"))
    (tmp_path / "damaged/config.yaml").write_text("a: [")
    write_run(tmp_path / "alone", config(0, "Noise", "c"))
    (tmp_path / "alone/config.yaml").unlink()
    sweep = read_sweep(tmp_path)
    assert len(sweep.points) == 1
    assert sorted("config" in note for note in sweep.notes) == [True, True]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no finished run in"):
        read_sweep(empty)


def test_where_a_run_writes_is_no_difference() -> None:
    assert differing([{"a": [{"dirpath": "x", "k": 1}]}, {"a": [{"dirpath": "y", "k": 1}]}]) == {}
    assert differing([{"a": [{"dirpath": "x", "k": 1}]}, {"a": [{"dirpath": "y", "k": 2}]}]).keys() == {"a"}
    assert differing([{"a": {"b": 1}}, {"a": None}]) == {"a": [{"b": 1}, None]}
