"""Spectra at the snapshots of a run: files, figures, the command, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis import AnalysisError, HessianSettings, Run, load_data, load_model, measure_hessian
from analysis.figures.curvature import best_decreases, best_steps, parameter_shares
from analysis.results.line_search import curvature
from analysis.results.spectrum import load_shares, load_spectrum, save_spectrum, spectrum_path
from analysis.sources.weights import load_weights
from hessian import Eigenpair, LineSearch, Loss, MissedCheck, Spectrum, fixed_subset
from thermoscope.command import main

CONFIG = {
    "model": "tests.analysis.small:small_net",
    "data": "sklearn:digits",
    "data_dir": "data",
    "image_size": None,
    "rgb": False,
    "seed": 0,
}
SETTINGS = HessianSettings(largest=3, smallest=2, tol=1e-4, subset=0.1, line_searches=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three snapshots."""
    path = tmp_path_factory.mktemp("run")
    data = load_data("sklearn:digits", seed=0)
    x, y = (torch.stack([torch.as_tensor(data.train[i][j]) for i in range(200)]) for j in (0, 1))
    torch.manual_seed(0)
    model = load_model(CONFIG["model"], 10)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with Run(path, CONFIG) as run:
        for step in range(21):
            if step in (0, 5, 20):
                run.snapshot(model, step)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return path


@pytest.fixture(scope="module")
def measured(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("measured") / "run"
    shutil.copytree(trained, path)
    measure_hessian(path, SETTINGS, progress=False)
    return path


def dense(path: Path, step: int) -> tuple[np.ndarray, Loss]:
    data = load_data("sklearn:digits", seed=0)
    model = load_model(CONFIG["model"], 10)
    load_weights(model, Run(path).snapshots()[step])
    loss = Loss(model, F.cross_entropy, fixed_subset(data.train, 0.1))
    return loss.hessian() @ np.eye(loss.size, dtype=np.float32), loss


@pytest.mark.parametrize("step", [0, 20])
def test_spectra_are_those_of_the_dense_hessian_at_each_snapshot(measured: Path, step: int) -> None:
    matrix, loss = dense(measured, step)
    values = np.linalg.eigvalsh(matrix.astype(np.float64))
    with Run(measured) as run:
        spectrum, searches = run.last(Spectrum)[step], run.named(LineSearch)
    np.testing.assert_allclose(
        [p.value for p in spectrum.largest], values[:-4:-1], atol=1e-4 * np.ptp(values)
    )
    np.testing.assert_allclose([p.value for p in spectrum.smallest], values[:2], atol=1e-4 * np.ptp(values))
    assert spectrum.converged
    assert searches[step, "SA 1"].loss == pytest.approx(loss.value(), rel=1e-6)
    assert searches[step, "LA 1"].curvature == spectrum.largest[0].value


def test_files_hold_vectors_and_shares(measured: Path) -> None:
    spectrum = load_spectrum(spectrum_path(Run(measured).path, 5))
    matrix, _ = dense(measured, 5)
    for pair in spectrum.pairs:
        residual = np.linalg.norm(matrix @ pair.vector - pair.value * pair.vector)
        assert residual <= 2e-4 * spectrum.width
    with np.load(spectrum_path(Run(measured).path, 5), allow_pickle=False) as file:
        np.testing.assert_allclose(file["shares"].sum(1), 1, rtol=1e-5)
        assert file["names"].tolist() == list(spectrum.layout)
        assert file["shares"].shape == (5, len(spectrum.layout))


def test_figures_and_scalars_are_there(measured: Path) -> None:
    names = {path.name for path in (measured / "figures").glob("*.png")}
    for name in ("eigenvalues", "decreases", "steps", "parameter_shares"):
        assert f"hessian_{name}.png" in names
    assert "hessian_line_search_SA1_step_00000005.png" in names
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(measured))
    events.Reload()
    spectra = Run(measured).last(Spectrum)
    logged = {e.step: e.value for e in events.Scalars("hessian/largest/01")}
    assert logged == pytest.approx({step: s.largest[0].value for step, s in spectra.items()})


