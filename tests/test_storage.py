"""Files that are there whole or not at all, and checkpoints that notice every change."""

import builtins
import errno
import json
import os
import pickle
import random
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from loopwise import storage
from loopwise.checkpoint import CONFIG, WEIGHTS, Model, load_model, read_model, save_weights, write_config
from loopwise.errors import CheckpointError, StorageError
from loopwise.reasoners.gradients import LastCycle
from loopwise.reasoners.halting import Correctness, HaltingConfig
from loopwise.reasoners.trm import TRM, TRMConfig
from loopwise.storage import json_digest, read_json, read_tensors, write_json, write_tensors, write_text
from loopwise.tasks.sorting import Sorting, SortingConfig


def one_line(error):
    return "\n" not in str(error) and "\r" not in str(error)


# ---------------------------------------------------------------- round trips


def test_tensors_and_notes_come_back_as_they_were(tmp_path):
    """Tensors of every format and layout, not-a-number included, and notes come back bit for bit."""
    base = torch.arange(12.0).view(3, 4)
    tensors = {
        "plain": base,
        "transposed": base.t(),
        "expanded": base[:1].expand(5, 4),
        "half": base.bfloat16(),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "whole": torch.tensor([-(2**62), 2**62]),
        "truth": torch.tensor([True, False]),
        "bytes": torch.tensor([0, 255], dtype=torch.uint8),
        "no numbers": torch.tensor([float("nan"), float("inf"), -0.0]),
        "ü.0": base.clone().requires_grad_(),
    }
    notes = {"step": 3, "big": 2**127, "nested": {"ü": [1.5, None, True]}, "": ""}
    write_tensors(tmp_path / "folder" / "a.safetensors", tensors, notes)
    again, again_notes = read_tensors(tmp_path / "folder" / "a.safetensors")
    assert again_notes == notes
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (again[name].dtype, again[name].shape) == (tensor.dtype, tensor.shape)
        torch.testing.assert_close(again[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)
    assert torch.signbit(again["no numbers"][2])


def test_json_comes_back_as_it_was(tmp_path):
    """JSON comes back equal and in order, the checksum does not depend on the order, and is none of the content."""
    data = {"b": [1, 2.5, None, "ü\n\u2028"], "a": {"x": 2**127, "y": {}}, "": -0.0}
    write_json(tmp_path / "a.json", data)
    assert read_json(tmp_path / "a.json") == data
    assert list(read_json(tmp_path / "a.json")) == list(data)
    shuffled = dict(reversed(data.items()))
    assert json_digest(shuffled) == json_digest(data) != json_digest({**data, "c": 1})
    (tmp_path / "a.json").write_text(json.dumps({**shuffled, "sha256": json_digest(data)}, indent=7))
    assert read_json(tmp_path / "a.json") == data


# ---------------------------------------------------------------- writing on a bad day

WRITERS = {
    "text": lambda path, value: write_text(path, f"{value}\n" * 1000),
    "json": lambda path, value: write_json(path, {"value": [value] * 1000}),
    "tensors": lambda path, value: write_tensors(path, {"value": torch.full((1000,), float(value))}),
}
every_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())


