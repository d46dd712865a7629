"""Several runs that want the synthetic world at once, as the first ones of a sweep do."""

import subprocess
import sys
from pathlib import Path

from conftest import MINIATURE

from ldis_lightning.datamodules import ShardIndex, SyntheticWorld

DRAW = """
import sys
from ldis_lightning.datamodules import SyntheticWorld

print("ready", flush=True)
sys.stdin.readline()
SyntheticWorld(sys.argv[1], **eval(sys.argv[2])).prepare()
"""


def test_one_draws_and_the_others_wait_for_it(tmp_path: Path) -> None:
    settings = {**MINIATURE, "train_images": 300}  # enough for all to begin before one has ended
    command = [sys.executable, "-c", DRAW, str(tmp_path / "world"), repr(settings)]
    together = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(3)
    ]
    for process in together:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in together:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=120)[0] for process in together]
    assert [process.returncode for process in together] == [0, 0, 0], outputs
    assert sum("drawing images/train" in output for output in outputs) == 1
    assert sum("another process draws it" in output for output in outputs) == 2
    alone = SyntheticWorld(str(tmp_path / "alone"), **settings)
    alone.prepare()
    for name in ("images/train", "clips/novel"):
        drawn, expected = (ShardIndex.open(tmp_path / root / name) for root in ("world", "alone"))
        assert drawn.hash == expected.hash
