import csv
import hashlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import tiny, write_config

from ldis_lightning.callbacks.rows import ResultRows, append_rows, over_runs
from ldis_lightning.cli import main
from ldis_lightning.datamodules.manifest import Manifest
from ldis_lightning.datamodules.source import Episode
from ldis_lightning.evaluation.measures import FalsePositives, Measure, RegionIoU
from ldis_lightning.evaluation.rows import ResultRow, read_rows
from ldis_lightning.evaluation.scores import EpisodeScores, SetResult

CLASSES = {1: "dog", 2: "cat", 3: "kite"}


def manifest(**changes: Any) -> Manifest:
    """Four episodes of the classes 1 and 2, two of them of clip 7."""
    episodes = [Episode(query, (query + 1,), 1 + query % 2, 10 + query, 1 + query % 2) for query in range(4)]
    facts: dict[str, Any] = {
        **{"protocol": "ldis", "settings": {"episodes": 4}, "rules": {"pairing": "AcrossImages()", "classes": None}},
        **{"dataset": "pets", "index_hash": "1" * 64, "references": 1, "treatment": "Intact()", "classes": CLASSES},
        **{"episodes": episodes, "clip": [-1, -1, 7, 7]},
    }
    return Manifest(**{**facts, **changes})


def scored(drawn: Manifest, measure: Measure, scored: int = 4) -> SetResult:
    """What the first episodes come to, each with other counts."""
    scores = EpisodeScores(measure, drawn.table())
    counts = torch.arange(4)[:, None] + torch.tensor([1, 10, 20, 30])[: measure.width]
    scores.update(torch.arange(scored), counts[:scored])
    return scores.result()


class FakeData:
    """The part of the datamodule that rows are made of."""

    evaluation_names = ("pictures", "absent")

    def __init__(self, trained_on: dict[str, list[str]] | None = None, **manifests: Manifest) -> None:
        self.manifests = {"pictures": manifest(), "absent": manifest(protocol="absence"), **manifests}
        self.trained_on = trained_on
        index = SimpleNamespace(key=lambda query: f"pets/{query:03d}")
        self.evaluation_sets = dict.fromkeys(self.manifests, SimpleNamespace(index=index))

    def scoreboard(self, stage: str, name: str) -> Any:
        assert stage == "test"
        return SimpleNamespace(measure=FalsePositives() if name == "absent" else RegionIoU())

    def results(self, **changes: SetResult) -> dict[str, SetResult]:
        measures = {name: self.scoreboard("test", name).measure for name in self.manifests}
        return {name: scored(self.manifests[name], measure) for name, measure in measures.items()} | changes


class FakeModel:
    def __init__(self, results: dict[str, SetResult], steps: int = 20) -> None:
        self.results, self.steps = {"test": results}, steps


def trainer(folder: Path, data: Any, **fields: Any) -> Any:
    defaults = {"log_dir": str(folder), "is_global_zero": True, "callback_metrics": {}, "ckpt_path": None}
    return SimpleNamespace(**{**defaults, "datamodule": data, **fields})


def run(folder: Path, data: Any, results: dict[str, SetResult] | None = None, **fields: Any) -> list[ResultRow]:
    """The rows in `folder` after a test."""
    callback, model, fake = ResultRows(), FakeModel(results or data.results(), steps=5), trainer(folder, data, **fields)
    callback.on_test_start(fake, model)  # type: ignore[arg-type]
    callback.on_test_end(fake, model)  # type: ignore[arg-type]
    return read_rows([folder])


# ---- Rows


