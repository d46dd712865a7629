import re
from typing import Any

import pytest
import torch

from ldis_lightning.benchmarks import flops, infer, parts, report, step
from ldis_lightning.benchmarks.settings import Settings, count_flops
from ldis_lightning.benchmarks.turns import Record, Unfit
from ldis_lightning.cli import main

TINY = Settings("tiny", "cpu", "32-true", compile=False, calls=2)


@pytest.mark.timeout(280)
def test_the_step_benchmark_runs_in_processes_of_its_own(capfd):
    assert main(["bench", "step", "--scale", "tiny", "--rows", "ours", "--turns", "1", "--calls", "2"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("Training step of LDIS-1, batch 2, scale tiny, 32-true, ")
    number = r"[0-9.e+-]+"
    row = rf"\s+{number}\s+{number} to {number}\s+{number}\s+({number})\s+\d+\s+({number})$"
    baseline, ours = re.match("baseline" + row, lines[2].rstrip()), re.match("ours" + row, lines[3].rstrip())
    assert baseline and baseline[1] == baseline[2] == "1.00"
    assert ours and float(ours[1]) > 0


@pytest.mark.parametrize("name", list(step.VARIANTS))
def test_every_way_to_train_trains(name):
    pytest.importorskip({"adam8bit": "bitsandbytes", "lean": "bitsandbytes", "lora": "peft"}.get(name, "torch"))
    seen = {}

    def keep(settings, episodes, loss, optimizer, count):
        seen["parameters"] = [p for group in optimizer.param_groups for p in group["params"]]
        return training(settings, episodes, loss, optimizer, count)

    training = step._training
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "_training", keep)
        work = step.our_step(2, step.VARIANTS[name].options, TINY)
    before = [parameter.detach().clone() for parameter in seen["parameters"]]
    work.run(0)
    moved = [not torch.equal(old, new) for old, new in zip(before, seen["parameters"], strict=True)]
    assert sum(moved) > len(moved) / 2
    full = sum(p.numel() for p in parts.SCALES["tiny"].denoiser().build(4, 8).parameters())
    assert (sum(p.numel() for p in before) == full) == (name != "lora")


def test_the_baselines_step_moves_the_unet_and_nothing_else(monkeypatch):
    made = []
    ldis1 = parts.ldis1
    monkeypatch.setattr(parts, "ldis1", lambda *args, **kwargs: made.append(ldis1(*args, **kwargs)) or made[0])
    work = step.baseline_step(2, TINY)
    before = {name: p.detach().clone() for name, p in made[0].named_parameters()}
    work.run(0)
    moved = {name.split(".")[0] for name, p in made[0].named_parameters() if not torch.equal(before[name], p)}
    assert moved == {"unet"}


@pytest.mark.parametrize("build", [infer.baseline_inference, infer.our_inference])
@pytest.mark.parametrize("model", [infer.OneStep(), infer.ManySteps(2)], ids=["LDIS-1", "LDIS-n"])
def test_inference_encodes_references_anew_in_the_baseline_alone(build, model, monkeypatch):
    work = build(model, 3, 4, TINY)
    calls = []
    forward = parts.TimmPromptEncoder.forward
    monkeypatch.setattr(
        parts.TimmPromptEncoder,
        "forward",
        lambda self, prompt: calls.append(len(prompt.image)) or forward(self, prompt),
    )
    work.run(0)
    references = [count for count in calls if count != 1]  # the null instruction is one picture
    assert references == TINY.calls * (4 if build is infer.baseline_inference else 1) * [3]  # four queries, one context


def test_a_row_that_cannot_run_says_why(monkeypatch, capsys):
    def race(contenders, turns, warmup, alone):
        if "low_rank" in str(contenders[1].build):
            raise Unfit("out of memory")
        return [Record([2.0, 4.0, 9.0], 1000_000_000), Record([2.0, 1.0, 8.0], 800_000_000)]

    monkeypatch.setattr(report, "race", race)
    assert main(["bench", "step", "--rows", "ours", "lora", "--batch", "8", "--calls", "2", "--device", "cpu"]) == 0
    title, _, baseline, ours, lora, legend = capsys.readouterr().out.splitlines()
    assert "batch 8, scale mid" in title and "baseline's" in legend
    assert re.split(r"\s{2,}", baseline.strip()) == ["baseline", "2", "1 to 4.5", "4", "1.00", "1000", "1.00"]
    assert re.split(r"\s{2,}", ours.strip()) == ["ours", "1", "0.5 to 4", "8", "2.00", "800", "0.80"]
    assert re.split(r"\s{2,}", lora.strip()) == ["ours + LoRA rank 4", "out of memory"]


def test_utilisation_is_printed_for_a_known_gpu(monkeypatch, capsys):
    monkeypatch.setattr(report, "device_name", lambda device: "NVIDIA H100 80GB HBM3")
    rows = [report.Row("ours", Record([2.0], 10, int(989e12)), Record([1.0], 5, int(989e12)), pictures=8)]
    report.print_rows("A step", Settings("sd15", "cuda", "bf16-mixed", False, calls=2), rows)
    _, heading, baseline, ours, _ = capsys.readouterr().out.splitlines()
    assert heading.split()[-1] == "MFU" and baseline.split()[-1] == "50.0%" and ours.split()[-1] == "100.0%"
    report.print_rows("A step", Settings("sd15", "cuda", "32-true", False, calls=2), rows)  # no peak is known for it
    assert "MFU" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_the_peak_of_a_device_is_found_by_its_name(name, peak):
    assert flops.peak(name) == peak


def test_operations_are_counted_and_leave_no_gradients(monkeypatch):
    linear: Any = torch.nn.Linear(8, 16, bias=False)
    assert flops.count(lambda: linear(torch.ones(4, 8))) == 2 * 4 * 8 * 16
    computation = lambda: linear(torch.ones(4, 8)).sum().backward()  # noqa: E731
    assert count_flops(linear, TINY, computation) is None and linear.weight.grad is None
    on_gpu = Settings("tiny", "cuda", "32-true", False, 1)
    monkeypatch.setattr(Settings, "autocast", lambda self: torch.enable_grad())
    assert count_flops(linear, on_gpu, computation) == 2 * 2 * 4 * 8 * 16  # forward and the weight's gradient
    assert linear.weight.grad is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--scal", "mid"], "unknown option `--scal`; did you mean `--scale`?"),
        (["step", "--batch", "0"], "--batch"),
        (["step", "--rows", "theirs"], "--rows"),
        (["infer", "--queries", "1"], "--queries"),
        (["infer", "--device", "tpu"], "must be cpu or cuda, got `tpu`"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said_to_be_missing(capsys):
    assert main(["bench", "infer", "--device", "cuda"]) == 2
    assert "torch finds no GPU here; use --device cpu" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.timeout(280)
def test_the_step_benchmark_runs_on_a_gpu(capfd):
    assert main(["bench", "step", "--scale", "tiny", "--device", "cuda", "--turns", "1", "--calls", "2"]) == 0
    assert capfd.readouterr().out.count("baseline ") == len(step.VARIANTS)
