"""Packing a data set as its owners distribute it: on all cores, interruptible, the same bytes whatever happens.

A `Packer` lists the samples and reads one; `pack` does the rest. Shards are planned from the list alone, so that they
do not depend on the number of workers. Each is written whole by one process, together with its rows of the index, into
a hidden folder, in which the same command finds them again after an interruption.
"""

import fcntl
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from ldis_lightning.datamodules.index import Shard, ShardIndex
from ldis_lightning.datamodules.index_builder import IndexBuilder
from ldis_lightning.datamodules.out_folder import OutFolder
from ldis_lightning.datamodules.packing.job import DAMAGED, MOST_PROBLEMS, Job
from ldis_lightning.datamodules.packing.packer import Item, LeaveOut, Packer, Survey
from ldis_lightning.datamodules.packing.workers import run
from ldis_lightning.datamodules.shards import DISK_FULL, check_key, check_name, valid_class_ids
from ldis_lightning.errors import UserError

__all__ = ["Item", "LeaveOut", "Packed", "Packer", "Survey", "pack", "refuse"]

SHARDS = 32  # at least as many, so that all cores have work to the end,
FEWEST = 50  # unless they would hold fewer frames than this


class Packed(NamedTuple):
    """A data set as packed, and how much of its source was left out, by reason."""

    index: ShardIndex
    skipped: Counter[str]


def pack(
    packer: Packer,
    out: str | Path,
    *,
    name: str,
    classes: dict[int, str] | None = None,
    workers: int | None = None,
    resize: int | None = None,
    overwrite: bool = False,
    allow_partial: bool = False,
    skip_damaged: bool = False,
    progress: bool = False,
    max_samples_per_shard: int = 1000,
) -> Packed:
    """Pack a data set into shards with an index. The bytes are the same for any number of workers and interruptions.

    Args:
        packer: the source.
        out: the folder to make. It may exist if it is empty.
        name: name of the data set.
        classes: class id -> name, where the packer's own names are not wanted.
        workers: processes to use; by default all cores.
        resize: pixels of the short side: larger pictures are decoded, scaled down and encoded anew (JPEG, quality 95;
            label maps by the nearest pixel). By default bytes are stored as they are.
        overwrite: replace a data set of ours that is already at `out`.
        allow_partial: pack what is there even if its totals are not those published.
        skip_damaged: leave out samples that are damaged or do not fit instead of refusing the source.
        progress: show a progress bar.
        max_samples_per_shard: a shard holds at most so many frames (a longer clip is not split), and fewer where there
            would be less than 32 shards.

    Raises:
        UserError: the source does not fit, or `out` cannot be written. After an interruption, or when the disk is full,
            finished shards stay in `.NAME.packing` beside `out` for the same call to continue with.
    """
    if max_samples_per_shard < 1:
        raise UserError(f"max_samples_per_shard is {max_samples_per_shard}, and must be 1 or more.")
    check_name(name)
    target = OutFolder(out, overwrite, working=f".{Path(os.path.abspath(out)).name}.packing")
    survey = packer.survey()
    _check_survey(survey, name, allow_partial)
    named = valid_class_ids(survey.classes | (classes or {}))
    plan = plan_shards(survey.items, max_samples_per_shard)
    job = Job(packer, survey.items, plan, target.prepare(), name, named, resize, skip_damaged)
    with _claimed(job.folder), _stop_said(job, progress):
        job.begin()
        problems = run(job, job.missing(), workers or cores(), progress)
        try:
            refuse(problems, name, all_known=len(problems) < MOST_PROBLEMS)
            skipped = survey.skipped + _finish(job)
            target.publish(job.folder / "new")
        except UserError:  # the source must change, so that finished shards may be wrong by then
            shutil.rmtree(job.folder, ignore_errors=True)
            raise
        shutil.rmtree(job.folder, ignore_errors=True)
    return Packed(ShardIndex.open(target.path), skipped)


