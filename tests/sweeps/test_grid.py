"""The grid: points, their names, and where their values go in a config."""

import pytest

from ldis_lightning.errors import UserError
from ldis_lightning.sweeps.grid import Sweep, column_headings, expand, set_key, value_labels


def test_all_combinations_with_readable_folders() -> None:
    points = expand(
        Sweep(grid={"model.instruction.pre_mask": ["Nothing", "my.package.Alpha"], "model.lr": [0.1, 1e-5]})
    )
    assert [point.slug for point in points] == [
        "pre_mask=Nothing,lr=0.1",
        "pre_mask=Nothing,lr=1e-05",
        "pre_mask=Alpha,lr=0.1",
        "pre_mask=Alpha,lr=1e-05",
    ]
    assert points[2].values == {"model.instruction.pre_mask": "my.package.Alpha", "model.lr": 0.1}
    assert points[2].labels == {"pre_mask": "Alpha", "lr": "0.1"}


def test_headings_are_the_shortest_ends_that_differ() -> None:
    keys = ["data.train.init_args.shards", "data.test.shards", "model.lr"]
    assert column_headings(keys) == ["train.shards", "test.shards", "lr"]


def test_labels_name_the_arguments_only_where_class_names_repeat() -> None:
    weak = {"class_path": "a.Additive", "init_args": {"gamma": 0.25, "low": -1}}
    strong = {"class_path": "a.Additive", "init_args": {"gamma": 0.5, "low": -1}}
    plain = {"class_path": "a.Vanilla", "init_args": {"low": -1}}
    assert value_labels([plain, weak, strong]) == ["Vanilla", "Additive(gamma=0.25)", "Additive(gamma=0.5)"]
    assert value_labels(["Additive", strong]) == ["Additive", "Additive(gamma=0.5, low=-1)"]
    assert value_labels([True, None, [1, 2], 3]) == ["true", "null", "[1, 2]", "3"]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (Sweep(), "nothing to sweep"),
        (Sweep(grid={"a": [1]}, seeds=[]), "nothing to sweep"),
        (Sweep(grid={"a": [1], "b": []}), "`b` has no values"),
        (Sweep(grid={"a": [1, 1]}), "two points are the same: a=1"),
        (Sweep(grid={"a": [1]}, seeds=[0, 0]), "a seed is listed twice"),
    ],
)
def test_grids_that_make_no_sense(sweep: Sweep, message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand(sweep)


def test_keys_lead_through_components_without_init_args() -> None:
    config = {"model": {"class_path": "M", "init_args": {"part": {"class_path": "P"}}}, "data": {"size": 1}}
    set_key(config, "model.part.depth", 3)
    set_key(config, "model.init_args.width", 4)
    set_key(config, "data.size", 2)
    assert config == {
        "model": {
            "class_path": "M",
            "init_args": {"part": {"class_path": "P", "init_args": {"depth": 3}}, "width": 4},
        },
        "data": {"size": 2},
    }


def test_a_key_through_a_number_leads_nowhere() -> None:
    with pytest.raises(UserError, match=r"`data.size.x` leads nowhere, since `data.size` is 1"):
        set_key({"data": {"size": 1}}, "data.size.x", 2)
