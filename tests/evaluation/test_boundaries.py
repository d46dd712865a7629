"""J and F against the official definition of DAVIS, written here a second time: pixel by pixel, with all distances."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldis_lightning.evaluation.boundaries import boundary, dilate, disk_radius
from ldis_lightning.evaluation.measures import EpisodeTable, JAndF


def slow_boundary(pixels: np.ndarray) -> np.ndarray:
    """(N, 2) coordinates of a mask's boundary pixels."""
    (height, width), mask = pixels.shape, {(y, x): pixels[y, x] for y, x in np.ndindex(*pixels.shape)}
    found = []
    for y in range(height):
        for x in range(width):
            if y == height - 1 and x == width - 1:
                continue
            if y == height - 1:
                neighbours = [mask[y, x + 1]]
            elif x == width - 1:
                neighbours = [mask[y + 1, x]]
            else:
                neighbours = [mask[y, x + 1], mask[y + 1, x], mask[y + 1, x + 1]]
            if any(neighbour != mask[y, x] for neighbour in neighbours):
                found.append((y, x))
    return np.array(found, float).reshape(-1, 2)


def slow_f(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Boundary F-measure of two masks: distances between all pairs of boundary pixels."""
    reach = np.ceil(0.008 * np.linalg.norm(truth.shape))
    predicted, true = slow_boundary(prediction), slow_boundary(truth)
    if len(predicted) == 0 or len(true) == 0:
        return 1.0 if len(predicted) == len(true) else 0.0
    near = np.linalg.norm(predicted[:, None] - true[None], axis=2) <= reach + 1e-9
    precision, recall = near.any(1).mean(), near.any(0).mean()
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def slow_j(prediction: np.ndarray, truth: np.ndarray) -> float:
    union = np.sum(prediction | truth)
    return np.sum(prediction & truth) / union if union else 1.0


def frame_scores(prediction: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """J and F of one frame as measured."""
    counts = JAndF().count(torch.from_numpy(prediction)[None], torch.from_numpy(target.astype(np.uint8))[None])
    j, f = JAndF().frame_scores(counts.numpy())
    return float(j[0]), float(f[0])


def disk(height: int, width: int, y: int, x: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def draw_mask(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Empty, full, noise, thin lines, a pixel, or a union of disks."""
    mask = np.zeros((height, width), bool)
    match rng.integers(6):
        case 1:
            mask[:] = True
        case 2:
            mask = rng.random((height, width)) < rng.random() * min(1, 600 / mask.size)  # all pairs must stay few
        case 3:
            mask[rng.integers(height)] = True
            mask[:, rng.integers(width)] = True
        case 4:
            mask[rng.integers(height), rng.integers(width)] = True
        case 5:
            for _ in range(3):
                centre = rng.integers(height), rng.integers(width)
                mask |= disk(height, width, *centre, rng.integers(1, 2 + max(height, width) // 3))
    return mask


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 24), st.integers(1, 24))
def test_agrees_with_the_official_definition(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    prediction, truth = draw_mask(rng, height, width), draw_mask(rng, height, width)
    for first, second in ((prediction, truth), (truth, np.roll(truth, 2, axis=1))):
        expected = slow_j(first, second), slow_f(first, second)
        assert frame_scores(first, second) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [(97, 171), (180, 240), (1, 700), (700, 1)])
def test_agrees_where_the_disk_is_larger(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(3):
        prediction, truth = draw_mask(rng, *size), draw_mask(rng, *size)
        moved = np.roll(truth, rng.integers(-4, 5, 2), (0, 1))
        for other in (prediction, moved):
            assert frame_scores(other, truth) == pytest.approx((slow_j(other, truth), slow_f(other, truth)), abs=1e-6)


@pytest.mark.parametrize(
    ("size", "predicted", "true", "j", "f"),  # disks (y, x, radius); J and F as the official code prints them
    [
        ((480, 854), (240, 400, 150), (235, 410, 155), 0.9022987009606123, 0.6045607101062068),
        ((480, 854), (0, 0, 200), (4, -3, 190), 0.9083143507972665, 0.36658267520233634),
        ((121, 97), (60, 50, 20), (62, 50, 19), 0.8640625, 0.74354127284184),
        ((33, 250), (16, 240, 30), (16, 243, 30), 0.9206730769230769, 1.0),
    ],
)
def test_values_of_the_official_code(size: tuple, predicted: tuple, true: tuple, j: float, f: float) -> None:
    assert frame_scores(disk(*size, *predicted), disk(*size, *true)) == pytest.approx((j, f), abs=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (6, 6)])
def test_empty_and_full_masks(size: tuple[int, int]) -> None:
    empty, full, some = np.zeros(size, bool), np.ones(size, bool), np.zeros(size, bool)
    some[0, 0] = True
    alone = 1.0 if size == (1, 1) else 0.0  # a picture of one pixel has no boundary
    assert frame_scores(empty, empty) == frame_scores(full, full) == (1, 1)
    assert frame_scores(full, empty) == frame_scores(empty, full) == (0, 1)  # a full mask has no boundary either
    assert frame_scores(some, empty) == frame_scores(empty, some) == (0, alone)


def test_ignored_pixels_are_background_in_both_masks() -> None:
    rng = np.random.default_rng(4)
    for _ in range(10):
        prediction, truth, void = (draw_mask(rng, 13, 17) for _ in range(3))
        target = np.where(void, 255, truth)
        expected = slow_j(prediction & ~void, truth & ~void), slow_f(prediction & ~void, truth & ~void)
        assert frame_scores(prediction, target) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 8, 13, 40])