def plan_shards(items: list[Item], most: int) -> list[range]:
    """Positions of the items of each shard: at most `most` frames each, unless a single clip has more."""
    total = sum(len(item.parts) for item in items)
    frames = min(most, max(FEWEST, -(-total // SHARDS)))
    starts, held = [0], 0
    for position, item in enumerate(items):
        if held and held + len(item.parts) > frames:
            starts.append(position)
            held = 0
        held += len(item.parts)
    return [range(*ends) for ends in zip(starts, [*starts[1:], len(items)], strict=True)]


def _check_survey(survey: Survey, name: str, allow_partial: bool) -> None:
    if not survey.items:
        raise UserError(f"{name}: there is nothing to pack. Left out: {_listed(survey.skipped) or 'nothing'}.")
    wrong = {what: counts for what, counts in survey.totals.items() if counts[0] != counts[1]}
    if wrong and not allow_partial:
        counted = "; ".join(
            f"{found} {what} were found, {published} published" for what, (found, published) in wrong.items()
        )
        raise UserError(
            f"{name} is not complete: {counted}. Is a part missing, or use --allow_partial to pack it as it is."
        )
    keys = set[str]()
    for item in survey.items:
        check_key(item.key)
        if item.key in keys:
            raise UserError(f"{item.key} occurs twice: keys of a data set must differ.")
        keys.add(item.key)


def refuse(problems: list[str], source: object, advice: str = "", all_known: bool = True) -> None:
    """Raise a UserError that lists what is wrong with frames of a source, if anything is.

    Args:
        problems: one message a frame.
        source: what to call the source.
        advice: what else to say, at the end.
        all_known: whether the rest of the source is right.
    """
    if not problems:
        return
    listed = "".join(f"\n  {problem}" for problem in problems[:MOST_PROBLEMS])
    more = f"\n  and {len(problems) - MOST_PROBLEMS} more." if len(problems) > MOST_PROBLEMS else ""
    count = f"{len(problems)}{'' if all_known else ' or more'}"
    raise UserError(f"{source} was not packed, because of {count} of its frames:{listed}{more}{advice}")


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Keep others from packing into the same folder. The lock ends with the last process that holds it."""
    with (folder / "lock").open("w") as stream:
        for attempt in range(20):  # workers outlive a killed parent by a moment
            try:
                with suppress(NotImplementedError):
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if attempt == 19:
                    raise UserError(
                        f"{folder} is in use: another process packs into it. Wait for it to end."
                    ) from error
                time.sleep(0.1)
        yield


@contextmanager
def _stop_said(job: Job, progress: bool) -> Iterator[None]:
    """Say that the same command continues, where packing is interrupted or the disk is full."""
    try:
        yield
    except KeyboardInterrupt:
        finished = len(job.plan) - len(job.missing())
        if progress:
            print(f"{finished} of {len(job.plan)} shards are finished: the same command continues.", file=sys.stderr)
        raise
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        advice = "free some space, and the same command continues"
        raise UserError(f"{job.folder} cannot be written: {error.strerror}: {advice}.") from error


def _finish(job: Job) -> Counter[str]:
    """Write the index of the finished shards and return what was left out, by reason."""
    builder, shards, skipped, damaged = IndexBuilder(), list[Shard](), Counter[str](), list[str]()
    for number in range(len(job.plan)):
        record = job.record(number)
        skipped += record.left_out
        damaged += record.damaged
        if builder.load_shard(job.rows_path(number)):
            shards.append(record.shard)
        else:
            (job.folder / "new" / record.shard.name).unlink()
    if damaged:
        skipped[f"{DAMAGED}, first of all: {damaged[0]}"] = skipped.pop(DAMAGED)
    if not shards:
        raise UserError(f"{job.name}: nothing is left to pack. Left out: {_listed(skipped)}.")
    if not builder.labelled_rows:
        raise UserError(
            f"no label map of {job.name} shows a class: they hold only 0 (none) and 255 (ignore)."
            f"{job.packer.unlabelled_hint}"
        )
    builder.write(job.folder / "new", job.name, job.classes, shards)
    return skipped


def _listed(skipped: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in skipped.items() if count)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
