"""Contenders in processes of their own, which run by turns: what slows the machine down meets all of them."""

from __future__ import annotations

import multiprocessing
import re
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ldis_lightning.benchmarks.settings import Settings
from ldis_lightning.errors import UserError


@dataclass(frozen=True)
class Work:
    """What a contender has prepared.

    Attributes:
        run: the work of one turn, told the turn's number.
        flops: operations of one turn, recomputation left out; None where they were not counted.
    """

    run: Callable[[int], object]
    flops: int | None = None


@dataclass(frozen=True)
class Contender:
    """One way to do the work. It travels to another process, so `build` is a function of a module or a partial of one.

    Attributes:
        settings: what all contenders of a run have in common.
        build: makes everything, on the device.
    """

    settings: Settings
    build: Callable[[Settings], Work]


@dataclass
class Record:
    """What was measured of a contender.

    Attributes:
        seconds: of each turn.
        memory: at its highest, in bytes. On a GPU what tensors took there; else the process's resident memory beyond
            what it had after the rehearsal.
        flops: see `Work`.
    """

    seconds: list[float] = field(default_factory=list)
    memory: int = 0
    flops: int | None = None


PRELOADED = ["ldis_lightning.benchmarks.parts", "torch._dynamo"]
"""Modules that every contender needs; an optimizer imports the second."""


class Unfit(Exception):
    """A contender that cannot run here; the message says why."""


class Runner:
    """A contender at work in a process of its own."""

    def __init__(self, contender: Contender) -> None:
        if (
            contender.settings.device == "cuda"
        ):  # the import of some module may touch the driver, which no fork survives
            context = multiprocessing.get_context("spawn")
        else:  # forked from a process that has imported everything and has done nothing else
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(PRELOADED)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, contender))  # no daemon: compiling starts processes
        self._process.start()
        theirs.close()
        self.record = Record()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()  # the process ends when it reads this
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def ready(self) -> None:
        """Wait until everything is built.

        Raises:
            Unfit: it does not fit into memory, or a mistake of the user's keeps it from running.
        """
        self.record.flops = self._answer()

    def turn(self, number: int, counted: bool) -> None:
        """Run one turn and, if it is `counted`, keep its seconds. Raises as `ready`."""
        self._connection.send(number)
        seconds, self.record.memory = self._answer()
        if counted:
            self.record.seconds.append(seconds)

    def _answer(self) -> Any:
        try:
            kind, content = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(10)
            raise Unfit(f"its process was ended (status {self._process.exitcode}): out of memory?") from None
        if kind == "unfit":
            raise Unfit(content)
        if kind == "error":
            raise RuntimeError(f"in the contender's process:\n{content}")
        return content


def race(contenders: Sequence[Contender], turns: int, warmup: int, alone: bool = False) -> list[Record]:
    """Run contenders by turns, each in its own process.

    Args:
        contenders: all of them are alive at once.
        turns: counted turns of each.
        warmup: turns of each before these.
        alone: let each finish before the next is built, so that it has the device's whole memory.

    Returns:
        For each, its record.

    Raises:
        Unfit: one of them cannot run here.
    """
    if alone:
        return [race([contender], turns, warmup)[0] for contender in contenders]
    with ExitStack() as stack:
        runners = [stack.enter_context(Runner(contender)) for contender in contenders]
        for runner in runners:
            runner.ready()
        for number in range(warmup + turns):
            for runner in runners:
                runner.turn(number, number >= warmup)
        return [runner.record for runner in runners]


def serve(connection: Connection, contender: Contender) -> None:
    """The process of a `Runner`: build, answer with the operations, then each turn's number with its seconds and
    the peak of memory."""
    import torch

    try:
        contender.build(contender.settings.rehearsal()).run(0)
        meter = _meter(contender.settings.device)
        work = contender.build(contender.settings)
        meter.start()
        connection.send(("ready", work.flops))
        while True:
            number = connection.recv()
            meter.wait()
            start = time.perf_counter()
            work.run(number)
            meter.wait()
            seconds = time.perf_counter() - start
            connection.send(("turn", (seconds, meter.peak())))
    except (EOFError, KeyboardInterrupt):
        pass  # the parent has closed the pipe, or says itself that it was interrupted
    except UserError as error:
        connection.send(("unfit", str(error)))
    except torch.OutOfMemoryError:
        connection.send(("unfit", "out of memory"))
    except Exception:
        connection.send(("error", traceback.format_exc()))


class _ResidentMemory:
    """Of the process, beyond what it has when this is made."""

    def __init__(self) -> None:
        self._before = resident("VmRSS")

    def start(self) -> None:
        """Nothing: building counts too."""

    def wait(self) -> None:
        """Nothing: the work is done when its call returns."""

    def peak(self) -> int:
        return max(0, resident("VmHWM") - self._before)


class _GraphicsMemory:
    """Of the tensors on the GPU."""

    def start(self) -> None:
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def wait(self) -> None:
        import torch

        torch.cuda.synchronize()

    def peak(self) -> int:
        import torch

        return torch.cuda.max_memory_allocated()


def _meter(device: str) -> _ResidentMemory | _GraphicsMemory:
    return _GraphicsMemory() if device.startswith("cuda") else _ResidentMemory()


def resident(entry: str) -> int:
    """Bytes of `VmRSS` (resident memory now) or `VmHWM` (at its highest) of this process.

    Where there is no `/proc` (macOS), the highest of `getrusage` stands for both.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(rf"^{entry}:\s*(\d+) kB", status.read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
