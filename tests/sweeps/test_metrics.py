"""Which metrics a test will log, told from the config alone."""

from pathlib import Path
from typing import Any

import pytest

from ldis_lightning.errors import UserError
from ldis_lightning.sweeps.metrics import check_metric, known_metrics

DATA = "ldis_lightning.datamodules"


def config(callbacks: Any = None, only: list[str] | None = None, **sets: Any) -> dict[str, Any]:
    model = {"class_path": "ldis_lightning.meta_architectures.LDIS1"}
    return {"model": model, "trainer": {"callbacks": callbacks}, "data": {"evaluation": sets, "only": only}}


def protocol(name: str) -> dict[str, Any]:
    return {"shards": "x", "protocol": {"class_path": f"{DATA}.{name}"}}


def test_each_protocol_has_its_own_scores() -> None:
    known = list(known_metrics(config(plain={"shards": "x"}, clips=protocol("DAVIS"), none=protocol("Absence"))))
    assert known == [
        "test/plain/miou", "test/plain/fb_iou", "test/clips/j_and_f", "test/clips/j", "test/clips/f", "test/none/fpr",
    ]  # fmt: skip


def test_what_is_left_out_is_not_logged() -> None:
    assert list(known_metrics(config(only=["b"], a={"shards": "x"}, b=protocol("Absence")))) == ["test/b/fpr"]


def test_the_ceiling_is_logged_by_its_callback() -> None:
    ceiling = {"class_path": "ldis_lightning.callbacks.Ceiling", "init_args": {"sets": ["b"]}}
    known = list(known_metrics(config([ceiling], a={"shards": "x"}, b={"shards": "x"})))
    assert "test/b/ceiling" in known and "test/a/ceiling" not in known


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("test/novell/miou", "did you mean `test/novel/miou`?"),
        ("test/novel/mio", "did you mean `test/novel/miou`?"),
        ("test/novel/ceiling", "a test of this config logs test/novel/miou, test/novel/fb_iou"),
        ("val/novel/miou", "did you mean `test/novel/miou`?"),
        ("miou", "no run logs `miou`"),
        ("test/novel", "no run logs `test/novel`"),
        ("test/novel/j", "no run logs `test/novel/j`"),
    ],
)
def test_metrics_that_nothing_logs(metric: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_metric(metric, config(novel={"shards": "x"}))
    assert message in str(error.value)


def test_what_somebodys_own_component_logs_is_left_to_the_first_run() -> None:
    own = config([{"class_path": "my.Callback"}], novel={"shards": "x"})
    check_metric("test/novel/mine", own)
    with pytest.raises(UserError, match="test/novell/mine"):  # but the set must be there
        check_metric("test/novell/mine", own)


def test_a_manifest_names_its_protocol(tmp_path: Path) -> None:
    path = tmp_path / "episodes.json"
    path.write_text('{"protocol": "absence"}', encoding="utf-8")
    source = {"shards": "x", "protocol": None, "manifest": str(path)}
    assert list(known_metrics(config(a=source))) == ["test/a/fpr"]
    check_metric("test/a/anything", config(a={**source, "manifest": "not/there.json"}))  # opening it will tell