class HalfWritten:
    """A file on a disk that is full after 100 bytes."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.file.write(data[:100])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def break_write(monkeypatch):
    monkeypatch.setattr(storage, "open", lambda *args: HalfWritten(builtins.open(*args)), raising=False)  # noqa: SIM115


def break_call(name):
    def apply(monkeypatch):
        def fail(*args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, name, fail)

    return apply


FAILURES = {"write": break_write, "fsync": break_call("fsync"), "replace": break_call("replace")}


@every_writer
@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_leaves_the_old_file(write, failure, exists, tmp_path, monkeypatch):
    """When the disk refuses in the middle, StorageError names the file and the cause in one line; the old file, or its
    absence, is as it was, nothing is left beside it, and a later write succeeds.
    """
    path = tmp_path / "file"
    if exists:
        write(path, 1)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        failure(patch)
        with pytest.raises(StorageError, match="No space left on device") as caught:
            write(path, 2)
    assert str(path) in str(caught.value)
    assert one_line(caught.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    write(path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() != before.get("file")


@every_writer
def test_an_interrupted_write_leaves_the_old_file(write, tmp_path, monkeypatch):
    """Where the program itself dies before the file is complete, the old one is whole, and a later write succeeds."""
    path = tmp_path / "file"
    write(path, 1)
    before = path.read_bytes()

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            write(path, 2)
    assert path.read_bytes() == before
    write(path, 3)
    assert path.read_bytes() != before


@every_writer
def test_content_is_flushed_before_it_gets_its_name(write, tmp_path, monkeypatch):
    """The whole new content is flushed to the disk before the file is renamed, while the old file is still in place."""
    path = tmp_path / "file"
    write(path, 1)
    before, events, fsync, replace = path.read_bytes(), [], os.fsync, os.replace

    def flushed(descriptor):
        events.append(("fsync", os.fstat(descriptor).st_size))
        assert path.read_bytes() == before
        fsync(descriptor)

    def renamed(source, target):
        events.append(("replace", Path(source).stat().st_size))
        assert Path(source).parent == Path(target).parent
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    write(path, 2)
    assert events == [("fsync", path.stat().st_size), ("replace", path.stat().st_size)]


@every_writer
@pytest.mark.parametrize("place", ["a file/name", "a file/folder/name", "x" * 300, "a folder"])
def test_a_place_that_cannot_be_written_is_refused(write, place, tmp_path):
    """A file where a folder should be, a folder where the file should be and a name too long raise StorageError."""
    (tmp_path / "a file").write_text("mine")
    (tmp_path / "a folder").mkdir()
    with pytest.raises(StorageError) as caught:
        write(tmp_path / place, 1)
    assert one_line(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a file", "a folder"]
    assert (tmp_path / "a file").read_text() == "mine"


# ---------------------------------------------------------------- damaged checkpoints


def make(folder, seed=0):
    """A tiny checkpoint."""
    task = Sorting(SortingConfig(n=4, values=3))
    config = TRMConfig(hidden_size=8, num_layers=1, num_heads=2, registers=1, width_multiple=8, seed=seed)
    reasoner = TRM(config, task.spec)
    model = Model(task=task, reasoner=reasoner, gradient=LastCycle(), halting=Correctness(HaltingConfig()))
    write_config(folder, model, {"steps": 10, "lr": 1e-4})
    save_weights(folder, reasoner, {"step": 3, "exact": 0.5})
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A checkpoint that nobody changes."""
    return make(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The checkpoint of another run."""
    return make(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture
def checkpoint(good, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(good, tmp_path / "checkpoint"))


def refused(folder):
    """Assert that the checkpoint is refused, as promised; return the message."""
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert one_line(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def header_size(data):
    """Bytes of a safetensors file before its tensors."""
    return 8 + struct.unpack("<Q", data[:8])[0]


def content(name, data):
    """What a file says, apart from how it is written; None where it cannot be read."""
    try:
        if name == CONFIG:
            return json.loads(data.decode())
        end = header_size(data)
        return json.loads(data[8:end].decode()), data[end:]
    except (ValueError, struct.error, OverflowError):
        return None


def damages(name: str, data: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Some hundred ways in which a file can be changed."""
    for size in {0, 1, 7, 8, 9, len(data) - 1, *rng.sample(range(len(data)), 40)}:
        yield f"cut to {size} bytes", data[:size]
    places = rng.sample(range(len(data)), 60)
    if name == WEIGHTS:  # most of the file is tensors; the header deserves as much
        places += [*range(8), *rng.sample(range(8, header_size(data)), 60)]
    else:  # each value and each key of the file, wherever it stands
        places += [i for i, byte in enumerate(data) if byte in b'":' and rng.random() < 0.3]
    for place in places:
        bit = rng.randrange(8)
        yield f"bit {bit} of byte {place}", data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]
    for extra in (b"\0", b"\n", b"}", b" {}", rng.randbytes(100), data):
        yield f"{len(extra)} bytes appended", data + extra
        yield f"{len(extra)} bytes in front", extra + data
    for _ in range(5):
        start, size = rng.randrange(len(data) - 60), rng.randrange(1, 60)
        yield f"{size} zeros at {start}", data[:start] + bytes(size) + data[start + size :]
        yield f"{size} bytes lost at {start}", data[:start] + data[start + size :]
    for size in (1, 8, 100, len(data)):
        yield f"{size} random bytes", rng.randbytes(size)
    yield "a pickle", pickle.dumps({"tokens": [1.0]})
    yield "a header of 2^63 bytes", struct.pack("<Q", 2**63) + data
    for text in (
        "null",
        "[]",
        "3",
        '"x"',
        "{}",
        "[" * 100_000,
        '{"a": ' * 100_000,
        "9" * 10_000,
        "NaN",
        '{"sha256": 3}',
    ):
        yield f"the text {text[:20]}", text.encode()
        yield f"a header {text[:20]}", struct.pack("<Q", len(text)) + text.encode()


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_every_damage_is_noticed(name, good, checkpoint):
    """A file that is cut, lengthened, flipped in a bit, blanked or replaced is refused with CheckpointError in one line
    and with no other exception; only a change that leaves the content as it was loads, with the same weights and notes.
    """
    original = (good / name).read_bytes()
    model, notes = load_model(good)
    weights = model.reasoner.state_dict()
    harmless, count = [], 0
    for what, data in damages(name, original, random.Random(0)):
        if data == original:
            continue
        count += 1
        (checkpoint / name).write_bytes(data)
        try:
            again, again_notes = load_model(checkpoint)
        except CheckpointError as error:
            assert one_line(error), what  # noqa: PT017 - the other outcome is allowed too
            assert str(checkpoint) in str(error), what  # noqa: PT017
            continue
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        harmless.append(what)
        assert content(name, data) == content(name, original), f"{what} is not noticed"
        assert again_notes == notes
        assert all(torch.equal(tensor, weights[key]) for key, tensor in again.reasoner.state_dict().items()), what
    assert count > 150
    assert len(harmless) < count / 20, harmless
    (checkpoint / name).write_bytes(original)
    load_model(checkpoint)


