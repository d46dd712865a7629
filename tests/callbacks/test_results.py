import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from ldis_lightning.callbacks import Previews, ResultTable
from ldis_lightning.callbacks.results import labelled
from ldis_lightning.callbacks.runs import write_atomically
from ldis_lightning.evaluation.metrics import EpisodeIoU, SetResult


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
    """Keeps and publishes its metrics as the segmenters do: results are computed in `on_test_epoch_end`."""

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[str, dict[str, SetResult]] = {}
        self.metric = torch.nn.ModuleDict({"seen": EpisodeIoU(), "novel": EpisodeIoU()})

    def test_step(self, batch: tuple[int, int, int], batch_idx: int, dataloader_idx: int = 0) -> None:
        predicted, true, class_id = batch
        pixel = torch.arange(4)[None]
        name = TwoSets.evaluation_names[dataloader_idx]
        self.metric[name].update(pixel < predicted, (pixel < true).to(torch.uint8), class_id)  # type: ignore[operator]

    def on_test_epoch_end(self) -> None:
        self.results["test"] = {name: metric.result() for name, metric in self.metric.items()}  # type: ignore[operator]
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
    assert ["seen", "0.7500", "0.7500", "2", "2"] in rows  # foreground 5/6, background 2/3
    assert ["novel", "0.2500", "0.1250", "2", "1"] in rows

    content = json.loads((tmp_path / "results.json").read_text())
    assert content["metrics"] == {
        "test/novel/fb_iou": 0.125,
        "test/novel/miou": 0.25,
        "test/seconds": 1.5,
        "test/seen/fb_iou": 0.75,
        "test/seen/miou": 0.75,
    }
    assert content["per_class"] == {"seen": {"ring": 0.5, "star, large": 1.0}, "novel": {"3": 0.25}}
    assert content["episodes"] == {"seen": 2, "novel": 2}
    assert content["manifests"] == {}

    with (tmp_path / "per_class.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["set", "class_id", "class_name", "iou"],
            ["seen", "1", "ring", "0.5"],
            ["seen", "2", "star, large", "1.0"],
            ["novel", "3", "", "0.25"],
        ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["per_class.csv", "results.json"]


def test_a_module_without_episodes_still_writes_what_it_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_test(tmp_path, Plain(), TwoSets())
    assert "mIoU" not in capsys.readouterr().out
    content = json.loads((tmp_path / "results.json").read_text())
    assert content == {"metrics": {"test/loss": 0.25}, "per_class": {}, "episodes": {}, "manifests": {}}


def fake_trainer(folder: Path, **fields: Any) -> Any:
    defaults = {"log_dir": str(folder), "is_global_zero": True, "callback_metrics": {}, "callbacks": []}
    return SimpleNamespace(**(defaults | fields))


def test_nan_becomes_null_and_an_empty_field(tmp_path: Path) -> None:
    module: Any = SimpleNamespace(results={"test": {"novel": SetResult(math.nan, math.nan, 1, {7: math.nan})}})
    ResultTable().on_test_end(fake_trainer(tmp_path), module)
    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert content["metrics"] == {"test/novel/fb_iou": None, "test/novel/miou": None}
    assert content["per_class"] == {"novel": {"7": None}}
    assert (tmp_path / "per_class.csv").read_text().splitlines()[1] == "novel,7,,"


def test_the_hash_stands_only_beside_a_set_that_was_scored_completely(tmp_path: Path) -> None:
    class Plan(list):
        hash = "abc"

    result = SetResult(0.5, 0.5, episodes=3, per_class={1: 0.5})
    module: Any = SimpleNamespace(results={"test": {"all": result, "part": result, "unplanned": result}})
    plans = {"all": Plan(range(3)), "part": Plan(range(4)), "unscored": Plan()}
    trainer = fake_trainer(tmp_path, datamodule=SimpleNamespace(evaluation_plans=plans))
    ResultTable().on_test_end(trainer, module)
    assert json.loads((tmp_path / "results.json").read_text())["manifests"] == {"all": "abc"}


def test_prints_where_the_pictures_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    previews = Previews()
    previews.written = [tmp_path / ("deep" * 40) / "test-[novel]-step1.png"]  # longer than a line, and no markup
    module: Any = SimpleNamespace(results={})
    ResultTable().on_test_end(fake_trainer(tmp_path, callbacks=[previews]), module)
    assert str(previews.written[0]) in capsys.readouterr().out.splitlines()


def test_other_ranks_stay_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module: Any = SimpleNamespace(results={"test": {"novel": SetResult(1.0, 1.0, 1, {1: 1.0})}})
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