def test_how_much_of_the_leading_vectors_stays_is_logged(measured: Path) -> None:
    first, second = (load_spectrum(spectrum_path(Run(measured).path, step)) for step in (0, 5))
    logged = {k: v for r in Run(measured).records() if r["step"] == 5 for k, v in r.items() if "overlap" in k}
    cosine = abs(float(first.largest[0].vector @ second.largest[0].vector))
    assert logged["hessian/overlap/LA 1"] == pytest.approx(cosine, rel=1e-5)


def test_the_same_call_again_computes_nothing(measured: Path) -> None:
    before = (measured / "results.jsonl").read_bytes()
    measure_hessian(measured, SETTINGS, progress=False)
    assert (measured / "results.jsonl").read_bytes() == before


def test_other_settings_are_refused(measured: Path) -> None:
    with pytest.raises(
        AnalysisError, match=r"made with largest=3, not 4; keep to that, or delete that folder"
    ):
        measure_hessian(measured, HessianSettings(**{**SETTINGS.__dict__, "largest": 4}))


_KILLED = """
import sys
from analysis import measure_hessian
from tests.analysis.test_curvature import SETTINGS
measure_hessian(sys.argv[1], SETTINGS, progress=False)
"""


def test_killed_anywhere_it_goes_on_to_the_same_spectra(
    trained: Path, measured: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(path)], cwd=Path(__file__).parents[2])
    while process.poll() is None and '"Spectrum"' not in _results(path):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = Run(path).last(Spectrum)
    assert len(done) >= 1
    spectra = measure_hessian(path, SETTINGS, progress=False)
    assert sorted(spectra) == [0, 5, 20]
    undisturbed = Run(measured).last(Spectrum)
    for step, spectrum in spectra.items():
        expected = [pair.value for pair in undisturbed[step].pairs]
        tolerance = 1e-3 * spectrum.width
        np.testing.assert_allclose([pair.value for pair in spectrum.pairs], expected, atol=tolerance)
    assert not list(path.rglob("*.partial"))


def _results(path: Path) -> str:
    file = path / "results.jsonl"
    return file.read_text() if file.exists() else ""


