"""Opening an index that is damaged, or that someone who means harm has written: one message each."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_files import change, header, write_small

from ldis_lightning.datamodules import index_checks
from ldis_lightning.datamodules.index import COLUMNS, Row, Shard, ShardIndex, sha256_of_file
from ldis_lightning.datamodules.index_builder import IndexBuilder
from ldis_lightning.errors import UserError


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_small(tmp_path / "set")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"format": "mds"}', '{"format": "ldis_lightning index"}'])
def test_headers_that_are_none(folder, text):
    (folder / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json"):
        ShardIndex.open(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"rows": 5},
        {"rows": "4"},
        {"columns": {}},
        {"shards": [{"name": "shard-00000.tar"}]},
        {"shards": None},
        {"classes": {"one": "cat"}},
        {"classes": []},
        {"column_folder": ".."},
        {"shards": [{"name": "../set/shard-00000.tar", "size": 20480, "sha256": ""}]},
        {"rows": True},
        {"rows": -1},
        {"rows": 2**70},
        {"rows": 4.0},
        {"version": 3.0},
        {"name": ""},
        {"name": "\x1b[2J"},
        {"name": 3},
        {"kind": "films"},
        {"kind": "images"},
        {"classes": {"1": 3}},
        {"classes": {"1": "cat", "2": "dog"}},
        {"classes": {"1": "cat", "2": "dog", "3": "", "9": "never seen"}},
        {"classes": {"0": "none", "1": "cat", "2": "dog", "3": "cow"}},
        {"classes": {"255": "ignore", "1": "cat", "2": "dog", "3": "cow"}},
        {"classes": {"65535": "all", "1": "cat", "2": "dog", "3": "cow"}},
        {"classes": {"01": "cat", "1": "cat", "2": "dog", "3": "cow"}},
        {"classes": {"\u0661": "cat", "1": "cat", "2": "dog", "3": "cow"}},
        {"classes": {"9" * 5000: "cat", "1": "cat", "2": "dog", "3": "cow"}},
        {"column_folder": ""},
        {"column_folder": "."},
        {"column_folder": "a/b"},
        {"column_folder": 3},
        {"columns": []},
        {"columns": {name: None for name in COLUMNS}},
        {"shards": {}},
        {"shards": ["shard-00000.tar"]},
        {"shards": [{"name": "shard-00000.tar", "size": "20480", "sha256": ""}]},
        {"shards": [{"name": "shard-00000.tar", "size": 20480, "sha256": None}]},
        {"shards": [{"name": "shard-00000.tar", "size": 20480, "sha256": "", "url": "http://x"}]},
        {"shards": [{"name": "", "size": 20480, "sha256": ""}]},
        {"shards": [{"name": "..", "size": 20480, "sha256": ""}]},
        {"shards": [{"name": "/dev/zero", "size": 0, "sha256": ""}]},
        {"shards": []},
    ],
)
def test_damaged_headers_are_one_message(folder, values):
    change(folder, **values)
    with pytest.raises(UserError, match=r"index"):
        ShardIndex.open(folder)


def test_shards_that_are_listed_twice(folder):
    change(folder, shards=[*header(folder)["shards"], header(folder)["shards"][0]])
    with pytest.raises(UserError, match="a shard is listed twice"):
        ShardIndex.open(folder)


@pytest.mark.parametrize("text", ['{"a":' * 100_000, "[" * 10**6, '{"rows": ' + "9" * 10**6 + "}", '"' + "a" * 2**26])
def test_deep_and_large_headers_are_refused(folder, text):
    (folder / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json is (damaged|not an index)"):
        ShardIndex.open(folder)


def test_headers_that_lack_a_key_are_one_message(folder):
    whole = header(folder)
    for key in whole.keys() - {"format"}:
        (folder / "index.json").write_text(json.dumps({name: value for name, value in whole.items() if name != key}))
        with pytest.raises(UserError, match="index"):
            ShardIndex.open(folder)


def test_shards_that_are_missing_or_changed(folder):
    path = folder / "shard-00001.tar"
    data = path.read_bytes()
    path.write_bytes(data[:-512])
    with pytest.raises(UserError, match=rf"{path} has {len(data) - 512} bytes where the index says {len(data)}"):
        ShardIndex.open(folder)
    path.unlink()
    with pytest.raises(UserError, match=f"{path} is missing"):
        ShardIndex.open(folder)


@pytest.mark.parametrize("name", sorted(COLUMNS))
def test_columns_that_are_missing_cut_or_of_another_shape(folder, name):
    path = folder / header(folder)["column_folder"] / f"{name}.npy"
    whole = path.read_bytes()
    np.save(path, np.zeros(999, np.load(path).dtype))
    with pytest.raises(UserError, match=name):
        ShardIndex.open(folder)
    for data in (whole[:-1], whole[:40], b""):
        path.write_bytes(data)
        with pytest.raises(UserError, match=name):
            ShardIndex.open(folder)
    path.unlink()
    with pytest.raises(UserError, match=name):
        ShardIndex.open(folder)


def test_any_changed_byte_of_any_column_is_found(folder):
    tried = 0
    for path in sorted((folder / header(folder)["column_folder"]).iterdir()):
        whole = path.read_bytes()
        for place in {*range(0, 128, 16), *range(128, len(whole), max(1, (len(whole) - 128) // 12)), len(whole) - 1}:
            changed = bytearray(whole)
            changed[place % len(whole)] ^= 1 << place % 8
            path.write_bytes(changed)
            with pytest.raises(UserError, match="set"):
                ShardIndex.open(folder)
            tried += 1
        path.write_bytes(whole + b"\0")
        with pytest.raises(UserError, match=path.stem):
            ShardIndex.open(folder)
        path.write_bytes(whole)
    ShardIndex.open(folder)
    assert tried > 10 * len(COLUMNS)


def forge(folder: Path, **columns: Any) -> None:
    """Write other columns with the checksums that belong to them, as someone who means harm would."""
    described = header(folder)["columns"]
    for name, values in columns.items():
        path = folder / header(folder)["column_folder"] / f"{name}.npy"
        kind, trailing = COLUMNS[name]
        np.save(path, np.array(values, kind).reshape(-1, *trailing))
        sums = {"sha256": sha256_of_file(path), "crc32": zlib.crc32(path.read_bytes())}
        described[name] = {"dtype": kind, "shape": list(np.load(path).shape), **sums}
    change(folder, columns=described)


END = 2**16 - 3 - 1  # entries of class_offset behind those of classes 0 to 3
HUGE = 2**63 - 1


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"shard": [0, 0, 0, 2]}, "a shard that there is not"),
        ({"shard": [-1, 0, 0, 1]}, "a shard that there is not"),
        ({"shard": [0, 1, 0, 1]}, "rows are not in its order"),
        ({"clip": [-1, 1, 0, -1]}, "a clip that there is not"),
        ({"clip": [-2, 0, 0, -1]}, "a clip that there is not"),
        ({"clip": [0, 0, 0, -1]}, "does not agree with clip"),
        ({"frame": [-1, 0, -7, -1]}, "does not agree with clip"),
        ({"clip": [0, 0, 0, 0], "frame": [0, 0, 1, 2]}, "`kind` is not clips"),
        ({"size": [[12, 16], [12, 0], [12, 16], [4, 8]]}, "without pixels"),
        ({"size": [[12, 16], [12, -16], [12, 16], [4, 8]]}, "without pixels"),
        ({"image_span": [[512, 1], [512, 1], [512, 1], [20000, 1000]]}, "image_span: reaches outside"),
        ({"image_span": [[512, 1], [-512, 1], [512, 1], [512, 1]]}, "image_span: reaches outside"),
        ({"mask_span": [[512, 1], [512, -1], [512, 1], [512, 1]]}, "mask_span: reaches outside"),
        ({"mask_span": [[512, 1], [HUGE, HUGE], [512, 1], [512, 1]]}, "mask_span: reaches outside"),
        ({"mask_span": [[512, 1], [512, HUGE], [512, 1], [512, 1]]}, "mask_span: reaches outside"),
        ({"key_offset": [0, 11, 1, 21, 22]}, "key_offset is not sorted"),
        ({"key_offset": [1, 2, 11, 21, 22]}, "key_offset does not begin at 0"),
        ({"key_offset": [0, -5, 11, 21, 22]}, "key_offset is not sorted"),
        ({"key_offset": [0, 0, 11, 21, 22]}, "an empty or endless name"),
        ({"clip_name_offset": [0, 0, 4], "clip": [-1, 1, 1, -1]}, "an empty or endless name"),
        ({"row_offset": [0, 1, 3, 2, 5]}, "row_offset is not sorted"),
        ({"row_offset": [-1, 1, 3, 3, 5]}, "row_offset does not begin at 0"),
        ({"row_offset": [0, HUGE, 3, 3, 5]}, "row_offset is not sorted"),
        ({"row_class": [0, 2, 3, 1, 2]}, "no class id"),
        ({"row_class": [1, 2, 255, 1, 2]}, "no class id"),
        ({"row_class": [1, 2, 65535, 1, 2]}, "no class id"),
        ({"row_class": [1, 3, 2, 1, 2]}, "not sorted"),
        ({"row_class": [1, 2, 2, 1, 2]}, "not sorted"),
        ({"row_pixels": [96, 96, 0, 24, 8]}, "without pixels"),
        ({"row_pixels": [96, 96, -5, 24, 8]}, "without pixels"),
        ({"row_pixels": [97, 96, 96, 24, 8]}, "do not agree"),
        ({"row_class": [2, 2, 3, 1, 2]}, "do not agree"),
        ({"class_row": [0, 3, 1, 4, 1]}, "a row that there is not"),
        ({"class_row": [-1, 3, 1, 3, 1]}, "a row that there is not"),
        ({"class_row": [3, 0, 1, 3, 1]}, "class_row is not sorted"),
        ({"class_row": [0, 3, 1, 3, 2]}, "do not agree"),
        ({"class_pixels": [24, 96, 96, 8, 96]}, "do not agree"),
        ({"class_offset": [0, 0, 2, 4] + [5] * (END + 1), "row_class": [1, 2, 4, 1, 2]}, "do not agree"),
        ({"class_offset": [0, 1, 2, 4] + [5] * (END + 1)}, "class 0 occurs"),
        ({"class_offset": [0, 0, 2, 1] + [5] * (END + 1)}, "class_offset is not sorted"),
        ({"class_offset": [0, 0, 2, 4] + [5] * (END - 100) + [9] * 100 + [5]}, "class_offset is not sorted"),
        ({"class_offset": [0, 0, 2, 4, 4] + [5] * END}, "class 4 occurs"),
    ],
)
def test_values_that_cannot_be_are_refused_even_with_right_checksums(folder, columns, message):
    forge(folder, row_pixels=[96, 96, 96, 24, 8], class_pixels=[96, 24, 96, 8, 96])
    forge(folder, class_offset=[0, 0, 2, 4] + [5] * (END + 1))  # the helper makes what the builder does
    ShardIndex.open(folder)
    forge(folder, **columns)
    with pytest.raises(UserError, match=f"set.* is damaged .*{message}") as error:
        ShardIndex.open(folder)
    assert "ldis data index" in str(error.value)


def test_many_rows_are_checked_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(index_checks, "_ROWS", 4)
    rng = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    builder = IndexBuilder()
    for number in range(50):
        pixels = {int(c): int(rng.integers(1, 9)) for c in rng.choice(np.arange(1, 40), rng.integers(0, 9), False)}
        builder.add(Row(f"k{number}", -1, -1, (4, 4), number // 20, (0, 0), (0, 0), pixels, 0, 0))
    shards = [Shard(f"{number}.tar", 0, "") for number in range(3)]
    for shard in shards:
        (tmp_path / "set" / shard.name).write_bytes(b"")
    builder.write(tmp_path / "set", "any", {}, shards)
    index = ShardIndex.open(tmp_path / "set")
    pixels = np.array(index.row_pixels)
    for place in range(0, len(pixels), 9):
        forge(tmp_path / "set", row_pixels=[*pixels[:place], pixels[place] + 1, *pixels[place + 1 :]])
        with pytest.raises(UserError, match="do not agree"):
            ShardIndex.open(tmp_path / "set")


def test_a_column_that_never_ends_is_not_opened(folder):
    path = folder / header(folder)["column_folder"] / "clip.npy"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"clip\.npy cannot be read"):
        ShardIndex.open(folder)


def test_keys_that_are_no_text_do_not_stop_a_message(folder):
    forge(folder, key_text=[255] * 22)
    assert ShardIndex.open(folder).key(0) == "\\xff"


def test_pickled_columns_are_refused(folder):
    np.save(folder / header(folder)["column_folder"] / "clip.npy", np.array([{}] * 4), allow_pickle=True)
    with pytest.raises(UserError, match=r"clip\.npy"):
        ShardIndex.open(folder)


def test_columns_must_fit_each_other(folder):
    path = folder / header(folder)["column_folder"] / "row_offset.npy"
    offset = np.load(path)
    offset[-1] += 1
    np.save(path, offset)
    with pytest.raises(UserError, match="row_offset"):
        ShardIndex.open(folder)
