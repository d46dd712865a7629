import math

import pytest
from made_up_rows import fold, row

from ldis_lightning.evaluation.comparison import BLOCKS, Group, Line, compare, mean_of_folds
from ldis_lightning.evaluation.published import PUBLISHED
from ldis_lightning.evaluation.rows import ResultRow


def only(groups: list[Group]) -> Group:
    (group,) = groups
    return group


def ours(*rows: ResultRow) -> list[Line]:
    """Our lines of the one group that some rows make, without published ones."""
    return list(only(compare(rows, published=False)).lines)


# ---- Groups


def test_what_cannot_be_compared_is_in_groups_of_its_own() -> None:
    rows = [
        row(),
        row(references=5),
        row(dataset="pascal"),
        row(protocol="absence", measure="fpr", scores={"fpr": 0.5}),
        row(protocol="ldis", measure="j_and_f", scores={"j_and_f": 0.5}),
        fold(0),
        fold(0, protocol="bam-coco"),
        fold(0, protocol="pfenet-coco", settings={"fold": 0, "interleaved": True}),
        fold(0, protocol="pfenet-coco", settings={"fold": 0, "interleaved": False}),
    ]
    groups = compare(rows)
    assert [len([line for line in group.lines if line.ours]) for group in groups] == [1] * len(rows)
    titles = [(g.title, g.protocol, g.references, g.measure) for g in groups]
    assert sorted(titles) == sorted(
        [
            ("COCO", "ldis", 1, "mIoU"),
            ("COCO", "ldis", 5, "mIoU"),
            ("PASCAL", "ldis", 1, "mIoU"),
            ("coco2014", "ldis", 1, "J&F"),
            ("coco2014", "absence", 1, "FPR"),
            ("COCO-20i", "hsnet-coco", 1, "mIoU"),
            ("COCO-20i", "bam-coco", 1, "mIoU"),
            ("COCO-20i", "pfenet-coco", 1, "mIoU"),
            ("coco2014", "pfenet-coco", 1, "mIoU"),
        ]
    )
    assert [group.protocol for group in groups[:4]] == ["ldis"] * 4  # the paper's own come first


def test_published_rows_stand_beside_ours_of_the_same_number_of_references() -> None:
    group = only(compare([row(references=5)]))
    assert [(line.method, line.score, line.notes) for line in group.lines if not line.ours] == [
        ("LDIS, ablation of K", 56.2, ("reported",))
    ]
    assert only(compare([row(references=4)])).lines == tuple(ours(row(references=4)))
    assert all(line.ours for line in only(compare([row()], published=False)).lines)


def test_all_published_rows_are_shown_once_where_asked_for() -> None:
    for rows in ([], [row()], [row(), fold(0), fold(0, protocol="bam-coco", references=5)]):
        lines = [line for group in compare(rows, published=True) for line in group.lines if not line.ours]
        assert len(lines) == len(PUBLISHED)
    assert compare([]) == []


def test_blocks_keep_domains_apart_and_sort_by_score() -> None:
    rows = [
        *(row(score=score, domain=domain) for score, domain in ((0.9, "in-domain"), (0.2, "strict"), (0.3, "strict"))),
        *(row(score=0.99, domain=domain) for domain in ("unknown", "mixed 3/20")),
        row(score=0.999, treatment="Swapped()", domain="strict"),
        row(score=0.9999, rules={"pairing": "Itself()"}, domain="strict"),
        row(score=1.0, episodes=10, domain="strict"),
    ]
    lines = ours(*rows)
    assert [(line.block, line.domain, round(line.score, 2)) for line in lines] == [
        ("strict", "strict", 30.0),
        ("strict", "strict", 20.0),
        ("mixed", "mixed 3/20", 99.0),
        ("in-domain", "in-domain", 90.0),
        ("unknown", "unknown", 99.0),
        ("control", "strict", 99.99),
        ("control", "strict", 99.9),
        ("incomplete", "strict", 100.0),
    ]
    assert [line.comparable for line in lines] == [True] * 5 + [False] * 3
    assert [line.notes for line in lines[5:]] == [
        ("Itself", "strict"),
        ("Swapped", "strict"),
        ("10 of 4000 episodes", "strict"),
    ]


