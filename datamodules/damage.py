"""Samples that cannot be read, and what a stream does about them."""

from pathlib import Path
from typing import Any

from ldis_lightning.errors import UserError


class DamagedSample(UserError):
    """A sample whose bytes are not those that were indexed, or are no picture with a label map.

    Args:
        shard: the file that holds it.
        key: of the sample.
        reason: what is wrong, and what to do about it.
    """

    def __init__(self, shard: Path, key: str, reason: str) -> None:
        super().__init__(f"{key} in {shard}: {reason}")
        self.shard, self.key, self.reason = shard, key, reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the arguments."""
        return DamagedSample, (self.shard, self.key, self.reason)
