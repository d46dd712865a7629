"""Dotted keys: where their values go in a config, and what another class keeps."""

import pytest

from ldis_lightning.errors import UserError
from ldis_lightning.sweeps.overrides import set_key, with_values

PACKAGE = "ldis_lightning.alignment"


def test_keys_lead_through_components_without_init_args() -> None:
    config = {"model": {"class_path": "M", "init_args": {"part": {"class_path": "P"}}}, "data": {"size": 1}}
    set_key(config, "model.part.depth", 3)
    set_key(config, "model.init_args.width", 4)
    set_key(config, "data.size", 2)
    assert config == {
        "model": {
            "class_path": "M",
            "init_args": {"part": {"class_path": "P", "init_args": {"depth": 3}}, "width": 4},
        },
        "data": {"size": 2},
    }


def test_a_key_through_a_number_leads_nowhere() -> None:
    with pytest.raises(UserError, match=r"`data.size.x` leads nowhere, since `data.size` is 1"):
        set_key({"data": {"size": 1}}, "data.size.x", 2)


@pytest.mark.parametrize("name", [f"{PACKAGE}.Vanilla", "Vanilla"])
def test_another_class_keeps_what_it_takes(name: str) -> None:
    component = {"class_path": f"{PACKAGE}.Augmented", "init_args": {"gamma": 0.4, "low": -0.5}}
    config = {"mask": component}
    own = with_values(config, {"mask.high": 0.5, "mask.class_path": name})  # in whichever order
    assert own == {"mask": {"class_path": name, "init_args": {"low": -0.5, "high": 0.5}}}
    assert config["mask"] is component and component["init_args"] == {"gamma": 0.4, "low": -0.5}


def test_a_class_that_does_not_exist_is_left_for_the_parser() -> None:
    config = {"mask": {"class_path": f"{PACKAGE}.Augmented", "init_args": {"gamma": 0.4}}}
    own = with_values(config, {"mask.class_path": "Augmentd"})
    assert own == {"mask": {"class_path": "Augmentd", "init_args": {"gamma": 0.4}}}
