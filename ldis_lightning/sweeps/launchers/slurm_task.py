"""What each task of a sweep's Slurm job does: it becomes the `ldis` command."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn


def become(command: Sequence[str], log: str) -> NoReturn:
    """Replace this process by the command, so that Slurm's signals and the command's status take no detour.

    Args:
        command: program and arguments.
        log: gets the output of rank 0; that of rank N goes to `log_of_rank(log, N)` beside it.
    """
    path = log_of_rank(Path(log), int(os.environ["SLURM_PROCID"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.execve(command[0], list(command), environment(os.environ))


def log_of_rank(log: Path, rank: int) -> Path:
    """`log.txt` for rank 0, `log.1.txt` for rank 1, ..."""
    return log.with_name(f"{log.stem}.{rank}{log.suffix}") if rank else log


def environment(slurms: Mapping[str, str]) -> dict[str, str]:
    """The environment of the command, from that of its task.

    The ranks meet at an address that is right without anybody's DNS, and at a port of the job's own: jobs share hosts,
    and `ldis sweep` may have been started where `MASTER_PORT` was set.
    """
    own = {
        **slurms,
        "PYTHONUNBUFFERED": "1",
        "MASTER_ADDR": _master_address(slurms),
        "MASTER_PORT": str(10000 + int(slurms["SLURM_JOB_ID"]) % 20000),  # below what systems give to clients
    }
    if "SLURM_CPUS_PER_TASK" in slurms:
        own["OMP_NUM_THREADS"] = slurms["SLURM_CPUS_PER_TASK"]
    return own


def _master_address(slurms: Mapping[str, str]) -> str:
    """Where rank 0 is: on the first node, from where `srun` has launched all."""
    if int(slurms.get("SLURM_JOB_NUM_NODES", "1")) == 1:
        return "127.0.0.1"
    if address := slurms.get("SLURM_LAUNCH_NODE_IPADDR"):
        return address
    return socket.gethostname()  # only an srun older than 2015 tells its nodes nothing
