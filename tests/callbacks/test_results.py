import csv
import io
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from ldis_lightning.callbacks import Previews, ResultTable
from ldis_lightning.callbacks.results import labelled, result_tables
from ldis_lightning.evaluation.measures import EpisodeTable, RegionIoU
from ldis_lightning.evaluation.scores import EpisodeScores, SetResult
from ldis_lightning.files import write_atomically


def episode_table(class_ids: list[int]) -> EpisodeTable:
    return EpisodeTable(np.array(class_ids), np.full(len(class_ids), -1))


def set_result(scores: dict[str, float], **fields: Any) -> SetResult:
    """A result of one episode of class 1 out of one, unless told otherwise."""
    counts = {"episodes": 1, "expected": 1, "counts": np.zeros((1, 4), np.int64), "seen": np.ones(1, np.int64)}
    values = {"intervals": {}, "per_class": {1: 0.5}, "run_scores": [], "headline": next(iter(scores)), **counts}
    return SetResult(scores=scores, **{**values, **fields})


def loader(batches: Any) -> DataLoader:
    return DataLoader(batches, batch_size=None)


class TwoSets(pl.LightningDataModule):
    """Sets `seen` (classes 1 and 2) and `novel` (class 3); a batch is (predicted pixels, true pixels, class id)."""

    evaluation_names = ("seen", "novel")

    def test_dataloader(self) -> list[DataLoader]:
        return [loader([(1, 2, 1), (4, 4, 2)]), loader([(1, 4, 3)] * 2)]

    def class_names(self, set_name: str) -> dict[int, str]:
        return {"seen": {1: "ring", 2: "star, large"}, "novel": {}}[set_name]


class Scorer(pl.LightningModule):
    """Keeps and publishes its scores as the segmenters do: results are computed in `on_test_epoch_end`."""

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[str, dict[str, SetResult]] = {}
        classes = {"seen": [1, 2], "novel": [3, 3]}
        self.scores = torch.nn.ModuleDict(
            {name: EpisodeScores(RegionIoU(), episode_table(ids)) for name, ids in classes.items()}
        )

    def test_step(self, batch: tuple[int, int, int], batch_idx: int, dataloader_idx: int = 0) -> None:
        predicted, true, _ = batch
        pixel = torch.arange(4)[None, None]  # (1, 1, 4)
        counts = RegionIoU().count(pixel < predicted, (pixel < true).to(torch.uint8))
        self.scores[TwoSets.evaluation_names[dataloader_idx]].update(torch.tensor([batch_idx]), counts)  # type: ignore[operator]

    def on_test_epoch_end(self) -> None:
        self.results["test"] = {name: scores.result() for name, scores in self.scores.items()}  # type: ignore[operator]
        self.log("test/seconds", 1.5)
        self.log("other", 2.0)


class Plain(pl.LightningModule):
    """A module that scores no episodes."""

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass

    def on_test_epoch_end(self) -> None:
        self.log("test/loss", 0.25)


def run_test(folder: Path, module: pl.LightningModule, data: pl.LightningDataModule) -> None:
    pl.Trainer(
        accelerator="cpu", default_root_dir=folder, logger=False, callbacks=[ResultTable()],
        enable_progress_bar=False, enable_model_summary=False,
    ).test(module, datamodule=data, verbose=False)  # fmt: skip


