"""Extreme eigenpairs: values in a line, and all of them with their vectors in `spectra/step_XXXXXXXX.npz`."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hessian import Eigenpair, MissedCheck, Spectrum
from thermoscope.errors import AnalysisError
from thermoscope.files import atomic_file, readable_errors

from .family import Family, Occasion, register

__all__ = ["SpectrumFamily", "load_shares", "load_spectrum", "save_spectrum", "spectrum_path"]


class SpectrumFamily(Family[Spectrum]):
    """Tags: `hessian/largest/01` and so on; `hessian/solver/residual`, a share of the width, and its cost."""

    kind = Spectrum

    def line(self, result: Spectrum, at: Occasion[Spectrum], *, vectors: bool = True) -> Mapping[str, Any]:
        """All but the vectors, which the file has if they are wanted."""
        save_spectrum(spectrum_path(at.run, at.step), result, vectors=vectors)
        content = {field.name: getattr(result, field.name) for field in fields(result)}
        for end in ("largest", "smallest"):
            content[end] = [_without_vector(pair) for pair in getattr(result, end)]
        check = result.missed_check
        return {**content, "missed_check": check and asdict(check)}

    def read(self, line: Mapping[str, Any]) -> Spectrum:
        """With empty vectors; a line of an earlier version says less."""
        content = {field.name: line[field.name] for field in fields(Spectrum) if field.name in line}
        for end in ("largest", "smallest"):
            content[end] = tuple(Eigenpair(vector=np.empty(0), **pair) for pair in line[end])
        if content["missed_check"] is not None:
            content["missed_check"] = MissedCheck(**content["missed_check"])
        content["layout"] = {name: tuple(shape) for name, shape in line["layout"].items()}
        return Spectrum(**content)

    def scalars(self, result: Spectrum, name: str) -> dict[str, float]:
        """Eigenvalues by rank, the largest residual as a share of the width, and what they cost."""
        found: dict[str, float] = {
            f"hessian/{end}/{i:02d}": pair.value
            for end in ("largest", "smallest")
            for i, pair in enumerate(getattr(result, end), start=1)
        }
        worst = max(pair.residual for pair in result.pairs)
        found["hessian/solver/residual"] = worst / result.width if result.width > 0 else worst
        found["hessian/solver/products"] = result.products
        found["hessian/solver/seconds"] = result.seconds
        return found

    def frame(self, result: Spectrum) -> pd.DataFrame:
        """One row per pair, the largest eigenvalue first: all but the vector, and its end and rank."""
        ends = (("LA", result.largest), ("SA", result.smallest))
        rows = [
            {"end": end, "rank": rank, **_without_vector(pair)}
            for end, pairs in ends
            for rank, pair in enumerate(pairs, start=1)
        ]
        return pd.DataFrame(rows)


register(SpectrumFamily())


def spectrum_path(run: Path, step: int) -> Path:
    """The file of a step's spectrum."""
    return run / "spectra" / f"step_{step:08d}.npz"


def _without_vector(pair: Eigenpair) -> dict[str, Any]:
    return {name: value for name, value in vars(pair).items() if name != "vector"}


def save_spectrum(path: Path, spectrum: Spectrum, *, vectors: bool = True) -> None:
    """Write eigenvalues, residuals, eigenvectors and the share of each parameter tensor, as `.npz`.

    Arrays, p pairs with LA first: `values`, `residuals`, `converged`, `angles` (NaN for those that are not
    known) (p,); `largest`, the number of LA pairs; `mode`, in which products were computed;
    `names` and `shapes` of the parameters; `shares` (p, parameters); `vectors` (p, n) if wanted.
    """
    pairs = spectrum.largest + spectrum.smallest
    content = {
        "values": np.array([pair.value for pair in pairs]),
        "residuals": np.array([pair.residual for pair in pairs]),
        "converged": np.array([pair.converged for pair in pairs]),
        "angles": np.array([np.nan if pair.angle is None else pair.angle for pair in pairs]),
        "largest": np.array(len(spectrum.largest)),
        "names": np.array(list(spectrum.layout)),
        "shapes": np.array(["x".join(map(str, shape)) for shape in spectrum.layout.values()]),
        "shares": np.array([list(spectrum.shares(pair).values()) for pair in pairs]),
        "summary": np.array([spectrum.width, spectrum.tol, spectrum.products, spectrum.seconds]),
        "method": np.array(spectrum.method),
        "mode": np.array(spectrum.mode),
    }
    if vectors:
        content["vectors"] = np.stack([pair.vector for pair in pairs])
    with readable_errors(path, AnalysisError), atomic_file(path) as file:
        np.savez(file, allow_pickle=False, **content)


def load_spectrum(path: Path) -> Spectrum:
    """Read what `save_spectrum` wrote; without vectors in the file, they are empty.

    Raises:
        AnalysisError: if the file is missing or damaged.
    """
    with _sentences(path), np.load(path, allow_pickle=False) as file:
        content = {name: file[name] for name in file.files}
        vectors = content.get("vectors", np.empty((len(content["values"]), 0)))
        angles = content.get("angles", np.full(len(vectors), np.nan))  # an earlier version had none
        columns = (content["values"], vectors, content["residuals"], content["converged"], angles)
        pairs = tuple(
            Eigenpair(
                float(value), vector, float(residual), bool(good), None if np.isnan(angle) else float(angle)
            )
            for value, vector, residual, good, angle in zip(*columns, strict=True)
        )
        width, tol, products, seconds = content["summary"].tolist()
        k = int(content["largest"])
        shapes = [tuple(int(n) for n in shape.split("x") if n) for shape in content["shapes"].tolist()]
        layout = dict(zip(content["names"].tolist(), shapes, strict=True))
        method, mode = str(content["method"]), str(content.get("mode", ""))
    return Spectrum(
        pairs[:k], pairs[k:], width, tol, int(products), seconds, method, layout=layout, mode=mode
    )


def load_shares(path: Path) -> npt.NDArray[np.float64]:
    """The share of each parameter tensor in each eigenvector's squared norm, (p, parameters).

    Raises:
        AnalysisError: as `load_spectrum`.
    """
    with _sentences(path), np.load(path, allow_pickle=False) as file:
        shares: npt.NDArray[np.float64] = file["shares"]
        return shares


@contextmanager
def _sentences(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise AnalysisError(f"there is no spectrum {str(path)!r}; run thermoscope hessian.") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise AnalysisError(
            f"{str(path)!r} is damaged; delete it and run thermoscope hessian again."
        ) from error
