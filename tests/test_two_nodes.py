"""Two nodes by torchrun, here both on the loopback device, train as one process does."""

import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import write_config
from cluster_support import ROOT, TIMEOUT, assert_same, environment, losses, overlay


def torchrun_line() -> list[str]:
    """The command of docs/cluster.md, without its program."""
    text = (ROOT / "docs/cluster.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("torchrun ")]
    return shlex.split(line)[1:]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@pytest.mark.timeout(1100)
def test_two_nodes_follow_one_process(
    quickstart_alone: dict[int, float], miniature_world: Path, tmp_path: Path
) -> None:
    (tmp_path / "two").mkdir()
    settings = overlay(tmp_path / "two", devices=1, num_nodes=2)
    last = ["--config", write_config(tmp_path / "two/overlay.yaml", settings)]
    values = {"8": "1", "$HEAD:29500": f"localhost:{free_port()}", "configs/ldis1.yaml": "configs/quickstart.yaml"}
    line = [values.get(word, word) for word in torchrun_line() if not word.startswith("--trainer.")]
    command = [sys.executable, "-m", "torch.distributed.run", *line, *last]
    nodes = [subprocess.Popen(command, cwd=miniature_world, env=environment()) for _ in range(2)]
    try:
        assert [node.wait(TIMEOUT) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.terminate()
    assert_same(losses(tmp_path / "two"), quickstart_alone)
