"""Runs of a sweep that take no model and no data, but start, save, go on, fail and end as real ones do."""

import sys
from pathlib import Path

from ldis_lightning.sweeps.launchers import Job, Local

SCRIPT = """
import hashlib, json, os, pathlib, re, signal, sys, time
config, seconds, fail = pathlib.Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
folder = config.parent
text = config.read_text()
with (folder / "starts").open("a") as file:
    file.write(f"{os.getpid()}\\n")
if fail and fail in str(folder):
    print("what went wrong")
    sys.exit(3)
checkpoint = folder / "checkpoints" / "last.ckpt"
checkpoint.parent.mkdir(exist_ok=True)
done = int(checkpoint.read_text()) if checkpoint.exists() else 0
def leave(number, frame):
    checkpoint.write_text(str(done))
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
steps = 20
while done < steps:
    time.sleep(seconds / steps)
    done += 1
    print(f"Epoch 0:  {5 * done}%|##   | {done}/{steps} [00:01<00:01, 9it/s, train/loss=0.{done:02d}]", flush=True)
    if done % 5 == 0:
        checkpoint.write_text(str(done))
signal.signal(signal.SIGTERM, signal.SIG_DFL)
parts = re.findall(r"^ *(?:latent_weight|seed_everything): .*$", text, re.M)
value = int(hashlib.sha256("".join(parts).encode()).hexdigest()[:6], 16) / 16**6
(folder / "results.json").write_text(json.dumps({"metrics": {"test/novel/miou": value}}))
(folder / "results.jsonl").write_text("{}\\n")
"""


class FakeRuns(Local):
    """As `Local`, but each process only pretends.

    Args:
        jobs: at a time.
        seconds: of each run.
        fail: runs with this in their folder's path fail.
    """

    def __init__(self, jobs: int = 1, seconds: float = 0.2, fail: str = "") -> None:
        super().__init__(jobs, threads_per_job=1, gpus_per_job=0, poll_seconds=0.02)
        self.seconds, self.fail = seconds, fail

    def command(self, job: Job) -> list[str]:
        """See `Local`."""
        config = job.arguments[job.arguments.index("--config") + 1]
        return [sys.executable, "-S", "-E", "-c", SCRIPT, config, str(self.seconds), self.fail]


def starts(folder: Path) -> dict[str, int]:
    """How often each run of a sweep was started, by its folder below `points`."""
    return {
        str(path.parent.relative_to(folder / "points")): len(path.read_text(encoding="utf-8").splitlines())
        for path in sorted(folder.glob("points/*/*/starts"))
    }