def test_published_and_own_lines_share_blocks() -> None:
    group = only(compare([row(score=0.6)]))
    in_domain = [line.method for line in group.lines if line.block == "in-domain"]
    assert in_domain == ["LDIS-1", "LDIS1", "LDIS-n", "LDIS, ablation of K"]
    assert {line.block for line in group.lines} <= set(BLOCKS)


def test_lower_is_better_is_sorted_so_and_nan_comes_last() -> None:
    scores = (0.5, math.nan, 0.1)
    rows = [row(measure="fpr", score=score, scores={"fpr": score}, higher_is_better=False) for score in scores]
    assert [round(line.score) for line in ours(*rows)[:2]] == [10, 50]
    assert math.isnan(ours(*rows)[2].score)


def test_repeated_rows_are_shown_once_and_others_are_not_taken_for_repeated() -> None:
    later = row(time="2027-01-01T00:00:00+00:00", code={"version": "0.3.0", "commit": "abc"})
    (line,) = ours(later, row())
    assert line.rows == (later,)
    assert len(ours(row(), row(score=0.51), row(checkpoint_sha256="d" * 64), row(episodes=3999))) == 4


# ---- Notes


def test_other_scores_runs_fusion_and_ceiling_are_noted() -> None:
    (line,) = ours(row(ceiling=0.985, scores={"miou": 0.5, "fb_iou": 0.7, "own": math.nan}))
    assert line.notes == ("FB-IoU 70.0", "ceiling 98.5")
    runs = {"count": 5.0, "mean": 0.45, "std": 0.0123}
    (line,) = ours(row(references=5, reference_fusion="MeanLogits", runs=runs, scores={"miou": 0.5}))
    assert (line.score, line.notes) == (45.0, ("MeanLogits", "5 runs, sd 1.2"))
    (line,) = ours(row(reference_fusion="MeanLogits", scores={}))
    assert line.notes == ()  # nothing to fuse


def test_models_of_a_class_are_told_apart_by_what_they_do_not_share() -> None:
    models = ("A(B(Vanilla), steps=5)", "A(B(Augmented(gamma=0.2)), steps=5)", "C(Vanilla)")
    lines = ours(*(row(model=model, checkpoint_sha256=str(n) * 64) for n, model in enumerate(models)))
    details = {(line.method, line.details) for line in lines}
    assert details == {("A", ("Vanilla",)), ("A", ("Augmented", "gamma=0.2")), ("C", ())}


# ---- Other episodes


def test_rows_of_different_manifests_get_letters() -> None:
    rules = {"pairing": "AcrossImages()", "episodes": 250}
    fewer = row(manifest_hash="b" * 64, rules=rules, score=0.4, scores={})
    group = only(compare([row(scores={}), fewer, row(score=0.3, scores={})], published=False))
    assert [line.notes for line in group.lines] == [("episodes A",), ("episodes B",), ("episodes A",)]
    assert group.episodes["A"].endswith("manifest aaaaaaaa") and "episodes=None" in group.episodes["A"]
    assert group.episodes["B"] == "episodes=250, manifest bbbbbbbb"


def test_equal_rules_on_other_data_name_the_index() -> None:
    other = row(manifest_hash="b" * 64, index_hash="2" * 64, set="coco_new")
    group = only(compare([row(), other], published=False))
    assert group.episodes == {
        "A": f"set coco, index {'1' * 32}, manifest aaaaaaaa",
        "B": f"set coco_new, index {'2' * 32}, manifest bbbbbbbb",
    }


def test_drawn_alike_and_yet_different_is_told_apart() -> None:
    group = only(compare([row(), row(manifest_hash="b" * 64)], published=False))
    assert group.episodes == {"A": "manifest aaaaaaaa", "B": "manifest bbbbbbbb"}