def test_exchanged_names_and_formats_are_noticed(checkpoint):
    """A valid header that gives two tensors each other's names, or one another format or shape, is refused."""
    data = (checkpoint / WEIGHTS).read_bytes()
    exchanged = data.replace(b'"y_init"', b'"?"').replace(b'"z_init"', b'"y_init"').replace(b'"?"', b'"z_init"')
    for changed in (exchanged, data.replace(b'"F32"', b'"I32"', 1), data.replace(b"[2,8]", b"[8,2]", 1)):
        assert len(changed) == len(data)
        assert changed != data
        (checkpoint / WEIGHTS).write_bytes(changed)
        assert "checksum is wrong" in refused(checkpoint)


def leaves(data, path=()):
    """The path of every value in nested JSON objects."""
    for key, value in data.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))


def test_a_config_with_nonsense_under_a_right_checksum_is_refused(checkpoint):
    """Whatever stands in place of any value of config.json, or nothing, even if the checksum has been made to fit, the
    error is CheckpointError in one line.
    """
    data = read_json(checkpoint / CONFIG)
    for path in leaves(data):
        for nonsense in (None, -1, 1.5, "x", "x:y", "a\nb", [], {}, True, {"name": "trm"}, "DELETED"):
            changed = json.loads(json.dumps(data))
            where = changed
            for key in path[:-1]:
                where = where[key]
            if nonsense == "DELETED":
                del where[path[-1]]
            elif where[path[-1]] == nonsense:
                continue
            else:
                where[path[-1]] = nonsense
            write_json(checkpoint / CONFIG, changed)
            with pytest.raises(CheckpointError) as caught:
                load_model(checkpoint)
            assert one_line(caught.value), (path, nonsense)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_files_of_different_runs_are_told_apart(name, checkpoint, other):
    """Config and weights of two runs do not go together, in either direction."""
    shutil.copy(other / name, checkpoint / name)
    assert "belongs to another" in refused(checkpoint)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_refused(name, checkpoint):
    """A checkpoint without its config or without its weights is refused, and so is a dangling link."""
    (checkpoint / name).unlink()
    refused(checkpoint)
    (checkpoint / name).symlink_to(checkpoint / "nowhere")
    refused(checkpoint)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_folder_in_place_of_a_file_is_refused(name, checkpoint):
    """A folder with the name of a file is refused."""
    (checkpoint / name).unlink()
    (checkpoint / name).mkdir()
    refused(checkpoint)


