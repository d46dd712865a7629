"""Ways to carry out the same computation: what they change, and that the result is not among it."""

from collections import Counter
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from ldis_lightning.execution import CheapOperations, Checkpointing, EveryBlock, Execution
from ldis_lightning.meta_architectures import InContextSegmenter

BATCH = tiny.batch(2)


def gradients(module: InContextSegmenter) -> dict[str, Tensor]:
    module.train().zero_grad()
    module.training_loss(BATCH)["loss"].backward()
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def configured(execution: Execution, build: Any = tiny.ldis1, **changes: Any) -> InContextSegmenter:
    module = build(execution=execution, **changes)
    module.configure_model()
    return module


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of the tensors that autograd keeps for the backward."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            self.storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        super().__init__(pack, lambda tensor: tensor)


@pytest.mark.parametrize("build", [tiny.ldis1, tiny.ldisn])
@pytest.mark.parametrize("checkpointing", [EveryBlock(), CheapOperations()], ids=lambda rule: type(rule).__name__)
def test_checkpointing_changes_no_gradient(checkpointing: Checkpointing, build: Any) -> None:
    plain = gradients(configured(Execution(), build))
    again = gradients(configured(Execution(checkpointing=checkpointing), build))
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient)


def calls_of_a_step(execution: Execution, kind: type[nn.Module]) -> int:
    module = configured(execution).train()
    counter: Counter[str] = Counter()
    for part in module.unet.modules():
        if isinstance(part, kind):
            part.register_forward_hook(lambda *_: counter.update("x"))
    module.training_loss(BATCH)["loss"].backward()
    return counter["x"]


def test_every_block_computes_blocks_twice() -> None:
    once = calls_of_a_step(Execution(), nn.Conv2d)
    twice = calls_of_a_step(Execution(checkpointing=EveryBlock()), nn.Conv2d)
    assert once < twice <= 2 * once


def kept_bytes(execution: Execution) -> int:
    """Bytes that a training step keeps for its backward, other than weights."""
    module = configured(execution).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept = Kept()
    with kept:
        module.training_loss(BATCH)
    return sum(size for pointer, size in kept.storages.items() if pointer not in weights)


def test_checkpointing_keeps_less() -> None:
    everything, every_block = kept_bytes(Execution()), kept_bytes(Execution(checkpointing=EveryBlock()))
    assert every_block < 0.6 * everything


def test_cheap_operations_does_no_convolution_twice() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: Counter[str] = Counter()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls[func.overloadpacket.__name__] += 1
            return func(*args, **(kwargs or {}))

    def counted(execution: Execution) -> Counter[str]:
        module = configured(execution).train()
        with Count() as count:
            module.training_loss(BATCH)["loss"].backward()
        return count.calls

    plain, cheap = counted(Execution()), counted(Execution(checkpointing=CheapOperations()))
    assert cheap["convolution"] == plain["convolution"]
    assert cheap["native_group_norm"] > plain["native_group_norm"]
    assert cheap["silu"] > plain["silu"]


@pytest.mark.parametrize("autocast", [False, True])
def test_frozen_weights_in_bfloat16_compute_almost_the_same(autocast: bool) -> None:
    execution = Execution(frozen_in_bfloat16=True)
    plain = tiny.ldis1(instruction=tiny.extractor(trainable=False))
    half = tiny.ldis1(instruction=tiny.extractor(trainable=False))
    execution.apply(half.unet, (half.autoencoder, half.instruction.encoder), autocast)
    for network in (half.autoencoder, half.instruction.encoder):
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
    assert {parameter.dtype for parameter in half.unet.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = [module.train().training_loss(BATCH)["loss"] for module in (plain, half)]
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0.02)
    assert losses[0] != losses[1] or autocast  # under autocast every weight is rounded anyway
    losses[1].backward()
    assert half.unet.conv_in.weight.grad is not None


def test_a_trained_encoder_stays_in_full_precision() -> None:
    module = configured(Execution(frozen_in_bfloat16=True))
    assert {parameter.dtype for parameter in module.instruction.parameters()} == {torch.float32}


def test_channels_last() -> None:
    module = configured(Execution(channels_last=True))
    assert module.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert not tiny.ldis1().unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        module.train().training_loss(BATCH)["loss"], tiny.ldis1().train().training_loss(BATCH)["loss"]
    )


def test_compiled_modules_keep_their_names_and_their_results(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_module, compiled = nn.Module.compile, []

    def without_code_generation(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        compiled.append(type(self).__name__)
        compile_module(self, backend="aot_eager")  # traces and differentiates as the default does

    monkeypatch.setattr(nn.Module, "compile", without_code_generation)
    plain, module = configured(Execution()), configured(Execution(compile=True))
    assert list(module.state_dict()) == list(plain.state_dict())
    assert Counter(compiled) == Counter(
        CrossAttnDownBlock2D=2, UNetMidBlock2DCrossAttn=1, CrossAttnUpBlock2D=2, Encoder=1, Decoder=1, Block=1
    )
    expected = gradients(plain)
    for name, gradient in gradients(module).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_a_model_is_set_up_once() -> None:
    module = configured(Execution(checkpointing=EveryBlock()))
    module.unet.disable_gradient_checkpointing()
    module.configure_model()
    assert not module.unet.is_gradient_checkpointing


def test_the_slot_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match=r"Checkpointing must implement apply\(unet\)"):
        Checkpointing().apply(tiny.unet())