def test_a_control_has_other_episodes_and_needs_no_letter() -> None:
    group = only(compare([row(), row(treatment="Swapped()", manifest_hash="b" * 64)], published=False))
    assert group.episodes == {}


def test_incomplete_rows_get_letters_too() -> None:
    group = only(compare([row(), row(manifest_hash="b" * 64, episodes=3)], published=False))
    assert [line.notes[-1] for line in group.lines] == ["episodes A", "episodes B"]


# ---- Folds


def test_folds_of_a_checkpoint_make_a_line_with_their_mean() -> None:
    group = only(compare([fold(n) for n in (2, 0, 3, 1)], published=False))
    (line,) = group.lines
    assert line.folds == pytest.approx({0: 40, 1: 50, 2: 60, 3: 70})
    assert line.score == pytest.approx(55)
    assert (line.interval, line.notes, group.folds, group.episodes) == (None, (), (0, 1, 2, 3), {})


def test_missing_folds_give_no_mean() -> None:
    (line,) = ours(fold(0), fold(2))
    assert math.isnan(line.score) and line.interval is None
    assert line.folds == pytest.approx({0: 40, 2: 60})


def test_strict_checkpoints_of_one_fold_each_make_a_line() -> None:
    (line,) = ours(*(fold(n, domain="strict", checkpoint_sha256=str(n) * 64) for n in range(4)))
    assert line.score == pytest.approx(55)
    assert len(line.rows) == 4


def test_checkpoints_are_not_joined_where_it_is_not_clear_which_belong_together() -> None:
    twice = [fold(n, domain="strict", checkpoint_sha256=f"{n}{run}" * 32) for run in "ab" for n in range(4)]
    assert len(ours(*twice)) == 8
    in_domain = [fold(n, checkpoint_sha256=str(n) * 64) for n in range(4)]
    assert len(ours(*in_domain)) == 4
    assert len(ours(*(fold(n, domain="strict", model=f"M{n}", checkpoint_sha256=str(n) * 64) for n in range(4)))) == 4
    assert len(ours(fold(0), fold(1, episodes=3), fold(2, treatment="Hidden()"))) == 3


def test_folds_drawn_by_other_settings_are_other_lines() -> None:
    small = {"fold": 1, "folds": 4, "interleaved": True, "episodes": 200, "score_size": None}
    rows = [*(fold(n) for n in range(4)), fold(1, settings=small, manifest_hash="b" * 64)]
    group = only(compare(rows, published=False))
    assert [(line.notes, len(line.rows)) for line in group.lines] == [(("episodes A",), 4), (("episodes B",), 1)]
    assert group.episodes == {
        "A": f"episodes=1000, score_size=400, manifest {rows[1].manifest_hash[:8]}",
        "B": "episodes=200, score_size=None, manifest bbbbbbbb",
    }


def test_runs_of_folds() -> None:
    rows = [fold(n, runs={"count": 5, "mean": 0.1 * n, "std": 0.001 * (n + 1)}) for n in range(4)]
    (line,) = ours(*rows)
    assert line.score == pytest.approx(15)
    assert line.notes == ("5 runs, sd 0.1 to 0.4",)


def test_interval_of_a_mean_is_that_of_independent_estimates() -> None:
    rows = [fold(0, score=0.5, interval=(0.47, 0.54)), fold(1, score=0.7, interval=(0.66, 0.73))]
    mean, interval = mean_of_folds(rows)
    assert mean == pytest.approx(0.6)
    assert interval == pytest.approx((0.6 - 0.05 / 2, 0.6 + 0.05 / 2))  # 3-4-5 triangles on both sides
    assert mean_of_folds([rows[0]]) == (0.5, pytest.approx((0.47, 0.54)))
    assert mean_of_folds([rows[0], fold(1)])[1] is None


def test_folds_of_a_protocol_of_ones_own_need_not_be_numbers() -> None:
    (line,) = ours(row(protocol="mine", settings={"fold": ["a"]}))
    assert line.folds is None and line.score == 50
