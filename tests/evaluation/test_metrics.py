import copy
import math
import multiprocessing
import pickle
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldis_lightning.evaluation.metrics import EpisodeIoU, SetResult

Episode = tuple[np.ndarray, np.ndarray, int, bool]  # prediction, target, class, valid


def random_episodes(seed: int, count: int, height: int, width: int, classes: int = 4) -> list[Episode]:
    rng = np.random.default_rng(seed)
    return [
        (
            rng.random((height, width)) < rng.random(),
            rng.choice(np.array([0, 1, 255], np.uint8), (height, width), p=[0.5, 0.4, 0.1]),
            int(rng.integers(1, classes + 1)),
            bool(rng.random() < 0.8),
        )
        for _ in range(count)
    ]


def brute_force(episodes: list[Episode]) -> tuple[float, float, dict[int, float]]:
    """mIoU, FB-IoU and IoU by class from sets of pixel names, written from the definition alone."""
    marked: dict[int, set] = {}
    true: dict[int, set] = {}
    scored: set = set()
    for number, (prediction, target, class_id, valid) in enumerate(episodes):
        if not valid:
            continue
        marked.setdefault(class_id, set())
        true.setdefault(class_id, set())
        for y in range(target.shape[0]):
            for x in range(target.shape[1]):
                if target[y, x] == 255:
                    continue
                scored.add((number, y, x))
                if prediction[y, x]:
                    marked[class_id].add((number, y, x))
                if target[y, x] == 1:
                    true[class_id].add((number, y, x))

    def iou(a: set, b: set) -> float:
        return len(a & b) / len(a | b) if a | b else math.nan

    def mean(values: list[float]) -> float:
        values = [value for value in values if value == value]
        return sum(values) / len(values) if values else math.nan

    per_class = {c: iou(marked[c], true[c]) for c in marked}
    all_marked, all_true = set().union(*marked.values()), set().union(*true.values())
    pooled = [iou(all_marked, all_true), iou(scored - all_marked, scored - all_true)]
    return mean(list(per_class.values())), mean(pooled), per_class


def batched(episodes: list[Episode]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    prediction, target, class_id, valid = zip(*episodes, strict=True)
    return (
        torch.from_numpy(np.stack(prediction)),
        torch.from_numpy(np.stack(target)),
        torch.tensor(class_id),
        torch.tensor(valid),
    )


def one(metric: EpisodeIoU, prediction: list, target: list, class_id: int) -> None:
    metric.update(torch.tensor(prediction, dtype=torch.bool), torch.tensor(target, dtype=torch.uint8), class_id)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.integers(1, 9), st.integers(1, 4)
)
def test_agrees_with_brute_force(seed: int, count: int, height: int, width: int, cut: int, classes: int) -> None:
    episodes = random_episodes(seed, count, height, width, classes)
    by_batch, one_by_one = EpisodeIoU(), EpisodeIoU()
    for part in (episodes[:cut], episodes[cut:]):
        if part:
            by_batch.update_batch(*batched(part))
    for prediction, target, class_id, valid in reversed(episodes):
        if valid:
            one_by_one.update(torch.from_numpy(prediction), torch.from_numpy(target), class_id)
    miou, fb_iou, per_class = brute_force(episodes)
    result = by_batch.result()
    assert result.miou == pytest.approx(miou, abs=1e-12, nan_ok=True)
    assert result.fb_iou == pytest.approx(fb_iou, abs=1e-12, nan_ok=True)
    assert result.per_class == pytest.approx(per_class, abs=1e-12, nan_ok=True)
    assert result.episodes == sum(valid for *_, valid in episodes)
    assert repr(one_by_one.result()) == repr(result)  # repr: to the last bit, and NaN equals NaN
    assert float(by_batch.compute()["miou"]) == pytest.approx(miou, abs=1e-6, nan_ok=True)
    assert float(by_batch.compute()["fb_iou"]) == pytest.approx(fb_iou, abs=1e-6, nan_ok=True)


def test_is_not_the_mean_of_per_image_ious() -> None:
    metric = EpisodeIoU()
    one(metric, [[1, 0, 0, 0]], [[1, 0, 0, 0]], 3)  # IoU 1 of 1 pixel
    one(metric, [[1, 1, 1, 1]], [[1, 0, 0, 0]], 3)  # IoU 1/4
    assert metric.per_class() == {3: 2 / 5}  # and not 5/8
    assert metric.result().miou == 2 / 5


def test_miou_weighs_classes_equally_and_fb_iou_pools_them() -> None:
    metric = EpisodeIoU()
    one(metric, [[1, 1, 1, 1]], [[1, 1, 1, 1]], 1)  # foreground 4/4, background 0/0
    one(metric, [[1, 1, 1, 1]], [[1, 1, 1, 0]], 1)  # foreground 3/4, background 0/1
    one(metric, [[0, 1, 0, 0]], [[1, 0, 0, 0]], 2)  # foreground 0/2, background 2/4
    assert metric.result().miou == (7 / 8 + 0 / 2) / 2
    assert metric.result().fb_iou == (7 / 10 + 2 / 5) / 2


