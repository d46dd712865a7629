import numpy as np

from ldis_lightning.datamodules.treatment import Hidden, Intact, ShiftedMask, Swapped

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
MASK = np.array([[1, 1, 0, 0], *[[0] * 4] * 4, [0, 0, 0, 1]], np.uint8)


def test_the_mask_is_moved_by_half_the_picture() -> None:
    image, mask = ShiftedMask().apply(IMAGE, MASK)
    assert np.array_equal(image, IMAGE)
    assert mask.sum() == MASK.sum()
    assert [(y, x) for y in range(6) for x in range(4) if mask[y, x]] == [(2, 1), (3, 2), (3, 3)]
    assert np.array_equal(ShiftedMask().apply(IMAGE, mask)[1], MASK)  # twice is once around


def test_treatments_leave_alone_what_they_were_given() -> None:
    image, mask = IMAGE.copy(), MASK.copy()
    for treatment in (Intact(), Swapped(), Hidden(), ShiftedMask()):
        changed = treatment.apply(image, mask)
        assert (changed[0].shape, changed[1].shape) == (IMAGE.shape, MASK.shape)
        assert (changed[0].dtype, changed[1].dtype) == (np.uint8, np.uint8)
        assert set(np.unique(changed[1])) <= {0, 1}
    assert np.array_equal(image, IMAGE) and np.array_equal(mask, MASK)


def test_which_class_a_reference_shows() -> None:
    for treatment in (Intact(), Hidden(), ShiftedMask()):
        assert list(treatment.shown_classes(3, [1, 3, 4], 0.5)) == [3]
    assert [list(Swapped().shown_classes(3, [1, 3, 4, 9], draw)) for draw in (0.0, 0.4, 0.99)] == [
        [1, 4, 9],
        [4, 9, 1],
        [9, 1, 4],
    ]
    assert list(Swapped().shown_classes(3, [3], 0.5)) == []
