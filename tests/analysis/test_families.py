"""Whatever is logged is read back, followed, drawn and shown as a table; and a family from outside, too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from analysis import (
    AnalysisError,
    Controls,
    Drawing,
    Family,
    Logged,
    Occasion,
    Run,
    frame,
    register,
    scalars,
)
from analysis.results.family import _FAMILIES
from hessian import Density, LineSearch, Spectrum, extreme_eigenpairs, spectral_density
from probes import CodeLength, ProbeResult, Reading, Reference, Selectivity

READING = Reading("conv1", "y", "avg:1", 16, 0.03, 100, 500, 0.5, 0.02, 0.2, 0.01, 0.02, 0.005)
PROBES = ProbeResult(
    "valid", (READING, replace(READING, layer="fc")), (Reference("y", 500, 0.9, 0.08, 0.01),)
)
CONTROLS = Controls(
    random_labels=(Selectivity("fc", 300, 0.1, 0.01, 0.8, 0.02, 0.9),),
    code=(CodeLength("fc", 100, 30.0, 300.0, 40.0, ((10, 12.0), (100, 18.0))),),
    ridge=PROBES,
    curve={50: PROBES, 100: PROBES},
)
MATRIX = np.diag(np.arange(-3.0, 17.0))
SEARCH = LineSearch(
    2.0, -0.5, 1.0, np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.9, np.nan]), 0.5, 0.9, True, 100
)
DENSITY = spectral_density(MATRIX, vectors=2, steps=5, points=21)
RESULTS = [PROBES, CONTROLS, SEARCH, DENSITY]


def tags(path: Path) -> set[str]:
    events = [e for file in path.glob("events.out.tfevents.*") for e in EventFileLoader(str(file)).Load()]
    return {value.tag for event in events if event.HasField("summary") for value in event.summary.value}


def text(result: Any) -> str:
    """All numbers of a result, NaN included, in a form that can be compared."""
    return json.dumps(asdict(result), default=np.ndarray.tolist)


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_what_is_logged_is_read_back(tmp_path: Path, result: Any) -> None:
    with Run(tmp_path) as run:
        run.log(result, 3, name="SA 1")
    (logged,) = Run(tmp_path).results(type(result))
    assert (logged.step, logged.name, type(logged.result)) == (3, "SA 1", type(result))
    assert text(logged.result) == text(result)
    assert set(scalars(result, "SA 1")) <= tags(tmp_path)
    assert len(frame(logged.result)) == len(frame(result)) > 0


def test_a_spectrum_is_read_back_but_for_its_vectors(tmp_path: Path) -> None:
    spectrum = extreme_eigenpairs(MATRIX, 2, 1)
    with Run(tmp_path) as run:
        run.log(spectrum, 3)
    read = Run(tmp_path).last(Spectrum)[3]
    assert [p.value for p in read.pairs] == [p.value for p in spectrum.pairs]
    assert all(pair.vector.size == 0 for pair in read.pairs)
    table = frame(read)
    assert list(table["end"]) == ["LA", "LA", "SA"]
    assert table["value"].tolist() == pytest.approx([16, 15, -3])


def test_scalars_are_by_the_tags_of_tensorboard() -> None:
    assert scalars(PROBES)["probes/valid/error/fc"] == 0.2
    assert scalars(SEARCH, "SA 1")["hessian/search/decrease/SA 1"] == pytest.approx(0.1)
    assert scalars(DENSITY)["hessian/density/trace"] == pytest.approx(DENSITY.trace.value)
    assert scalars(extreme_eigenpairs(MATRIX, 1, 1))["hessian/smallest/01"] == pytest.approx(-3)


def test_the_last_of_a_step_and_of_a_name(tmp_path: Path) -> None:
    later = replace(SEARCH, loss_best=0.8)
    with Run(tmp_path) as run:
        for step, result, name in (
            (9, SEARCH, "LA 1"),
            (3, SEARCH, "SA 1"),
            (3, later, "LA 1"),
            (3, later, "SA 1"),
        ):
            run.log(result, step, name=name)
    run = Run(tmp_path)
    assert list(run.named(LineSearch)) == [(3, "LA 1"), (3, "SA 1"), (9, "LA 1")]
    assert run.named(LineSearch)[3, "SA 1"].loss_best == 0.8
    assert list(run.last(LineSearch)) == [3, 9]
    assert not run.last(Density)


@dataclass(frozen=True)
class Temperature:
    """Degrees of each layer."""

    layers: tuple[str, ...]
    degrees: np.ndarray


class Temperatures(Family[Temperature]):
    kind = Temperature

    def read(self, line: Any) -> Temperature:
        return Temperature(tuple(line["layers"]), np.array(line["degrees"]))

    def scalars(self, result: Temperature, name: str) -> dict[str, float]:
        return {
            f"temperature/{layer}": float(d) for layer, d in zip(result.layers, result.degrees, strict=True)
        }

    def drawings(self, result: Temperature, at: Occasion[Temperature]) -> Iterator[Drawing]:
        figure = Figure()
        figure.suptitle(f"{at.title}: {len(list(at.earlier()))} so far")
        yield Drawing("temperature", "temperature", figure)


@pytest.fixture
def temperatures() -> Iterator[None]:
    register(Temperatures())
    yield
    del _FAMILIES[Temperature]


@pytest.mark.usefixtures("temperatures")
def test_a_family_from_outside(tmp_path: Path) -> None:
    """The how-to of CONTRIBUTING.md: one class and one line."""
    result = Temperature(("conv1", "fc"), np.array([20.0, 30.0]))
    with Run(tmp_path) as run:
        run.log(result, 5)
    (logged,) = Run(tmp_path).results(Temperature)
    assert isinstance(logged, Logged)
    assert text(logged.result) == text(result)
    assert (tmp_path / "figures" / "temperature_step_00000005.png").stat().st_size > 1000
    assert {"temperature", "temperature/conv1", "temperature/fc"} <= tags(tmp_path)
    assert scalars(result) == {"temperature/conv1": 20.0, "temperature/fc": 30.0}
    assert len(frame(result)) == 1


def test_an_unknown_type_is_one_sentence(tmp_path: Path) -> None:
    result = Temperature(("fc",), np.zeros(1))
    for use in (lambda: Run(tmp_path).log(result, 0), lambda: scalars(result), lambda: frame(result)):
        with pytest.raises(
            AnalysisError, match=r"a Temperature cannot be logged; log one of Controls, .*\.$"
        ):
            use()
    assert not (tmp_path / "results.jsonl").exists()
    with pytest.raises(AnalysisError, match="cannot be logged"):
        list(Run(tmp_path).results(Temperature))


def test_a_type_that_is_called_like_another_is_refused() -> None:
    """Lines are told apart by that name: its results would have been read as the other's."""

    class Theirs(Family[Any]):
        kind = type("Density", (), {})

    with pytest.raises(AnalysisError, match="there are results called Density already"):
        register(Theirs())


@pytest.mark.usefixtures("temperatures")
@pytest.mark.parametrize("field", ["step", "kind", "name"])
def test_a_field_does_not_take_the_place_of_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.setattr(Temperatures, "line", lambda *_: {field: 7})
    with Run(tmp_path) as run, pytest.raises(AnalysisError, match=f"a Temperature has a field '{field}'"):
        run.log(Temperature(("fc",), np.zeros(1)), 5)
    assert not (tmp_path / "results.jsonl").exists()


def test_a_line_of_another_version_is_named(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        run.log(DENSITY, 4)
    file = tmp_path / "results.jsonl"
    file.write_text(file.read_text().replace('"grid"', '"grits"'))
    with pytest.raises(AnalysisError, match=r"the Density of step 4 .* delete that line"):
        list(Run(tmp_path).results(Density))
