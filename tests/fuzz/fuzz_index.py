"""Fuzz the reading of indexes: tars that something else wrote, and headers and columns, with right and wrong sums."""

from pathlib import Path
from random import Random

from fuzzing import Made, fuzz


def make(folder: Path) -> Made:
    """Both targets: the first byte of an input says which."""
    from oracles import Indexes, Tars
    from seeds import mutate_index, mutate_tar, tars

    opened, indexed = Indexes(folder), Tars(folder)

    def target(data: bytes) -> str:
        return f"index {opened(data[1:])}" if data[:1] == b"I" else f"tar {indexed(data[1:])}"

    def mutate(random: Random, data: bytes) -> bytes:
        return data[:1] + (mutate_index if data[:1] == b"I" else mutate_tar)(random, data[1:])

    return target, [b"I" + opened.seed, *(b"T" + tar for tar in tars())], mutate


if __name__ == "__main__":
    fuzz(str(__doc__), make)