def test_table_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_test(tmp_path, Scorer(), TwoSets())
    rows = [line.split() for line in capsys.readouterr().out.replace("│", " ").replace("┃", " ").splitlines()]
    assert ["set", "mIoU", "FB-IoU", "episodes", "classes"] in rows
    assert ["seen", "0.7500", "[0.50,", "1.00]", "0.7500", "2", "2"] in rows  # foreground 5/6, background 2/3
    assert ["novel", "0.2500", "[0.25,", "0.25]", "0.1250", "2", "1"] in rows

    content = json.loads((tmp_path / "results.json").read_text())
    assert content["metrics"] == {
        "test/novel/fb_iou": 0.125,
        "test/novel/miou": 0.25,
        "test/seconds": 1.5,
        "test/seen/fb_iou": 0.75,
        "test/seen/miou": 0.75,
    }
    assert content["intervals"]["test/seen/miou"] == [0.5, 1.0]
    assert set(content["intervals"]) == {key for key in content["metrics"] if key != "test/seconds"}
    assert content["per_class"] == {"seen": {"ring": 0.5, "star, large": 1.0}, "novel": {"3": 0.25}}
    assert content["episodes"] == {"seen": 2, "novel": 2}
    assert content["manifests"] == {}

    with (tmp_path / "per_class.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["set", "class_id", "class_name", "measure", "score"],
            ["seen", "1", "ring", "miou", "0.5"],
            ["seen", "2", "star, large", "miou", "1.0"],
            ["novel", "3", "", "miou", "0.25"],
        ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["per_class.csv", "results.json"]


def test_a_module_without_episodes_still_writes_what_it_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_test(tmp_path, Plain(), TwoSets())
    assert "mIoU" not in capsys.readouterr().out
    content = json.loads((tmp_path / "results.json").read_text())
    empty = {"intervals": {}, "per_class": {}, "episodes": {}, "manifests": {}}
    assert content == {"metrics": {"test/loss": 0.25}, **empty}


def test_sets_of_another_measure_have_a_table_of_their_own() -> None:
    clips = set_result({"j_and_f": 0.6, "j": 0.5, "f": 0.7}, intervals={"j_and_f": (0.55, 0.65)})
    pictures = set_result({"miou": 0.3, "fb_iou": 0.4})
    absent = set_result({"fpr": 0.25}, episodes=1, expected=3)
    console = Console(width=100, record=True, file=io.StringIO())
    for table in result_tables({"a": pictures, "clips": clips, "b[c]": pictures, "absent": absent}):
        console.print(table)
    rows = [re.split(r"\s{2,}", re.sub("[│┃]", " ", line).strip()) for line in console.export_text().splitlines()]
    assert ["set", "mIoU", "FB-IoU", "episodes", "classes"] in rows
    assert ["a", "0.3000", "0.4000", "1", "1"] in rows and ["b[c]", "0.3000", "0.4000", "1", "1"] in rows
    assert ["set", "J&F", "J", "F", "episodes", "classes"] in rows
    assert ["clips", "0.6000 [0.55, 0.65]", "0.5000", "0.7000", "1", "1"] in rows
    assert ["absent", "0.2500", "1 of 3", "1"] in rows


def module_with(results: dict[str, SetResult]) -> Any:
    return SimpleNamespace(results={"test": results})


def fake_trainer(folder: Path, **fields: Any) -> Any:
    defaults = {"log_dir": str(folder), "is_global_zero": True, "callback_metrics": {}, "callbacks": []}
    return SimpleNamespace(**(defaults | fields))


def test_nan_becomes_null_and_an_empty_field(tmp_path: Path) -> None:
    nothing = {"miou": math.nan, "fb_iou": math.nan}
    intervals = {"miou": (math.nan, math.nan)}
    result = set_result(nothing, per_class={7: math.nan}, intervals=intervals)
    ResultTable().on_test_end(fake_trainer(tmp_path), module_with({"novel": result}))
    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert content["metrics"] == {"test/novel/fb_iou": None, "test/novel/miou": None}
    assert content["intervals"] == {"test/novel/miou": [None, None]}
    assert content["per_class"] == {"novel": {"7": None}}
    assert (tmp_path / "per_class.csv").read_text().splitlines()[1] == "novel,7,,miou,"


def test_the_hash_stands_only_beside_a_set_that_was_scored_completely(tmp_path: Path) -> None:
    whole, part = (set_result({"miou": 0.5}, episodes=3, expected=expected) for expected in (3, 4))
    drawn = {name: SimpleNamespace(hash="abc") for name in ("all", "part", "unscored")}
    trainer = fake_trainer(tmp_path, datamodule=SimpleNamespace(manifests=drawn))
    ResultTable().on_test_end(trainer, module_with({"all": whole, "part": part, "unplanned": whole}))
    assert json.loads((tmp_path / "results.json").read_text())["manifests"] == {"all": "abc"}


def test_prints_where_the_pictures_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    previews = Previews()
    previews.written = [tmp_path / ("deep" * 40) / "test-[novel]-step1.png"]  # longer than a line, and no markup
    module: Any = SimpleNamespace(results={})
    ResultTable().on_test_end(fake_trainer(tmp_path, callbacks=[previews]), module)
    assert str(previews.written[0]) in capsys.readouterr().out.splitlines()


def test_other_ranks_stay_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = module_with({"novel": set_result({"miou": 1.0})})
    ResultTable().on_test_end(fake_trainer(tmp_path, is_global_zero=False), module)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_classes_of_one_name_are_kept_apart() -> None:
    names = {1: "bank", 2: "bank", 3: "tree"}
    assert labelled({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}, names) == {
        "bank (1)": 0.1,
        "bank (2)": 0.2,
        "tree": 0.3,
        "4": 0.4,
    }


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with path.open() as reader:
        write_atomically(path, lambda temporary: temporary.write_text("new"))
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
