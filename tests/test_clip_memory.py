"""Memory does not grow with the length of a clip: the whole evaluation of 2,000 frames against that of 50.

A process has some 900 MiB of libraries. A frame's label map at the original size is 64 KiB and its picture 192 KiB, so
that one that kept either of them for every frame would be over the limit.
"""

import json
import os
import resource
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SIDE = 256
"""Of the frames, in pixels. The model sees squares of 32."""


def write_clip(folder: Path, frames: int) -> None:
    """The same frame over and over: a square on a smooth background."""
    from ldis_lightning.datamodules.shards import ShardWriter

    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[20:130, 30:160] = 1
    ramp = np.linspace(0, 255, SIDE).astype(np.uint8)
    image = np.stack([np.tile(ramp, (SIDE, 1)), np.tile(ramp[:, None], (1, SIDE)), 255 * labels], -1)
    jpg, png = BytesIO(), BytesIO()
    Image.fromarray(image).save(jpg, "JPEG")
    Image.fromarray(labels).save(png, "PNG")
    with ShardWriter(folder, "long clip", {1: "square"}) as writer:
        writer.add_clip("clip", [(jpg.getvalue(), png.getvalue())] * frames)


def peak_of(folder: Path, frames: int) -> int:
    """Peak memory of a process that evaluates such a clip, in KiB."""
    write_clip(folder / str(frames), frames + 1)  # the first frame is the prompt
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, __file__, str(folder / str(frames))]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["episodes"] == found["expected"] == frames
    return found["peak"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip(tmp_path: Path) -> None:
    short, long = peak_of(tmp_path, 50), peak_of(tmp_path, 2000)
    print(f"peak memory of 50 frames {short} KiB, of 2,000 frames {long} KiB: {100 * (long / short - 1):+.1f}%")
    assert long <= 1.1 * short


def main(folder: str) -> None:
    """Evaluate the clip with a small LDIS-1 and print the peak."""
    import lightning as L
    import tiny

    from ldis_lightning.datamodules import VSPW, EpisodeDataModule, EvaluationSource

    sets = {"video": EvaluationSource(folder, protocol=VSPW())}
    data = EpisodeDataModule(evaluation=sets, image_size=tiny.PICTURE, eval_batch_size=16)
    quiet: Any = {name: False for name in ("logger", "enable_progress_bar", "enable_checkpointing")}
    module = tiny.ldis1()
    L.Trainer(accelerator="cpu", enable_model_summary=False, **quiet).test(module, data, verbose=False)
    result = module.results["test"]["video"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"peak": peak, "episodes": result.episodes, "expected": result.expected}))


if __name__ == "__main__":
    main(*sys.argv[1:])
