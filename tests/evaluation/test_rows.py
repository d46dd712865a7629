import functools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_up_rows
import pytest
from torch import nn

from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.rows import ResultRow, describe, read_rows

# ---- Lines


@pytest.mark.parametrize(
    "row",
    [
        made_up_rows.row(),
        made_up_rows.fold(2, runs={"count": 5.0, "mean": 0.5, "std": 0.01}, ceiling=0.97),
        made_up_rows.row(checkpoint=None, checkpoint_sha256=None, set='名 | "[x]"', reference_fusion="MeanLogits"),
        made_up_rows.row(code={"version": "1", "commit": "abc dirty"}, higher_is_better=False, intervals={}),
    ],
)
def test_a_row_survives_writing(row: ResultRow) -> None:
    line = row.to_json()
    assert "\n" not in line
    assert ResultRow.from_json(line) == row


def test_nan_becomes_null() -> None:
    nothing = made_up_rows.row(score=math.nan, scores={"miou": math.nan}, interval=(math.nan, math.inf))
    content = json.loads(nothing.to_json(), parse_constant=pytest.fail)
    assert (content["score"], content["scores"], content["interval"]) == (None, {"miou": None}, [None, None])
    assert math.isnan(ResultRow.from_json(nothing.to_json()).score)


def test_keys_of_later_versions_are_left_out() -> None:
    row = made_up_rows.row()
    assert ResultRow.from_json(json.dumps({**json.loads(row.to_json()), "energy": 7, "path": "x"})) == row


@pytest.mark.parametrize(
    ("treatment", "pairing", "control"),
    [
        ("Intact()", "AcrossImages()", ""),
        ("Swapped()", "AcrossImages()", "Swapped"),
        ("Blurred(sigma=2)", "FirstFrame()", "Blurred(sigma=2)"),
        ("Intact()", "Itself()", "Itself"),
        ("Hidden()", "Itself()", "Hidden, Itself"),
    ],
)
def test_controls(treatment: str, pairing: str, control: str) -> None:
    assert made_up_rows.row(treatment=treatment, rules={"pairing": pairing}).control == control


def test_what_is_compared_is_the_mean_of_runs() -> None:
    assert made_up_rows.row(score=0.5).value == 0.5
    assert made_up_rows.row(score=0.5, runs={"count": 5, "mean": 0.48, "std": 0.01}).value == 0.48


# ---- Files


def test_folders_are_searched_and_no_file_is_read_twice(tmp_path: Path) -> None:
    first = made_up_rows.write(tmp_path / "b/version_0/results.jsonl", made_up_rows.row(), made_up_rows.fold(1))
    made_up_rows.write(tmp_path / "a/results.jsonl", made_up_rows.fold(2))
    (tmp_path / "a/other.jsonl").write_text("no row")
    rows = read_rows([tmp_path, first, tmp_path / "b"])
    assert [row.set for row in rows] == ["coco20i_2", "coco", "coco20i_1"]
    assert rows[1].path == first
    assert replace(rows[1], path=None) == made_up_rows.row()


def test_a_file_of_any_name_can_be_named_and_blank_lines_are_nothing(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    path.write_text(f"\n{made_up_rows.row().to_json()}\r\n\n{made_up_rows.row().to_json()}")
    assert len(read_rows([path])) == 2


def test_an_empty_folder_has_no_rows(tmp_path: Path) -> None:
    assert read_rows([tmp_path]) == []


def test_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`.*/nowhere` does not exist; name a results\.jsonl"):
        read_rows([tmp_path / "nowhere"])


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(made_up_rows.row().to_json()), **changes})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"set": "coco", "sc', "no JSON"),
        ("\x00\x01", "no JSON"),
        ("[1, 2]", "no result row (it is a list)"),
        ('{"set": "coco"}', "it lacks dataset, index_hash, protocol"),
        (changed(episodes="10"), "`episodes` is '10'"),
        (changed(episodes=True), "`episodes` is True"),
        (changed(score="0.5"), "`score` is '0.5'"),
        (changed(settings=[]), "`settings` is []"),
        (changed(scores={"miou": []}), "`scores.miou` is []"),
        (changed(interval=[0.1]), "`interval` is [0.1]"),
        (changed(intervals={"miou": [0.1, "x"]}), "`intervals.miou` is 'x'"),
        (changed(model=None), "`model` is None"),
        (changed(model=""), "`model` is empty"),
        (changed(domain="mixed"), "`domain` is 'mixed'"),
        (changed(checkpoint_sha256=5), "`checkpoint_sha256` is 5"),
        (changed(runs={"mean": 0.5}), "`runs` lacks count, std"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = made_up_rows.write(tmp_path / "results.jsonl", made_up_rows.row())
    path.write_text(f"{path.read_text()}{line}\n{made_up_rows.row().to_json()}\n")
    with pytest.raises(UserError) as error:
        read_rows([tmp_path])
    assert f"{path}, line 2 is no" in str(error.value)
    assert message in str(error.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_bytes(b'{"set": "\xff\xfe"}\n')
    with pytest.raises(UserError, match="line 1 is no JSON"):
        read_rows([tmp_path])


# ---- Descriptions of models


class Leaf:
    def __init__(self, gamma: float = 0.4, low: int = 0) -> None:
        self.gamma, self.low = gamma, low


class Box(nn.Module):
    def __init__(
        self, leaf: Leaf, losses: list[Leaf], layer: nn.Module, optimizer: Any, name: str = "", on: bool = True
    ):
        super().__init__()
        self.leaf, self.losses, self.layer, self.name, self.on = leaf, losses, layer, name, on
        self.optimizer = optimizer


class Whole(nn.Module):
    def __init__(self, box: Box, forgotten: Leaf, steps: int = 20) -> None:
        super().__init__()
        self.box, self.steps, self.unrelated = box, steps, Leaf()


def test_describe_names_components_and_what_is_no_default() -> None:
    box = Box(Leaf(0.2), [Leaf(low=1), Leaf()], nn.Linear(1, 1), functools.partial(print))
    assert describe(Whole(box, Leaf(), steps=5)) == "Whole(Box(Leaf(gamma=0.2), Leaf(low=1), Leaf), steps=5)"
    box = Box(Leaf(), [], nn.Linear(1, 1), print, name="x" * 41, on=False)
    assert describe(Whole(box, Leaf())) == "Whole(Box(Leaf, on=False))"


def test_describe_takes_anything() -> None:
    assert describe(object()) == "object"