def test_a_row_says_what_was_scored(tmp_path: Path) -> None:
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.write_bytes(b"weights")
    data = FakeData(trained_on={"pets": ["dog"]})
    metrics = {"test/pictures/ceiling": torch.tensor(0.75), "test/pictures/miou": torch.tensor(0.1)}
    row, absent = run(tmp_path / "run", data, ckpt_path=str(checkpoint), callback_metrics=metrics)

    drawn, result = data.manifests["pictures"], data.results()["pictures"]
    assert (row.set, row.dataset, row.index_hash, row.protocol) == ("pictures", "pets", "1" * 64, "ldis")
    assert (row.settings, row.rules, row.manifest_hash) == (drawn.settings, drawn.rules, drawn.hash)
    assert (row.references, row.treatment, row.episodes, row.expected) == (1, "Intact()", 4, 4)
    assert (row.measure, row.score, row.scores) == ("miou", result.scores["miou"], result.scores)
    assert row.interval == result.intervals["miou"] and row.intervals == result.intervals
    assert (row.runs, row.higher_is_better, row.ceiling) == (None, True, 0.75)
    assert row.domain == "mixed 1/2"  # the third class is never asked for
    assert (row.checkpoint, row.checkpoint_sha256) == ("last.ckpt", hashlib.sha256(b"weights").hexdigest())
    assert (row.model, row.reference_fusion) == ("FakeModel(steps=5)", None)
    assert set(row.code) == {"version", "commit"}
    assert row.time.endswith("+00:00")
    assert (absent.measure, absent.higher_is_better, absent.ceiling) == ("fpr", False, None)


@pytest.mark.parametrize(
    ("trained_on", "domain"),
    [(None, "unknown"), ({"pets": ["Dog", "CAT"]}, "in-domain"), ({"birds": ["wren"]}, "strict")],
)
def test_domain(trained_on: dict[str, list[str]] | None, domain: str, tmp_path: Path) -> None:
    assert run(tmp_path, FakeData(trained_on))[0].domain == domain


def test_weights_from_memory_or_from_elsewhere_have_no_hash(tmp_path: Path) -> None:
    (row, _) = run(tmp_path / "a", FakeData())
    assert (row.checkpoint, row.checkpoint_sha256) == (None, None)
    (row, _) = run(tmp_path / "b", FakeData(), ckpt_path="s3://bucket/run/last.ckpt")
    assert (row.checkpoint, row.checkpoint_sha256) == ("last.ckpt", None)


def test_a_sharded_checkpoint_is_a_directory(tmp_path: Path) -> None:
    folder = tmp_path / "step=5.ckpt"
    folder.mkdir()
    (folder / "__0_0.distcp").write_bytes(b"weights")
    (row, _) = run(tmp_path / "run", FakeData(), ckpt_path=folder)
    assert row.checkpoint == "step=5.ckpt" and len(row.checkpoint_sha256 or "") == 64


def test_several_runs(tmp_path: Path) -> None:
    data = FakeData(pictures=manifest(runs=2, protocol="bam-coco"))
    row = run(tmp_path, data)[0]
    first, second = (scores["miou"] for scores in data.results()["pictures"].run_scores)
    expected = {"count": 2, "mean": (first + second) / 2, "std": abs(first - second) / math.sqrt(2)}
    assert row.runs == pytest.approx(expected)
    assert over_runs([0.5]) is None


def test_an_incomplete_set_says_so(tmp_path: Path) -> None:
    data = FakeData()
    row = run(tmp_path, data, data.results(pictures=scored(data.manifests["pictures"], RegionIoU(), scored=3)))[0]
    assert (row.episodes, row.expected, row.complete) == (3, 4, False)


def test_nothing_scored_is_null(tmp_path: Path) -> None:
    data = FakeData()
    row = run(tmp_path, data, data.results(pictures=scored(data.manifests["pictures"], RegionIoU(), scored=0)))[0]
    assert math.isnan(row.score) and row.episodes == 0
    first = (tmp_path / "results.jsonl").read_text().splitlines()[0]
    assert json.loads(first, parse_constant=pytest.fail)["score"] is None


def test_a_set_without_a_manifest_has_no_row(tmp_path: Path) -> None:
    data = FakeData()
    results = data.results(other=data.results()["pictures"])
    assert [row.set for row in run(tmp_path, data, results)] == ["pictures", "absent"]
    (tmp_path / "foreign").mkdir()
    assert run(tmp_path / "foreign", SimpleNamespace(), results) == []


def test_only_rank_0_writes(tmp_path: Path) -> None:
    assert run(tmp_path, FakeData(), is_global_zero=False) == []
    assert list(tmp_path.iterdir()) == []