def test_ignored_pixels_count_nowhere() -> None:
    metric = EpisodeIoU()
    one(metric, [[1, 1, 0, 0]], [[1, 255, 255, 0]], 1)
    assert metric.result() == SetResult(miou=1.0, fb_iou=1.0, episodes=1, per_class={1: 1.0})


def test_a_class_never_scored_is_not_in_the_mean() -> None:
    metric = EpisodeIoU()
    prediction, target = torch.ones(3, 2, 2, dtype=torch.bool), torch.ones(3, 2, 2, dtype=torch.uint8)
    metric.update_batch(prediction, target, torch.tensor([5, 6, 6]), torch.tensor([True, False, False]))
    assert metric.result() == SetResult(miou=1.0, fb_iou=1.0, episodes=1, per_class={5: 1.0})


def test_a_class_always_missed_is_a_zero_in_the_mean() -> None:
    metric = EpisodeIoU()
    one(metric, [[1, 0]], [[1, 0]], 1)
    one(metric, [[0, 0]], [[1, 0]], 2)
    assert metric.result().miou == 0.5


def test_padding_may_carry_any_class_id() -> None:
    metric = EpisodeIoU()
    blank = torch.zeros(2, 1, 1)
    metric.update_batch(blank > 1, blank.to(torch.uint8), torch.tensor([-1, 9999]), torch.tensor([False, False]))
    assert metric.result().episodes == 0


def test_an_episode_of_nothing_but_ignored_pixels_has_no_iou() -> None:
    metric = EpisodeIoU()
    one(metric, [[1, 0]], [[255, 255]], 7)
    one(metric, [[1, 0]], [[1, 0]], 8)
    result = metric.result()
    assert math.isnan(result.per_class[7])
    assert (result.miou, result.episodes) == (1.0, 2)


def test_empty_metric_is_nan_without_warning() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metric = EpisodeIoU()
        computed = metric.compute()
    assert caught == []
    assert math.isnan(computed["miou"])
    assert math.isnan(computed["fb_iou"])
    assert metric.per_class() == {}
    assert metric.result().episodes == 0


def test_counts_beyond_float_precision() -> None:
    metric = EpisodeIoU()
    metric.update(torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 1, dtype=torch.uint8), 1)
    metric.intersection[1, 0] += 2**53
    metric.union[1, 0] += 2**54
    metric.update(torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 1, dtype=torch.uint8), 1)
    assert metric.intersection[1, 0].item() == 2**53 + 2
    assert metric.union[1, 0].item() == 2**54 + 2
    assert metric.per_class()[1] == (2**53 + 2) / (2**54 + 2)


def test_casting_the_module_leaves_the_counts_whole() -> None:
    holder = torch.nn.ModuleDict({"metric": EpisodeIoU()}).half()
    metric = holder["metric"]
    assert isinstance(metric, EpisodeIoU)
    metric.update(torch.ones(70, 70, dtype=torch.bool), torch.ones(70, 70, dtype=torch.uint8), 1)
    assert metric.union.dtype == torch.int64
    assert metric.union[1, 0].item() == 4900


def test_reset_copy_and_pickle() -> None:
    metric = EpisodeIoU()
    one(metric, [[1, 1]], [[1, 0]], 2)
    for copied in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        one(copied, [[1, 1]], [[1, 1]], 2)
        assert copied.per_class() == {2: 3 / 4}
    assert metric.per_class() == {2: 1 / 2}
    metric.reset()
    assert metric.per_class() == {}


def test_states_survive_inference_mode() -> None:
    metric = EpisodeIoU()
    with torch.inference_mode():
        metric.reset()
        one(metric, [[1]], [[1]], 1)
    one(metric, [[0]], [[1]], 1)
    assert metric.per_class() == {1: 1 / 2}


@pytest.mark.parametrize(
    ("prediction", "target"),
    [
        (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.uint8)),
        (torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.uint8)),
    ],
)
def test_logits_and_other_shapes_are_refused(prediction: Tensor, target: Tensor) -> None:
    with pytest.raises(ValueError, match="bool predictions of the target's shape"):
        EpisodeIoU().update(prediction, target, 1)


def _rank(rank: int, store: str, episodes: list[Episode], answers: Any) -> None:
    """One of two processes: adds every second episode and sends what both should agree on."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", timedelta(seconds=100), world_size=2, rank=rank)
    metric = EpisodeIoU()
    for episode in episodes[rank::2]:
        metric.update_batch(*batched([episode]))
    before = metric.result()  # must disturb neither what is computed nor what is added afterwards
    computed = {name: value.item() for name, value in metric.compute().items()}
    answers.put((repr(before), repr(metric.result()), computed))
    dist.destroy_process_group()


def test_two_processes_agree_with_one_to_the_last_bit(tmp_path: Path) -> None:
    episodes = random_episodes(seed=3, count=7, height=9, width=5)
    alone = EpisodeIoU()
    alone.update_batch(*batched(episodes))
    expected = (repr(alone.result()), repr(alone.result()), {k: v.item() for k, v in alone.compute().items()})
    context = multiprocessing.get_context("fork")  # spawned processes would import torch again
    answers = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, str(tmp_path / "store"), episodes, answers)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    try:
        assert [answers.get(timeout=120), answers.get(timeout=120)] == [expected] * 2
    finally:
        for process in ranks:
            process.kill()
            process.join()