@pytest.mark.parametrize("size", [(1, 1), (3, 30), (30, 3), (21, 26)])
def test_dilation_is_by_a_euclidean_disk_cut_at_the_border(radius: int, size: tuple[int, int]) -> None:
    mask = np.random.default_rng(radius).random((2, *size)) < 0.02
    mask[0, 0, 0] = True
    where = np.argwhere(np.ones(size, bool))
    for one, dilated in zip(mask, dilate(torch.from_numpy(mask), radius).numpy(), strict=True):
        squares = ((where[:, None] - np.argwhere(one)[None]) ** 2).sum(2)
        assert np.array_equal(dilated, (squares <= radius**2).any(1).reshape(size))


def test_radius_grows_with_the_diagonal() -> None:
    sizes = [(1, 1), (480, 854), (1080, 1920), (75, 100), (76, 100)]
    assert [disk_radius(*size) for size in sizes] == [1, 8, 18, 1, 2]  # 0.008 * 125 = 1 exactly


def test_boundary_lies_up_and_left() -> None:
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[1:3, 1:4] = True
    expected = [[1, 1, 1, 1, 0], [1, 0, 0, 1, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    assert boundary(mask).int().tolist() == expected


def test_a_batch_is_its_frames() -> None:
    rng = np.random.default_rng(2)
    prediction = torch.from_numpy(np.stack([draw_mask(rng, 20, 31) for _ in range(6)]))
    target = torch.from_numpy(np.stack([draw_mask(rng, 20, 31) for _ in range(6)]).astype(np.uint8))
    one_by_one = [JAndF().count(prediction[k : k + 1], target[k : k + 1]) for k in range(6)]
    assert torch.equal(JAndF().count(prediction, target), torch.cat(one_by_one))


def test_several_objects_of_several_clips() -> None:
    """Mean over an object's frames, then over objects, however many frames each has."""
    rng = np.random.default_rng(5)
    objects = {(clip, number): [] for clip in (0, 3) for number in (1, 2)}
    rows, class_id, clips = [], [], []
    for clip, frames in ((0, 2), (3, 5)):
        for _ in range(frames):
            truth, labels = rng.integers(0, 3, (15, 22)), rng.integers(0, 3, (15, 22))
            labels[4:12, 3:15] = truth[4:12, 3:15] = rng.integers(0, 3)
            for number in (1, 2):
                prediction, target = labels == number, (truth == number).astype(np.uint8)
                objects[clip, number].append((slow_j(prediction, target == 1), slow_f(prediction, target == 1)))
                rows.append(JAndF().count(torch.from_numpy(prediction)[None], torch.from_numpy(target)[None]))
                class_id.append(number)
                clips.append(clip)
    j, f = np.mean([np.mean(frames, axis=0) for frames in objects.values()], axis=0)
    counts, table = torch.cat(rows).numpy(), EpisodeTable(np.array(class_id), np.array(clips))
    scores = JAndF().scores(counts, table)
    assert scores == pytest.approx({"j_and_f": (j + f) / 2, "j": j, "f": f}, abs=1e-6)
    order = rng.permutation(len(table))
    assert JAndF().scores(counts[order], table.take(order)) == pytest.approx(scores, abs=1e-12)
    of_two = [np.mean(objects[clip, 2]) for clip in (0, 3)]
    assert JAndF().per_class(counts, table)[2] == pytest.approx(np.mean(of_two), abs=1e-6)


def test_images_are_an_object_each() -> None:
    counts = np.array([[1, 1, 0, 0, 0, 0], [0, 1, 4, 4, 1, 3], [1, 4, 4, 0, 0, 0]])
    table = EpisodeTable(np.array([1, 1, 1]), np.array([-1, -1, -1]))
    scores = JAndF().scores(counts, table)
    assert scores["j"] == pytest.approx((1 + 0 + 1 / 4) / 3)
    assert scores["f"] == pytest.approx((1 + 2 * (1 / 4) * (3 / 4) / (1 / 4 + 3 / 4) + 0) / 3)
    nothing = JAndF().scores(counts[:0], table.take(np.arange(0)))
    assert all(math.isnan(score) for score in nothing.values())
