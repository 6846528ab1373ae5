"""What all packages share, in `thermoscope`: little is needed for it, and its walks reach everything."""

from __future__ import annotations

import errno
import random
import subprocess
import sys
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from thermoscope.errors import AnalysisError, HessianError, ProbeError, ThermoscopeError, first_line, reason
from thermoscope.files import atomic_file, readable_errors, write_atomically
from thermoscope.model_state import in_eval_mode
from thermoscope.nearest import nearest
from thermoscope.nests import leaves, mapped
from thermoscope.random_state import preserved_random_state

ROOT = Path(__file__).parents[1]


def python(code: str, *words: str) -> list[str]:
    """What a new interpreter prints."""
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


# -- what is imported -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "absent"),
    [
        ("import probes, hessian", "torch._dynamo"),
        ("import probes", "scipy.special"),
        ("import analysis", "torch numpy pygraphviz matplotlib pandas torchvision timm"),
        ("import thermoscope.files, thermoscope.nests, thermoscope.nearest", "torch numpy"),
        ("runpy.run_module('thermoscope', run_name='__main__')", "torch numpy"),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(start: str, absent: str) -> None:
    at_the_end = "atexit.register(lambda: print('loaded', *sys.modules))"
    loaded = python(f"import atexit, runpy, sys; {at_the_end}; {start}", "--help")[-1].split()
    assert loaded[0] == "loaded"
    assert not set(absent.split()) & set(loaded)


def test_a_forward_with_probes_does_not_load_the_compiler() -> None:
    code = """
import sys, torch
from probes import ProbeSet
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
with ProbeSet(model, ["*"], 2) as probes:
    model(torch.randn(5, 3))
    print(len(probes._reader.features), "torch._dynamo" in sys.modules)
"""
    assert python(code) == ["3 False"]


# -- nests ------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclass(frozen=True)
class Batch:
    x: torch.Tensor
    note: str = "kept"
    later: Any = field(init=False)


def nest() -> dict[str, Any]:
    t = [torch.full((2,), float(i)) for i in range(6)]
    inside = OrderedDict(a=t[0], b=[t[1], "word", None])
    return {"mapping": inside, "tuple": (t[2], 7), "named": Pair(t[3], [t[4]]), "data": Batch(t[5])}


def test_walks_reach_every_tensor_in_the_same_order() -> None:
    assert [float(t[0]) for t in leaves(nest(), torch.Tensor)] == [0, 1, 2, 3, 4, 5]
    seen: list[float] = []
    changed = mapped(nest(), torch.Tensor, lambda t: seen.append(float(t[0])) or t + 10)
    assert seen == [0, 1, 2, 3, 4, 5]
    assert [float(t[0]) for t in leaves(changed, torch.Tensor)] == [10, 11, 12, 13, 14, 15]
    assert type(changed["mapping"]) is dict
    assert changed["mapping"]["b"][1:] == ["word", None]
    assert type(changed["tuple"]) is tuple
    assert type(changed["named"]) is Pair
    assert changed["data"].note == "kept"


def test_what_is_mapped_stays_as_it_was() -> None:
    given = nest()
    mapped(given, torch.Tensor, lambda t: t + 10)
    assert [float(t[0]) for t in leaves(given, torch.Tensor)] == [0, 1, 2, 3, 4, 5]
    settings = Batch("no tensor")  # type: ignore[arg-type]
    assert mapped(settings, torch.Tensor, torch.neg) is settings
    assert mapped(Batch, torch.Tensor, torch.neg) is Batch, "a class is not a nest"


def test_a_packed_sequence_is_one_object_or_its_parts() -> None:
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    assert list(leaves([packed], (torch.Tensor, PackedSequence))) == [packed]
    assert len(list(leaves([packed], torch.Tensor))) == 2
    (twice,) = mapped([packed], torch.Tensor, lambda t: 2 * t if t.is_floating_point() else t)
    assert isinstance(twice, PackedSequence)
    assert torch.equal(twice.data, 2 * packed.data)
    assert torch.equal(twice.batch_sizes, packed.batch_sizes)


def test_a_nest_that_holds_itself_ends() -> None:
    endless: list[Any] = [torch.ones(1)]
    endless.append(endless)
    assert len(list(leaves(endless, torch.Tensor))) == 1


# -- files and errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        (AnalysisError, "continue with --resume"),
        (ProbeError, "make the same call again: it continues where it was"),
        (HessianError, "make the same call again: it continues where it was"),
    ],
)
def test_a_full_disk_is_told_in_the_callers_words(kind: type[ThermoscopeError], remedy: str) -> None:
    with pytest.raises(kind) as caught, readable_errors(Path("here"), kind):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value) == f"cannot write 'here': the disk is full; make room and {remedy}."


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    with atomic_file(path) as file:
        file.write(b"first")
        file.flush()
        assert not path.exists()
    with suppress(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert path.read_bytes() == b"first"
    write_atomically(path, memoryview(b"second"), ProbeError)
    assert path.read_bytes() == b"second"


def test_the_reason_is_the_first_line_that_says_something() -> None:
    assert reason(ValueError("\n  one\ntwo")) == "one"
    assert first_line(ValueError("one\ntwo")) == "ValueError: one"
    assert reason(ValueError()) == ""


def test_the_nearest_names_are_those_that_look_alike_or_else_the_first() -> None:
    assert nearest("layer11", ["fc", "layer1", "layer1", "conv"]) == ["layer1"]
    assert nearest("??", "abcdefghijk", otherwise=3) == ["a", "b", "c"]


# -- what is put back -------------------------------------------------------------------------------


def test_all_streams_are_put_back_after_an_error() -> None:
    def drawn() -> tuple[float, float, float, float]:
        own = float(torch.rand(1, generator=loader.generator))
        return random.random(), float(np.random.rand()), float(torch.rand(1)), own

    data: Any = torch.arange(4)
    loader = torch.utils.data.DataLoader(data, generator=torch.Generator().manual_seed(3))
    with preserved_random_state(loader):
        expected = drawn()
    with suppress(ZeroDivisionError), preserved_random_state(loader):
        drawn()
        raise ZeroDivisionError
    assert drawn() == expected


def test_every_module_gets_its_own_mode_back_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    model[1].eval()
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    with suppress(ZeroDivisionError), in_eval_mode(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == before
