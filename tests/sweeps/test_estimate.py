"""What a sweep says in advance that a run costs."""

from functools import cache

import pytest

from ldis_lightning.lightning_cli import parse_fit
from ldis_lightning.sweeps.estimate import ModelCost, model_cost


@cache
def cost(*options: str) -> ModelCost:
    parser, config = parse_fit(["--config", "configs/quickstart_ldisn.yaml", "--model.steps", "4", *options])
    return model_cost(parser, config.as_dict())


@pytest.mark.parametrize(("scheduler", "calls"), [("DPMSolverMultistepScheduler", 4), ("HeunDiscreteScheduler", 7)])
def test_a_sampler_costs_what_it_asks_of_the_network(scheduler: str, calls: int) -> None:
    """Also one that computes with values while it is built, and one of second order."""
    found = cost("--model.scheduler", f"diffusers.{scheduler}")
    assert found.calls == 3 * calls  # guided
    assert found.train_flops and found.test_flops
    one = cost("--model.steps", "1")
    assert one.test_flops is not None and one.calls == 3
    two = cost("--model.steps", "2")
    assert two.test_flops is not None
    assert found.test_flops == one.test_flops + (calls - 1) * (two.test_flops - one.test_flops)


def test_guidance_costs_calls() -> None:
    alone = cost("--model.guidance.query", "1", "--model.guidance.instruction", "1")
    assert alone.calls == 4
    assert alone.test_flops is not None and alone.test_flops < (cost().test_flops or 0)