def test_ctrl_c_keeps_what_was_found(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    calls = 0
    from hessian.products.curvature import CurvatureOperator

    multiply = CurvatureOperator.multiply

    def interrupted(self: CurvatureOperator, vectors: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt
        return multiply(self, vectors)

    monkeypatch.setattr(CurvatureOperator, "multiply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_hessian(path, SETTINGS, progress=False)
    kept = Run(path).last(Spectrum)
    assert list(kept) == [0]
    assert kept[0].interrupted
    assert not kept[0].converged
    monkeypatch.setattr(CurvatureOperator, "multiply", multiply)
    assert measure_hessian(path, SETTINGS, progress=False)[0].converged


def spectrum_of(size: int) -> Spectrum:
    vector = np.eye(size, dtype=np.float32)
    return Spectrum(
        (Eigenpair(3.0, vector[0], 0.1, False),),
        (Eigenpair(-1.0, vector[1], 1e-5, True),),
        4.0,
        1e-3,
        17,
        0.5,
        "lanczos",
        missed_check=MissedCheck(20, 1, 2.5, -0.5, 0.3),
        layout={"a.weight": (size - 2, 1), "a.bias": (2,)},
    )


def test_a_spectrum_is_read_back_as_it_was(tmp_path: Path) -> None:
    spectrum = spectrum_of(6)
    with Run(tmp_path) as run:
        run.log(spectrum, 3)
        (again,) = run.last(Spectrum).values()
    assert [(p.value, p.residual, p.converged) for p in again.pairs] == [
        (p.value, p.residual, p.converged) for p in spectrum.pairs
    ]
    assert (again.missed_check, again.layout) == (spectrum.missed_check, spectrum.layout)
    file = load_spectrum(spectrum_path(Run(tmp_path).path, 3))
    np.testing.assert_array_equal(file.largest[0].vector, spectrum.largest[0].vector)
    assert file.layout == spectrum.layout
    assert spectrum.shares(spectrum.largest[0]) == {"a.weight": 1.0, "a.bias": 0.0}


@pytest.mark.parametrize("keep", [0, 30, 400])
def test_a_cut_spectrum_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "step.npz"
    save_spectrum(path, spectrum_of(6))
    path.write_bytes(path.read_bytes()[:keep])
    for load in (load_spectrum, load_shares):
        with pytest.raises(AnalysisError, match="damaged; delete it and run thermoscope hessian again"):
            load(path)


def test_a_pickle_in_a_spectrum_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "step.npz"
    np.savez(path, values=np.array([_Poison(tmp_path / "poisoned")], dtype=object))
    with pytest.raises(AnalysisError, match="damaged"):
        load_spectrum(path)
    assert not (tmp_path / "poisoned").exists()


class _Poison:
    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._path),)


def test_mistakes_at_the_command_get_a_sentence(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: str) -> str:
        assert main(["hessian", *arguments]) == 1
        return capsys.readouterr().err

    assert "is no run of thermoscope train" in fails("--run", str(tmp_path / "nothing"))
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    assert "no snapshot of step 7; there are 0, 5, 20" in fails("--run", str(path), "--steps", "7")
    assert "there is no device 'abacus' here" in fails("--run", str(path), "--device", "abacus")
    options = ("--run", str(path), "--subset", "0.1", "--largest")
    assert "ask for at most" in fails(*options, "9999")
    assert "nearest names" in fails(*options, "1", "--parameters", "fc*")
    snapshot = path / "snapshots" / "step_00000000.safetensors"
    whole = snapshot.read_bytes()
    snapshot.write_bytes(whole[:100])
    assert "step_00000000.safetensors' is damaged" in fails(*options, "1")
    config = json.loads((path / "config.json").read_text())
    snapshot.write_bytes(whole)
    (path / "config.json").write_text(json.dumps({**config, "model": "paper:digits_convnet"}))
    assert "is a checkpoint of another model" in fails(*options, "1")
    for file in (path / "snapshots").iterdir():
        file.unlink()
    assert "has no snapshots; train with --snapshots" in fails(*options, "1")


def test_the_command_prints_a_table(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--largest",
        "3",
        "--smallest",
        "2",
        "--tol",
        "1e-4",
        "--subset",
        "0.1",
        "--line-searches",
        "1",
    ]
    assert main(["hessian", "--run", str(measured), *options]) == 0
    out = capsys.readouterr().out
    assert "LA 1 λ" in out
    assert "SA 1 decrease" in out
    assert "hessian_*.png" in out


def test_a_snapshot_gives_its_digits_whatever_was_measured_before(
    trained: Path, measured: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    alone = measure_hessian(path, replace(SETTINGS, steps=(20,)), progress=False)[20]
    after = Run(measured).last(Spectrum)[20]
    assert alone.mode == after.mode != ""
    for one, other in zip(alone.pairs, after.pairs, strict=True):
        assert (one.value, one.residual, one.angle) == (other.value, other.residual, other.angle)
    searches = Run(path).named(LineSearch), Run(measured).named(LineSearch)
    for name in ("LA 1", "SA 1"):
        one, other = (found[20, name] for found in searches)
        assert (one.alpha_best, one.decrease, one.slope) == (other.alpha_best, other.decrease, other.slope)


def test_vectors_point_downhill_and_the_best_step_with_them(measured: Path) -> None:
    _, loss = dense(measured, 5)
    gradient = loss.gradient()
    spectrum = load_spectrum(spectrum_path(Run(measured).path, 5))
    assert all(gradient @ pair.vector <= 0 for pair in spectrum.pairs)
    for (step, name), search in Run(measured).named(LineSearch).items():
        assert search.alpha_best > 0, (step, name)
        assert search.slope < 0
    assert [pair.angle for pair in spectrum.pairs] == [p.angle for p in Run(measured).last(Spectrum)[5].pairs]
    assert spectrum.mode == Run(measured).last(Spectrum)[5].mode


def test_overlaps_come_with_their_bounds(measured: Path) -> None:
    (record,) = (r for r in Run(measured).records() if "hessian/overlap/LA 1" in r and r["step"] == 20)
    for name in ("LA 1", "SA 1"):
        low, middle, high = (
            record[f"hessian/overlap{word}/{name}"] for word in (" at least", "", " at most")
        )
        assert 0 <= low <= middle <= high <= 1


def test_records_of_the_version_before_are_read(tmp_path: Path) -> None:
    spectrum = spectrum_of(6)
    with Run(tmp_path) as run:
        run.log(spectrum, 3)
        run.log(LineSearch(2.0, 0.5, 1.0, np.zeros(1), np.ones(1), 0.4, 0.9, True, 8), 3, name="SA 1")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    for line in lines:
        for new in ("residuals", "mode", "breakdown", "angle", "slope_doubt"):
            line.pop(new, None)
        for pair in [*line.get("largest", []), *line.get("smallest", [])]:
            del pair["angle"]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = spectrum_path(Run(tmp_path).path, 3)
    with np.load(file) as arrays:
        np.savez(file, **{name: arrays[name] for name in arrays.files if name not in ("angles", "mode")})
    (again,) = Run(tmp_path).last(Spectrum).values()
    (search,) = Run(tmp_path).named(LineSearch).values()
    assert again.largest[0].value == load_spectrum(file).largest[0].value == 3
    assert again.largest[0].angle is load_spectrum(file).largest[0].angle is None
    assert (again.mode, again.residuals) == ("", "measured")
    assert not search.determined  # nobody knows how well that direction was known


def test_a_table_says_what_is_not_determined() -> None:
    def searched(angle: float) -> LineSearch:
        return LineSearch(-1.0, 0.5, 1.0, np.zeros(1), np.ones(1), 0.4, 0.9, True, 8, angle, angle)

    pairs = {
        "largest": (Eigenpair(4.0, np.ones(1), 0.01, True),),
        "smallest": (Eigenpair(-0.118, np.ones(1), 0.017, False),),
    }
    spectrum = Spectrum(pairs["largest"], pairs["smallest"], 4.118, 1e-3, 17, 0.5, "lanczos")
    table = curvature({3: spectrum}, {(3, "LA 1"): searched(0.1), (3, "SA 1"): searched(0.6)})
    row = table.loc["3"]
    assert row["LA 1 λ"] == "4"
    assert row["SA 1 λ"] == "-0.118 ± 0.017"
    assert row["LA 1 1/α*"] == "2.5 ± 0.5"  # 0.1 / 0.5 of it
    assert row["LA 1 decrease"] == "0.1"
    assert row["SA 1 1/α*"] == row["SA 1 decrease"] == "not determined"
    sure = curvature({3: spectrum}, {(3, "LA 1"): searched(0.001)}).loc["3"]
    assert sure["LA 1 1/α*"] == "2.5"
    shares = np.full((2, 2), 0.5)
    laid_out = replace(
        spectrum,
        layout={"a": (1,), "b": (1,)},
        largest=(replace(pairs["largest"][0], angle=0.005),),
        smallest=(replace(pairs["smallest"][0], angle=0.3),),
    )
    labels = parameter_shares(laid_out, shares).axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["LA 1", "SA 1 ± 0.30"]
    unknown = replace(laid_out, largest=pairs["largest"])
    (label, _) = parameter_shares(unknown, shares).axes[0].get_xticklabels()
    assert label.get_text() == "LA 1 not determined"
    figure = best_decreases([(3, searched(0.1)), (3, searched(0.6))], title="both")
    assert figure.axes[0].get_title() == "both (1 not determined)"


def test_one_colour_is_one_step_in_all_of_a_figure() -> None:
    upward = LineSearch(-1.0, 0.5, 1.0, np.zeros(1), np.ones(1), 0.4, 0.9, True, 8)
    figure = best_steps([(5, upward), (285, replace(upward, curvature=-upward.curvature))])
    (positive,), (negative,) = (axes.collections for axes in figure.axes[:2])
    assert positive.norm is negative.norm
    assert (positive.norm.vmin, positive.norm.vmax) == (6, 286)
    assert [label.get_text() for label in figure.axes[2].get_yticklabels()] == ["6", "286"]


def test_the_mode_that_is_asked_for_is_taken_and_kept(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    options = ["hessian", "--run", str(path), "--largest=1", "--smallest=1", "--subset=0.1", "--steps", "0"]
    assert main([*options, "--line-searches=0", "--mode=retained"]) == 0
    assert Run(path).last(Spectrum)[0].mode == "retained"
    assert main([*options, "--line-searches=0", "--mode=linearized"]) == 1
    assert "was made with mode='retained', not 'linearized'" in capsys.readouterr().err
    assert main([*options, "--mode=fastest"]) == 1
    assert "unknown mode 'fastest'; use linearized, retained" in capsys.readouterr().err
