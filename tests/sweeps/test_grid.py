"""The `sweep:` block: its points and their names, and what makes no sense."""

import pytest

from ldis_lightning.errors import UserError
from ldis_lightning.sweeps.grid import Sweep, baseline_of, expand
from ldis_lightning.sweeps.labels import LONGEST_SLUG, column_headings, slug_of, value_labels


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


def test_paired_axes_are_one() -> None:
    points = expand(Sweep(grid={"a": [1, 2]}, zip=[{"b": [3, 4], "c": ["x", "y"]}]))
    assert [point.slug for point in points] == ["a=1,b=3,c=x", "a=1,b=4,c=y", "a=2,b=3,c=x", "a=2,b=4,c=y"]
    assert points[1].values == {"a": 1, "b": 4, "c": "y"}
    assert points[1].labels == {"a": "1", "b": "4", "c": "y"}


def test_named_points_alone_and_with_axes() -> None:
    named = {"as it is": None, "large": {"model.lr": 1.0}}
    points = expand(Sweep(points=named))
    assert [point.slug for point in points] == ["as_it_is", "large"]
    assert [point.values for point in points] == [{}, {"model.lr": 1.0}]
    assert points[0].labels == {"point": "as it is"}
    combined = expand(Sweep(points=named, grid={"x": [1, 2]}))
    assert [point.slug for point in combined] == ["as_it_is,x=1", "as_it_is,x=2", "large,x=1", "large,x=2"]
    assert combined[-1].values == {"model.lr": 1.0, "x": 2}


def test_a_long_name_of_a_folder_ends_in_a_hash() -> None:
    slugs = {slug_of({"value": "long" * 60 + end}) for end in "ab"}
    assert {len(slug) for slug in slugs} == {LONGEST_SLUG}
    assert len(slugs) == 2


@pytest.mark.parametrize(
    ("baseline", "slug"),
    [
        ("plain,a=2", "plain,a=2"),
        ({"point": "plain", "a": 1}, "plain,a=1"),
        ({"point": "other", "a": "2"}, "other,a=2"),
        (None, None),
    ],
)
def test_the_baseline_is_one_point(baseline: str | dict | None, slug: str | None) -> None:
    sweep = Sweep(points={"plain": {}, "other": {"b": 1}}, grid={"a": [1, 2]}, baseline=baseline)
    found = baseline_of(sweep, expand(sweep))
    assert (found.slug if found else None) == slug


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("plian,a=1", "did you mean `plain,a=1`?"),
        ("plain", "names 2 points; there are plain,a=1, plain,a=2"),
        ({"pont": "plain"}, "no column is called `pont`; did you mean `point`?"),
        ({"point": "plian"}, "no point has point `plian`; did you mean `plain`?"),
        ({"a": 1}, "names 2 points"),
    ],
)
def test_baselines_that_are_none(baseline: str | dict, message: str) -> None:
    sweep = Sweep(points={"plain": {}, "other": {"b": 1}}, grid={"a": [1, 2]}, baseline=baseline)
    with pytest.raises(UserError) as error:
        baseline_of(sweep, expand(sweep))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (Sweep(), "nothing to sweep"),
        (Sweep(grid={"a": [1]}, seeds=[]), "nothing to sweep"),
        (Sweep(grid={"a": [1], "b": []}), "`b` has no values"),
        (Sweep(grid={"a": [1, 1]}), "two points are the same, or would share a folder: a=1"),
        (Sweep(grid={"a": [1]}, seeds=[0, 0]), "a seed is listed twice: 0"),
        (Sweep(grid={"a": [1]}, seeds=[-1]), "-1 is negative"),
        (Sweep(grid={"a": [1]}, budget=0), "sweep.budget is 0, and must be hours"),
        (Sweep(zip=[{"a": [1, 2], "b": [1]}]), "equally many values, but `a` has 2, `b` has 1"),
        (Sweep(zip=[{}]), "at least one axis"),
        (Sweep(grid={"a.b": [1]}, zip=[{"a.b": [1]}]), r"`a.b` is set twice \(in grid and zip group 1\)"),
        (Sweep(grid={"a.init_args.b": [1], "a.b": [1]}), r"`a.b` is set twice \(in grid, as"),
        (Sweep(grid={"a": [1], "a.b": [1]}), "`a` and `a.b` .*: one sets a part of the other"),
        (Sweep(grid={"a.b": [1]}, points={"p": {"a": 1}}), r"`a` and `a.b` \(in point p and grid\)"),
        (Sweep(points={"p": {"a": 1, "a.b": 2}}), r"`a` and `a.b` \(in point p\)"),
        (Sweep(points={"..": {}}), "`..` cannot be the name of a folder"),
        (Sweep(points={"a b": {}, "a_b": {"c": 1}}), "two points are the same, or would share a folder: a_b"),
        (Sweep(grid={"seed_everything": [1]}), "`seed_everything` cannot be an axis: it is what `sweep.seeds` sets"),
        (Sweep(points={"p": {"trainer.logger.name": "x"}}), "`trainer.logger.name` cannot be an axis"),
    ],
)
def test_grids_that_make_no_sense(sweep: Sweep, message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand(sweep)
