import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldis_lightning.errors import UserError
from ldis_lightning.weights import Placeholder, read_state

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2], dtype=torch.int64)}


class Settings:
    """Stands for DeepSpeed's config objects: a class that torch does not load by itself."""

    def __init__(self) -> None:
        self.stage = 2
        self.nested = {"zero": OrderedDict(a=1)}


class Touches:
    """A pickle that runs a command when it is loaded in the ordinary way."""

    def __init__(self, path: Path, function: Any = os.system) -> None:
        self.call = (function, (f"touch {path}",) if function is os.system else (str(path),))

    def __reduce__(self) -> Any:
        return self.call


def assert_equal(found: dict[str, Tensor]) -> None:
    assert set(found) == set(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
def test_weights_come_back_as_they_were(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"weights{ending}"
    save_file(WEIGHTS, path) if ending == ".safetensors" else torch.save(WEIGHTS, path)
    assert_equal(read_state(path))


def test_the_old_torch_format_is_read(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_equal(read_state(tmp_path / "old.pt"))


def test_config_objects_beside_weights_become_placeholders(tmp_path: Path) -> None:
    module = OrderedDict(WEIGHTS, half=torch.ones(2, dtype=torch.bfloat16), parameter=nn.Parameter(torch.ones(3)))
    saved = {"module": module, "ds_config": Settings(), "steps": 7, "shapes": [torch.Size([2, 3])], "dtype": torch.half}
    torch.save(saved, tmp_path / "mp_rank_00_model_states.pt")
    found = read_state(tmp_path / "mp_rank_00_model_states.pt")
    assert isinstance(found["ds_config"], Placeholder) and not hasattr(found["ds_config"], "stage")
    assert (found["steps"], found["shapes"], found["dtype"]) == (7, [torch.Size([2, 3])], torch.half)
    assert torch.equal(found["module"].pop("half"), torch.ones(2, dtype=torch.bfloat16))
    assert torch.equal(found["module"].pop("parameter"), torch.ones(3))
    assert_equal(found["module"])


@pytest.mark.parametrize("function", [os.system, os.mkdir, eval], ids=["system", "mkdir", "eval"])
def test_a_hostile_file_does_nothing(tmp_path: Path, function: Any) -> None:
    target = tmp_path / "touched"
    hostile = Touches(target, function)
    if function is eval:
        hostile.call = (eval, (f"open({str(target)!r}, 'w').close()",))
    torch.save({"weights": WEIGHTS, "config": hostile}, tmp_path / "hostile.pt")
    found = read_state(tmp_path / "hostile.pt")
    assert not target.exists()
    assert_equal(found["weights"])
    torch.load(tmp_path / "hostile.pt", weights_only=False)  # the file does what it is accused of
    assert target.exists()


def test_a_hostile_file_of_the_old_format_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    torch.save({"config": Touches(target)}, tmp_path / "hostile.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"is no file of weights, or one of torch before 1\.6"):
        read_state(tmp_path / "hostile.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Touches(target), protocol=2))
    with pytest.raises(UserError, match="is no file of weights"):
        read_state(tmp_path / "plain.pt")
    assert not target.exists()


def test_a_program_is_refused(tmp_path: Path) -> None:
    """torch.load would hand what looks like a TorchScript archive to another loader."""
    torch.save(WEIGHTS, tmp_path / "script.pt")
    with zipfile.ZipFile(tmp_path / "script.pt", "a") as archive:
        archive.writestr("script/constants.pkl", pickle.dumps(()))
    with pytest.raises(UserError, match=r"script\.pt: is a TorchScript program, not weights"):
        read_state(tmp_path / "script.pt")


def test_attributes_and_items_of_an_unknown_class_are_forgotten(tmp_path: Path) -> None:
    """Whatever a pickle can do to an object: arguments, state, items of a list and of a dict."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=2)
    pickler.dispatch_table = {Settings: lambda _: (UnknownList, (1,), {"state": 1}, iter([1, 2]), iter([("k", "v")]))}
    pickler.dump({"config": Settings()})
    path = tmp_path / "odd.pt"
    torch.save({"config": None, "settings": Settings()}, path)  # an archive, whose pickle is then replaced
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, buffer.getvalue() if name.endswith("data.pkl") else record)
    assert read_state(path) == {"config": {}}


class UnknownList(list):
    def __init__(self, *args: Any) -> None:
        super().__init__()


def test_truncated_safetensors_are_named_with_both_sizes(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(WEIGHTS, path)
    whole = path.read_bytes()
    for kept in (len(whole) - 1, len(whole) - 20, 100):
        path.write_bytes(whole[:kept])
        message = (
            rf"weights\.safetensors: has {kept} bytes, (but the tensors that it lists need {len(whole)}|less than)"
        )
        with pytest.raises(UserError, match=message):
            read_state(path)
    path.write_bytes(whole + b"more")
    with pytest.raises(UserError, match=f"has {len(whole) + 4} bytes, but the tensors that it lists need {len(whole)}"):
        read_state(path)


@pytest.mark.parametrize(
    "content", [b"", b"short", struct.pack("<Q", 10) + b"not a json", struct.pack("<Q", 2) + b"[]"]
)
def test_what_is_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"safetensors header.*truncated or altered; get it again"):
        read_state(tmp_path / "weights.safetensors")


def test_a_truncated_torch_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(WEIGHTS, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"weights\.pth: ends early, after {len(whole) // 2} bytes"):
        read_state(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x00" * 100])
def test_what_is_no_torch_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pth: (torch cannot read it|is no file of weights)"):
        read_state(tmp_path / "weights.pth")


def test_a_pointer_instead_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(UserError, match="is a Git LFS pointer"):
        read_state(tmp_path / "w.safetensors")


def test_a_missing_file_and_the_key_that_named_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model\.x: .*none\.pt: there is no such file"):
        read_state(tmp_path / "none.pt", "model.x")


def test_a_tensor_is_no_dict_of_weights(tmp_path: Path) -> None:
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    with pytest.raises(UserError, match="holds a Tensor, not a dict of weights"):
        read_state(tmp_path / "tensor.pt")
