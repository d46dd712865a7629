"""Published weights: what is known of them, where they are found, and how they are read."""

from ldis_lightning.weights.reading import Placeholder, read_state
from ldis_lightning.weights.resolve import resolve

__all__ = ["Placeholder", "read_state", "resolve"]
