"""Fuzz the reading of samples: JPEGs and PNGs at places that an index names, with right and with wrong sums."""

from pathlib import Path

from fuzzing import Made, fuzz


def make(folder: Path) -> Made:
    """The target, its first inputs and what mutates an input."""
    from oracles import Samples
    from seeds import mutate_sample, samples

    return Samples(folder), samples(), mutate_sample


if __name__ == "__main__":
    fuzz(str(__doc__), make)
