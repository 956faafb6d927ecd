"""PyTorch's .bin files: equal to what torch reads, and nothing in them is executed."""

from __future__ import annotations

import json
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from distill_jax.io.errors import UserError
from distill_jax.weights import places
from distill_jax.weights.pickles import read_pickle
from distill_jax.weights.safe import open_folder


def state():
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        "plain": base,
        "tied": base,
        "transposed": base.T,
        "slice": base[1:3, ::2],
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "ids": torch.arange(7),
        "mask": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base * 2),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_tensors_are_those_that_torch_reads(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    torch.save(state(), path, _use_new_zipfile_serialization=zipped)
    found = read_pickle(path)
    expected = torch.load(path, weights_only=True)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        wanted = tensor.detach().float().numpy()
        np.testing.assert_array_equal(np.asarray(found[name], np.float32), wanted)
        assert found[name].shape == wanted.shape


def test_a_modules_state_dict_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.bin"
        torch.save(module.state_dict(), path, _use_new_zipfile_serialization=zipped)
        assert set(read_pickle(path)) == set(module.state_dict())


class Call:
    def __init__(self, function, *args):
        self.parts = function, args

    def __reduce__(self):
        return self.parts


def hostile_module() -> types.ModuleType:
    module = types.ModuleType("hostile_module")
    exec("def go(*args):\n    raise SystemExit('executed')\n", module.__dict__)
    module.go.__module__ = "hostile_module"  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    "payload",
    [
        lambda go: Call(go, "x"),
        lambda go: {"weight": Call(go)},
        lambda go: Call(eval, "1/0"),
        lambda go: Call(getattr, "a", "upper"),
        lambda go: Call(__import__, "os"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("form", ["zip", "stream"])
def test_nothing_is_executed(payload, protocol, form, tmp_path, monkeypatch):
    module = hostile_module()
    monkeypatch.setitem(sys.modules, "hostile_module", module)
    data = pickle.dumps(payload(module.go), protocol=protocol)
    path = tmp_path / "pytorch_model.bin"
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
    else:
        head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        path.write_bytes(b"".join(map(pickle.dumps, head)) + data)
    with pytest.raises(UserError, match="nothing was executed"):
        read_pickle(path)


def test_no_bytes_crash_the_reader(tmp_path):
    """Flipped and cut bytes, of the pickle as of the archive: two lines, or arrays."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    random = np.random.default_rng(0)
    for zipped in (True, False):
        torch.save(state(), path, _use_new_zipfile_serialization=zipped)
        sound = path.read_bytes()
        refused = 0
        for _ in range(400):
            data = bytearray(sound)
            for place in random.integers(0, len(data), random.integers(1, 5)):
                data[place] = random.integers(0, 256)
            if random.random() < 0.3:
                data = data[: random.integers(0, len(data))]
            path.write_bytes(bytes(data))
            try:
                found = read_pickle(path)
            except UserError:
                refused += 1
            else:
                assert all(array.size < 10_000 for array in found.values())
        assert refused > 50


def test_a_tensor_stays_inside_its_storage(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (main,) = (name for name in entries if name.endswith("data.pkl"))
    whole = entries[main]
    # The size (4,) is pickled as K\x04\x85; one that claims more reads further.
    assert whole.count(b"K\x04\x85") == 1
    entries[main] = whole.replace(b"K\x04\x85", b"K\x40\x85")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(UserError, match="storage"):
        read_pickle(path)


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_joined_with_and_without_an_index(index, tmp_path):
    torch = pytest.importorskip("torch")
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    torch.save({"a": torch.ones(2)}, tmp_path / names[0])
    torch.save({"b": torch.zeros(3)}, tmp_path / names[1])
    if index:
        weight_map = {"weight_map": {"a": names[0], "b": names[1]}}
        path = tmp_path / "pytorch_model.bin.index.json"
        path.write_text(json.dumps(weight_map))
    assert set(open_folder(tmp_path)) == {"a", "b"}
    (tmp_path / names[1]).unlink()
    with pytest.raises(UserError):
        open_folder(tmp_path)


def test_training_files_are_not_taken_for_weights(tmp_path):
    torch = pytest.importorskip("torch")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin"):
        torch.save({"a": torch.ones(2)}, tmp_path / name)
    with pytest.raises(UserError, match=r"no pytorch_model\.bin"):
        open_folder(tmp_path)
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert set(open_folder(tmp_path)) == {"w"}


class Hub:
    """huggingface_hub's client over a recorded file list."""

    def __init__(self, root, files):
        self.root, self.files, self.calls = root, files, []

    def snapshot_download(
        self, name, allow_patterns, ignore_patterns=(), revision=None
    ):
        import fnmatch

        self.calls.append((name, revision))
        for file, content in self.files.items():
            wanted = any(fnmatch.fnmatch(file, p) for p in allow_patterns)
            if wanted and not any(fnmatch.fnmatch(file, p) for p in ignore_patterns):
                path = self.root / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
        return str(self.root)


MODULES = json.dumps(
    [
        {
            "idx": 0,
            "name": "0",
            "path": "",
            "type": "sentence_transformers.models.Transformer",
        },
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
        {
            "idx": 2,
            "name": "2",
            "path": "2_Dense",
            "type": "sentence_transformers.models.Dense",
        },
    ]
)


@pytest.mark.parametrize(
    ("files", "fetched"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "flax_model.msgpack"], ["pytorch_model.bin"]),
        (
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
        ),
        (
            ["modules.json", "model.safetensors", "2_Dense/pytorch_model.bin"],
            ["modules.json", "model.safetensors", "2_Dense/pytorch_model.bin"],
        ),
        (["model.safetensors", "onnx/config.json"], ["model.safetensors"]),
    ],
)
def test_the_hub_gives_bins_only_where_there_is_nothing_better(
    files, fetched, tmp_path, monkeypatch
):
    contents = {name: MODULES if name == "modules.json" else "{}" for name in files}
    hub = Hub(tmp_path, contents)
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = hub.snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    path = places.locate("hf:someone/model@refs/pr/3")
    found = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    assert found == set(fetched)
    assert set(hub.calls) == {("someone/model", "refs/pr/3")}