def test_a_place_without_a_checkpoint_is_refused(tmp_path):
    """Nothing, a file and an empty folder in place of a checkpoint are refused."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for place in ("nothing", "file", "empty"):
        refused(tmp_path / place)


class Trap:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_no_pickle_is_ever_loaded(name, checkpoint, tmp_path):
    """A pickle in place of a file, bare or as torch writes it, is refused and its code does not run."""
    mark = tmp_path / "mark"
    (checkpoint / name).write_bytes(pickle.dumps(Trap(mark)))
    refused(checkpoint)
    torch.save({"tokens": Trap(mark)}, checkpoint / name)
    refused(checkpoint)
    assert not mark.exists()


def test_weights_that_do_not_fit_are_refused(checkpoint):
    """Weights of another shape, too many, too few or not finite are refused, even where all checksums are right."""
    tensors, notes = read_tensors(checkpoint / WEIGHTS)
    head = tensors["head.weight"]
    cases = {
        "shape": {**tensors, "head.weight": head[:-1]},
        "dimensions": {**tensors, "head.weight": head[0]},
        "more": {**tensors, "extra": head.clone()},
        "fewer": {name: tensor for name, tensor in tensors.items() if name != "head.weight"},
        "none": {},
    }
    for value in (float("nan"), float("inf")):
        bad = head.clone()
        bad[0, 0] = value
        cases[str(value)] = {**tensors, "head.weight": bad}
    for case in cases.values():
        write_tensors(checkpoint / WEIGHTS, case, notes)
        refused(checkpoint)
    write_tensors(checkpoint / WEIGHTS, tensors, notes)
    load_model(checkpoint)


@pytest.mark.parametrize("part", ["task", "reasoner", "gradient", "halting"])
def test_foreign_code_is_not_imported_without_trust(part, checkpoint, tmp_path, monkeypatch):
    """A config that names a class outside loopwise is refused before its module is imported; with trust it is imported,
    and a class that is no such part is refused all the same.
    """
    mark = tmp_path / "mark"
    (tmp_path / "foreign_code.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Thing: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    data = read_json(checkpoint / CONFIG)
    data[part]["name"] = "foreign_code:Thing"
    write_json(checkpoint / CONFIG, data)
    assert "foreign_code:Thing" in refused(checkpoint)
    assert not mark.exists()
    with pytest.raises(CheckpointError, match="not a concrete subclass") as caught:
        load_model(checkpoint, trust=True)
    assert one_line(caught.value)
    assert mark.exists()
    sys.modules.pop("foreign_code")


def test_another_format_is_refused_by_name(checkpoint):
    """A checkpoint of a later version says which format it has and which one is read here."""
    write_json(checkpoint / CONFIG, {**read_json(checkpoint / CONFIG), "format": "loopwise-9"})
    assert "'loopwise-9'" in refused(checkpoint)


def test_whitespace_and_order_of_the_config_do_not_matter(good, checkpoint):
    """A config that was written anew with other spaces and another order of its keys is the same config."""
    data = json.loads((checkpoint / CONFIG).read_text())
    (checkpoint / CONFIG).write_text(json.dumps(dict(reversed(data.items()))))
    expected = load_model(good)[0].reasoner.state_dict()
    for name, tensor in load_model(checkpoint)[0].reasoner.state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_the_recipe_comes_back(good):
    """`read_model` gives back what the run was trained with."""
    model, training = read_model(good, trust=False)
    assert training == {"steps": 10, "lr": 1e-4}
    assert model.halting.config == HaltingConfig()
