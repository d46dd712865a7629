"""Made-up result rows for the tests of what is done with them."""

from pathlib import Path
from typing import Any

from ldis_lightning.evaluation.rows import ResultRow

MODEL = "LDIS1(InstructionExtractor(TimmPromptEncoder, AlphaChannel), Vanilla, TinyAutoencoder)"


def row(**changes: Any) -> ResultRow:
    """An in-domain result on COCO by the paper's protocol, but for some changes."""
    facts: dict[str, Any] = {
        **{"set": "coco", "dataset": "coco2014", "index_hash": "1" * 64, "protocol": "ldis", "settings": {}},
        **{"manifest_hash": "a" * 64, "references": 1, "treatment": "Intact()", "episodes": 4000, "expected": 4000},
        **{"rules": {"pairing": "AcrossImages()", "treatment": "Intact()", "episodes": None, "classes": None}},
        **{"measure": "miou", "score": 0.5, "interval": (0.48, 0.53), "scores": {"miou": 0.5, "fb_iou": 0.7}},
        **{"domain": "in-domain", "model": MODEL, "time": "2026-01-02T03:04:05+00:00"},
        **{"intervals": {"miou": (0.48, 0.53), "fb_iou": (0.68, 0.73)}},
        **{"checkpoint": "last.ckpt", "checkpoint_sha256": "c" * 64, "code": {"version": "0.2.0", "commit": None}},
    }
    return ResultRow(**{**facts, **changes})


def fold(number: int, **changes: Any) -> ResultRow:
    """A row of COCO-20i, whose manifest and classes depend on the fold."""
    facts: dict[str, Any] = {
        **{"set": f"coco20i_{number}", "protocol": "hsnet-coco", "manifest_hash": f"f{number}" * 32},
        **{"settings": {"fold": number, "folds": 4, "interleaved": True, "episodes": 1000, "score_size": 400}},
        **{"rules": {"pairing": "AcrossImages()", "treatment": "Intact()", "classes": [number + 1, number + 5]}},
        **{"episodes": 1000, "expected": 1000, "score": 0.4 + 0.1 * number, "interval": None},
    }
    return row(**{**facts, **changes})


def write(path: Path, *rows: ResultRow) -> Path:
    """Write rows as `ldis test` would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{entry.to_json()}\n" for entry in rows), encoding="utf-8")
    return path
