"""Whatever is put in, out comes the right answer or one sentence: nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

from hessian import HessianError
from probes import ProbeError
from thermoscope.errors import AnalysisError

from . import odd_inputs
from .odd_inputs import Case, Refused

LISTED = [
    (f"{module.name}: {case.name}", case)
    for module in pkgutil.iter_modules(odd_inputs.__path__)
    for case in importlib.import_module(f"{odd_inputs.__name__}.{module.name}").CASES
]
CASES = dict(LISTED)


def test_every_case_has_a_name_of_its_own() -> None:
    assert sorted(name for name, _ in LISTED) == sorted(CASES)
    assert len(CASES) >= 400


@pytest.mark.parametrize("name", CASES)
def test_a_right_answer_or_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case: Case = CASES[name]
    monkeypatch.chdir(tmp_path)  # what a case writes is gone with it
    if case.sentence is None:
        case.use()
        return
    with pytest.raises((ProbeError, HessianError, AnalysisError, Refused)) as refusal:
        case.use()
    message = str(refusal.value)
    assert case.sentence in message
    assert "\n" not in message
    assert len(message) < 600, "a sentence, not a page"
