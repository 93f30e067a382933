"""State dicts of torch files, read without PyTorch: values, and files that are refused."""

import collections
import io
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from optional import require

from cmap_jax.convert.state_dict import WeightsError, read_state_dict

torch = require("torch")

BOTH_FORMS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "series"])


def save(content, path, is_zip=True):
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)


def tensors():
    """Each dtype that is read; tensors that share a storage, have strides, or are parameters."""
    torch.manual_seed(0)
    whole = torch.randn(4, 6)
    numbers = {
        kind: (10 * torch.randn(3)).to(getattr(torch, kind))
        for kind in ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "bool")
    }
    return collections.OrderedDict(
        **numbers,
        bytes=torch.arange(3, dtype=torch.uint8),
        transposed=whole.T,
        part=whole[1:, ::2],
        channels_last=torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        parameter=torch.nn.Parameter(torch.randn(2, 2)),
        scalar=torch.tensor(3.5),
        empty=torch.zeros(0, 3),
    )


@BOTH_FORMS
def test_values(tmp_path, is_zip):
    state = tensors()
    state._metadata = {"": {"version": 1}}  # as a module's state dict has it
    save(state, tmp_path / "net.pth", is_zip)
    arrays = read_state_dict(tmp_path / "net.pth")
    assert list(arrays) == list(state)
    for name, tensor in state.items():
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        expected = (tensor.float() if half else tensor).detach().numpy()
        np.testing.assert_array_equal(arrays[name], expected)
        assert arrays[name].dtype == expected.dtype


@BOTH_FORMS
def test_the_prefix_of_parallel_modules_is_dropped(tmp_path, is_zip):
    save({"module.a": torch.ones(1), "module.module.b": torch.ones(1)}, tmp_path / "a.pth", is_zip)
    assert list(read_state_dict(tmp_path / "a.pth")) == ["a", "module.b"]


def test_pytorch_is_not_imported(tmp_path):
    save(tensors(), tmp_path / "net.pth")
    code = """
import sys
sys.modules["torch"] = None  # importing it fails
from cmap_jax.convert.state_dict import read_state_dict
assert len(read_state_dict(sys.argv[1])) == 15
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "net.pth"], check=True)


class Runs:
    """Unpickled without care, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@BOTH_FORMS
@pytest.mark.parametrize("inside", [True, False])
def test_nothing_of_a_file_runs(tmp_path, is_zip, inside):
    path, mark = tmp_path / "bad.pth", tmp_path / "mark"
    save({"a": torch.ones(1), "b": Runs(mark)} if inside else Runs(mark), path, is_zip)
    with pytest.raises(WeightsError, match=r"bad\.pth: .* would run code: it names posix\.mkdir\."):
        read_state_dict(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()


def write_description(path, description: bytes, **records: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", description)
        for name, content in records.items():
            archive.writestr(f"net/data/{name}", content)


class Described(pickle.Pickler):
    """Pickles a tensor's description as `torch.save` does, with any numbers in it."""

    def reducer_override(self, value):
        if isinstance(value, Tensor):
            return torch._utils._rebuild_tensor_v2, (*value, False, collections.OrderedDict())
        return NotImplemented

    def persistent_id(self, value):
        return tuple(value) if isinstance(value, Storage) else None


Tensor = collections.namedtuple("Tensor", "storage offset size stride")
Storage = collections.namedtuple("Storage", "kind type key location count")


def described(count=4, offset=0, size=(2, 2), stride=(2, 1), key="0"):
    storage = Storage("storage", torch.FloatStorage, key, "cpu", count)
    content = io.BytesIO()
    Described(content, 2).dump({"a": Tensor(storage, offset, size, stride)})
    return content.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": 1}, "exceeds its storage"),
        ({"offset": -1}, "a size or position is -1"),
        ({"size": (3, 2)}, "exceeds its storage"),
        ({"size": (10**9, 10**9), "stride": (0, 0)}, "exceeds its storage"),
        ({"stride": (-1, 1)}, "a size or position is -1"),
        ({"stride": (1,)}, "without its storage or axes"),
        ({"size": (2.0, 2)}, "a size or position is 2.0"),
        ({"count": 5}, "storage 0 ends early"),
        ({"count": True}, "a size or position is True"),
        ({"key": "other"}, "data/other"),
    ],
)
def test_descriptions_that_do_not_fit_their_numbers(tmp_path, changes, message):
    path, numbers = tmp_path / "net.pth", {"0": np.arange(4, dtype=np.float32).tobytes()}
    write_description(path, described(), **numbers)
    np.testing.assert_array_equal(read_state_dict(path)["a"], [[0, 1], [2, 3]])
    write_description(path, described(**changes), **numbers)
    with pytest.raises(WeightsError, match=rf"net\.pth: .*{message}"):
        read_state_dict(path)


@pytest.mark.parametrize("name", [b"collections\nOrderedDict", b"torch._utils\n_rebuild_tensor_v2"])
def test_a_file_changes_nothing_that_it_may_name(tmp_path, name):
    # Protocol 2: the named object itself, built with the slots {"reached": 1}.
    code = b"\x80\x02c" + name + b"\nN}X\x07\x00\x00\x00reachedK\x01s\x86b."
    write_description(tmp_path / "bad.pth", code)
    with pytest.raises(WeightsError, match=r"bad\.pth"):
        read_state_dict(tmp_path / "bad.pth")
    assert not hasattr(collections.OrderedDict, "reached")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "reached")


@BOTH_FORMS
def test_damaged_files(tmp_path, is_zip):
    path = tmp_path / "net.pth"
    save(tensors(), path, is_zip)
    whole = path.read_bytes()
    for size in (0, 10, 300, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match=r"net\.pth: not a torch file, or truncated"):
            read_state_dict(path)
    path.write_bytes(bytes(1000))
    with pytest.raises(WeightsError, match=r"net\.pth: not a torch file, or truncated"):
        read_state_dict(path)
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
        read_state_dict(tmp_path / "none.pth")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1: 2}, {"state_dict": {}}, 7])
def test_other_contents_are_refused(tmp_path, content):
    save(content, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="names with tensors are expected"):
        read_state_dict(tmp_path / "net.pth")
