"""A real Slurm on this machine: munge, one controller and two nodes, in a temporary folder. Needs slurm-wlm and munge.

By hand, for as long as the shell lives: python tests/sweeps/slurm_cluster.py bash
"""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
NODES = ("n1", "n2")
START_WITHIN = 60.0
"""Seconds until the nodes must be idle; it takes two."""

CONFIG = """
ClusterName=ldis
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MessageTimeout=10
KillWait=20
MinJobAge=86400
PartitionName=short Nodes=ALL Default=YES MaxTime=60 State=UP
"""


@dataclass
class Cluster:
    """A Slurm that runs.

    Attributes:
        environment: what its commands need, over this process's own.
    """

    folder: Path
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *command: str) -> str:
        """What a command says, standard errors too.

        Raises:
            CalledProcessError: it failed.
        """
        return subprocess.run(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=True,
        ).stdout

    def start(self, name: str, *command: str) -> None:
        """Start a daemon in the foreground of a process that `stop` ends."""
        with (self.folder / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )

    def start_controller(self) -> None:
        """Start the one controller, with the jobs that an earlier one left."""
        self.start("slurmctld", "slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))

    def stop(self, name: str) -> None:
        """End a daemon, and wait for it."""
        process = self.processes.pop(name)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def wait_for_nodes(self) -> None:
        """Until all nodes take jobs.

        Raises:
            RuntimeError: they do not; with the ends of the logs.
        """
        deadline = time.monotonic() + START_WITHIN
        while time.monotonic() < deadline:
            shown = subprocess.run(
                ["sinfo", "--noheader", "--Node", "--format", "%N %T"],
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=60,
            )
            if shown.stdout.split("\n")[: len(NODES)] == [f"{node} idle" for node in NODES]:
                return
            time.sleep(0.2)
        logs = [f"{path}:\n{path.read_text(errors='replace')[-2000:]}" for path in self.folder.glob("*.log")]
        raise RuntimeError("\n".join(["Slurm's nodes did not come up", shown.stdout, shown.stderr, *logs]))


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _configure(folder: Path) -> None:
    host = socket.gethostname()
    controller_port, *node_ports = _free_ports(1 + len(NODES))
    user = pwd.getpwuid(os.getuid()).pw_name
    (folder / "state").mkdir()
    nodes = []
    for node, port in zip(NODES, node_ports, strict=True):
        (folder / f"spool-{node}").mkdir()
        nodes.append(f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=2000")
    text = CONFIG.format(host=host, user=user, controller_port=controller_port, folder=folder)
    (folder / "slurm.conf").write_text(text + "\n".join(nodes) + "\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A cluster of two nodes of two processors each, with the partition `short`; all its jobs end with it."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the path of a socket must be
    own = Cluster(folder)
    os.environ["PATH"] = _path()
    try:
        _configure(folder)
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        own.start("munged", "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
        own.start_controller()
        for node in NODES:
            own.start(node, "slurmd", "-D", "-N", node, "-f", str(folder / "slurm.conf"))
        own.wait_for_nodes()
        yield own
    finally:
        _end(own)
        shutil.rmtree(folder, ignore_errors=True)


def _end(own: Cluster) -> None:
    """Cancel what is left, then end the daemons, munge last: the others talk through it."""
    if "slurmctld" in own.processes:
        subprocess.run(["scancel", "--user", str(os.getuid())], env=own.environment, timeout=60, capture_output=True)
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            left = subprocess.run(
                ["squeue", "--noheader"], env=own.environment, timeout=60, capture_output=True, text=True
            )
            if left.returncode or not left.stdout.strip():
                break
            time.sleep(0.5)
    for name in sorted(own.processes, key="munged".__eq__):
        own.stop(name)


def main(command: Sequence[str]) -> int:
    """Run a command inside a cluster of its own."""
    with cluster() as own:
        print(f"SLURM_CONF={own.folder}/slurm.conf", flush=True)
        return subprocess.run(list(command) or ["sinfo"], env=own.environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
