"""What is done to the references of an episode: nothing, or a control that shows how much they matter."""

from collections.abc import Iterable, Sequence

import numpy as np

from ldis_lightning.imaging.pictures import MID_GREY


class ReferenceTreatment:
    """Changes what the references show, never the query, its mask or its class. Subclass it for your own control."""

    def shown_classes(self, class_id: int, classes: Sequence[int], draw: float) -> Iterable[int]:
        """The classes that the references may show, most wanted first: the first that has a reference is taken.

        Args:
            class_id: the episode's class.
            classes: all classes of the source, ascending.
            draw: the episode's own uniform number in [0, 1).
        """
        return (class_id,)

    def apply(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Change a reference after its geometry.

        Args:
            image: (H, W, 3) uint8.
            mask: (H, W) uint8 {0, 1}.
        """
        return image, mask


class Intact(ReferenceTreatment):
    """References as they are."""


class Swapped(ReferenceTreatment):
    """References show another class, drawn uniformly: a model that heeds them loses the query's class."""

    def shown_classes(self, class_id: int, classes: Sequence[int], draw: float) -> Iterable[int]:
        """All other classes, beginning with the drawn one."""
        others = [other for other in classes if other != class_id]
        first = int(draw * len(others))
        return others[first:] + others[:first]


class Hidden(ReferenceTreatment):
    """References are mid-grey pictures, all foreground: what remains is guessing."""

    def apply(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A grey picture and a mask of ones."""
        return np.full_like(image, MID_GREY), np.ones_like(mask)


class ShiftedMask(ReferenceTreatment):
    """The mask is moved by half the picture in both directions, what leaves it coming in again at the other side: a
    model that heeds the mask, and not just what stands out in the picture, loses the concept."""

    def apply(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The picture as it is."""
        return image, np.roll(mask, (mask.shape[0] // 2, mask.shape[1] // 2), axis=(0, 1))