def test_reference_fusion_is_named(tmp_path: Path) -> None:
    class MeanLogits:
        pass

    model = SimpleNamespace(results={"test": FakeData().results()}, reference_fusion=MeanLogits())
    callback, fake = ResultRows(), trainer(tmp_path, FakeData())
    callback.on_test_start(fake, model)  # type: ignore[arg-type]
    callback.on_test_end(fake, model)  # type: ignore[arg-type]
    assert read_rows([tmp_path])[0].reference_fusion == "MeanLogits"


# ---- What lies beside them


def test_manifests_and_episodes_lie_beside_the_rows(tmp_path: Path) -> None:
    data = FakeData()
    part = scored(data.manifests["pictures"], RegionIoU(), scored=3)
    run(tmp_path, data, data.results(pictures=part))
    assert Manifest.load(tmp_path / "manifests/pictures.json").hash == data.manifests["pictures"].hash
    with (tmp_path / "episodes/pictures.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines == [
        ["episode", "query", "class_id", "clip", "run", "scored", *RegionIoU.columns],
        ["0", "pets/000", "1", "-1", "0", "1", "1", "10", "20", "30"],
        ["1", "pets/001", "2", "-1", "0", "1", "2", "11", "21", "31"],
        ["2", "pets/002", "1", "7", "0", "1", "3", "12", "22", "32"],
        ["3", "pets/003", "2", "7", "0", "0", "0", "0", "0", "0"],
    ]
    counts = np.array([line[6:] for line in lines[1:4]], int)
    assert RegionIoU().scores(counts, manifest().table().take(np.arange(3))) == part.scores


def test_episodes_of_several_runs(tmp_path: Path) -> None:
    run(tmp_path, FakeData(pictures=manifest(runs=2)))
    with (tmp_path / "episodes/pictures.csv").open(newline="") as file:
        assert [line["run"] for line in csv.DictReader(file)] == ["0", "0", "1", "1"]


# ---- Appending


def test_rows_of_a_second_test_are_appended(tmp_path: Path) -> None:
    assert len(run(tmp_path, FakeData())) == 2
    assert len(run(tmp_path, FakeData())) == 4


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, FakeData())
    before = (tmp_path / "results.jsonl").read_bytes()
    write_bytes = Path.write_bytes

    def interrupted(path: Path, data: bytes) -> int:
        write_bytes(path, data[:-100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, FakeData())
    monkeypatch.undo()
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.glob("*.jsonl*")] == ["results.jsonl"]
    assert len(run(tmp_path, FakeData())) == 4


def test_a_file_without_a_last_line_break_gets_one(tmp_path: Path) -> None:
    row = run(tmp_path, FakeData())[0]
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    append_rows(path, [row])
    assert len(read_rows([path])) == 3


# ---- Through the command line


def test_ldis_test_writes_rows_that_ldis_results_prints(
    in_miniature_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"trainer": {"callbacks": [{"class_path": "ResultRows"}], "limit_test_batches": 1.0}}
    options = ["--config", "configs/quickstart.yaml", *tiny(tmp_path)]
    assert main(["fit", *options, "--score_after_fit", "false"]) == 0
    (checkpoint,) = (tmp_path / "runs").rglob("last.ckpt")
    overlay = write_config(tmp_path / "rows.yaml", rows)
    assert main(["test", *options, "--config", overlay, "--ckpt_path", str(checkpoint)]) == 0

    rows_by_set = {row.set: row for row in read_rows([tmp_path / "runs"])}
    assert set(rows_by_set) == {"seen", "novel", "novel_swapped", "novel_hidden"}
    novel = rows_by_set["novel"]
    assert novel.complete and novel.protocol == "ldis" and novel.model.startswith("LDIS1(")
    assert novel.checkpoint_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert {name: row.domain for name, row in rows_by_set.items() if not row.control} == {
        "seen": "in-domain",
        "novel": "strict",
    }
    assert rows_by_set["novel_swapped"].control == "Swapped"
    folder = novel.path.parent if novel.path else Path()
    assert Manifest.load(folder / "manifests/novel.json").hash == novel.manifest_hash
    assert (folder / "episodes/novel.csv").read_text().count("\n") == novel.expected + 1

    capsys.readouterr()
    assert main(["results", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "strict" in out and "in-domain" in out and "Hidden" in out
