"""LA(20) and SA(3) of a network's Hessian: products and seconds, beside scipy over curvlinops, and PyHessian.

    pip install -e '.[bench]'
    python scripts/bench/eigenpairs.py [--quick] [--model small|lenet|both]

A LeNet is trained with RMSProp on scikit-learn's digits at 28 x 28 pixels; at an early, a middle and a late
step the pairs are asked for with residuals up to 1e-3 and up to 1e-2 of the spectrum's width:

- eigsh: two calls of scipy's `eigsh` ("LA" and "SA") over curvlinops' operator, with the loosest tolerances
  that reach these residuals (the smallest wanted eigenvalue says which; halved until they are reached, and
  only the last call counts). Where that misses pairs, "eigsh, all" has tolerances halved until it misses
  none, which only somebody who knows the answer could choose: what the peer takes for the same answer;
- PyHessian: its power iteration, which knows one end of |lambda| only, for its first 5 pairs;
- ours: `extreme_eigenpairs` from a random start, all counted: the check of the loss, the choice of mode, the
  linearisation, the residuals and the search for missed pairs. Its pairs are known by their own size too
  (rtol), which the peers' need not be.

Which pairs were missed is seen beside a run with a tolerance of 1e-5.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _common import device, finish
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.datasets import load_digits
from torch import nn

from analysis.sources.paper_models import lenet, small_lenet
from hessian import Eigenpair, Loss, Spectrum, as_operator, extreme_eigenpairs

LARGEST, SMALLEST = 20, 3
TOLS = (1e-3, 1e-2)
MODELS = {"small": small_lenet, "lenet": lenet}


@dataclass(frozen=True)
class Row:
    """One method at one step."""

    name: str
    tol: float
    products: int
    seconds: float
    residual: float
    missed: int
    pairs: int
    breakdown: dict[str, float] = field(default_factory=dict)


def main() -> None:
    warnings.filterwarnings("ignore")  # of the peers and of torch
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="300 examples and two steps")
    parser.add_argument("--model", choices=[*MODELS, "both"], default="small")
    options = parser.parse_args()
    names = list(MODELS) if options.model == "both" else [options.model]
    figures = {name: measure(name, options.quick) for name in names}
    peers = {"curvlinops": version("curvlinops-for-pytorch"), "pyhessian": version("pyhessian")}
    finish(benchmark="eigenpairs", quick=options.quick, models=figures, **peers)


def measure(name: str, quick: bool) -> dict[str, Any]:
    """One model, at its steps."""
    steps = (5, 60) if quick else (5, 100, 1000)
    torch.manual_seed(0)
    model = MODELS[name]().to(device())
    data = digits()
    subset = [(x[:150], y[:150]) for x, y in data[:2]] if quick else data
    size, figures = sum(p.numel() for p in model.parameters()), {}
    print(f"{name}: {size:,} parameters, {sum(len(y) for _, y in subset)} examples")
    for step in train(model, data, steps):
        rows, width = at_snapshot(model, subset)
        print(f"step {step}: {width:.3g} wide")
        for row in rows:
            peer = next(one for one in rows if one.name == "eigsh" and one.tol == row.tol)
            print(
                f"  tol {row.tol:.0e}  {row.name:<11} {row.products:4d} products {row.seconds:8.2f} s   "
                f"x {peer.seconds / row.seconds:5.2f} faster   residual {row.residual:.1e} of the width   "
                f"{row.missed} of {row.pairs} pairs missed"
            )
            if row.breakdown:
                print(
                    "    "
                    + ", ".join(f"{part} {100 * s / row.seconds:.0f}%" for part, s in row.breakdown.items())
                )
        sys.stdout.flush()
        figures[step] = [vars(row) for row in rows]
    return {"parameters": size, "steps": figures}


def digits() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """1,500 images in batches of 250."""
    bunch = load_digits()
    x = torch.tensor(bunch.images[:1500, None] / 16, dtype=torch.float32)
    x = F.interpolate(x, size=28, mode="bilinear").to(device())
    y = torch.tensor(bunch.target[:1500]).to(device())
    return list(zip(x.split(250), y.split(250), strict=True))


def train(model: nn.Module, data: Any, steps: tuple[int, ...]) -> Any:
    """Yields at these steps."""
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    optimizer = torch.optim.RMSprop(model.parameters(), 1e-4)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps[-1] + 1):
        batch = torch.randint(len(x), (32,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        if step in steps:
            yield step


def at_snapshot(model: nn.Module, data: Any) -> tuple[list[Row], float]:
    """The methods in turn, and the width of the spectrum."""
    operator = Loss(model, F.cross_entropy, data).hessian()
    exact = extreme_eigenpairs(operator, LARGEST, SMALLEST, tol=1e-5)
    rows = []
    for tol in TOLS:
        rows += [*by_eigsh(model, data, exact, operator, tol), by_us(model, data, exact, tol)]
    rows.append(by_pyhessian(model, data, exact, operator, TOLS[0]))
    return rows, exact.width


def by_us(model: nn.Module, data: Any, exact: Spectrum, tol: float) -> Row:
    began = time.perf_counter()
    operator = Loss(model, F.cross_entropy, data).hessian()
    chosen = time.perf_counter()
    found = extreme_eigenpairs(operator, LARGEST, SMALLEST, tol=tol)
    seconds = time.perf_counter() - began
    residual = max(pair.residual for pair in found.pairs) / found.width
    missed = missing(values_of(found), values_of(exact), tol * exact.width)
    parts = {"choice": chosen - began, **found.breakdown}
    return Row("ours", tol, found.products, seconds, residual, missed, len(found.pairs), parts)


def values_of(spectrum: Spectrum) -> np.ndarray:
    return np.array([pair.value for pair in spectrum.pairs])


def missing(values: np.ndarray, truth: np.ndarray, most: float) -> int:
    """How many of the true values are not there."""
    return int((np.abs(values - truth) > most).sum())


class Counted(LinearOperator):
    """The peer's operator, its products counted."""

    def __init__(self, operator: Any):
        super().__init__(np.float32, operator.shape)
        self.operator, self.products = operator, 0

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        self.products += 1
        return self.operator @ x.reshape(-1).astype(np.float32)


def by_eigsh(model: nn.Module, data: Any, exact: Spectrum, check: Any, wanted: float) -> list[Row]:
    """With the residuals asked for, and, if pairs are missed then, also without missing any."""
    ends = {"LA": exact.largest, "SA": exact.smallest}
    tols = {which: wanted * exact.width / max(abs(pairs[-1].value), 1e-9) for which, pairs in ends.items()}
    found: dict[str, Row] = {}
    rows: list[Row] = []
    for name, most in (("eigsh", len(exact.pairs)), ("eigsh, all", 0)):
        for which, pairs in ends.items():
            while which not in found or found[which].residual > wanted or found[which].missed > most:
                found[which] = one_eigsh(model, data, which, pairs, check, tols[which], wanted * exact.width)
                found[which] = replace(found[which], residual=found[which].residual / exact.width)
                tols[which] /= 2
        both = list(found.values())
        products, seconds = sum(end.products for end in both), sum(end.seconds for end in both)
        worst, missed = max(end.residual for end in both), sum(end.missed for end in both)
        rows.append(Row(name, wanted, products, seconds, worst, missed, len(exact.pairs)))
        if not missed:
            break
    return rows


def one_eigsh(
    model: nn.Module, data: Any, which: str, pairs: tuple[Eigenpair, ...], check: Any, tol: float, most: float
) -> Row:
    """One end; a pair is missed if its value is off by more than `most`. The residual is not a share."""
    from curvlinops import HessianLinearOperator

    start = np.random.default_rng(0).standard_normal(sum(p.numel() for p in model.parameters()))
    began = time.perf_counter()
    parameters = list(model.parameters())
    peer = HessianLinearOperator(
        model.eval(), nn.CrossEntropyLoss(), parameters, data, check_deterministic=False
    )
    operator = Counted(peer.to_scipy())
    values, vectors = eigsh(operator, k=len(pairs), which=which, tol=tol, v0=start.astype(np.float32))
    seconds = time.perf_counter() - began
    missed = missing(np.sort(values), np.sort([pair.value for pair in pairs]), most)
    residual = residual_of(check, values, vectors)
    return Row(which, tol, operator.products, seconds, residual, missed, len(pairs))


def residual_of(operator: Any, values: np.ndarray, vectors: np.ndarray) -> float:
    products = as_operator(operator) @ vectors
    return float(np.linalg.norm(products - vectors * values, axis=0).max())


def by_pyhessian(model: nn.Module, data: Any, exact: Spectrum, check: Any, tol: float) -> Row:
    from pyhessian import hessian

    peer = hessian(model, nn.CrossEntropyLoss(), dataloader=data, cuda=device().type == "cuda")
    products, product = 0, peer.dataloader_hv_product

    def counted(v: Any) -> Any:
        nonlocal products
        products += 1
        return product(v)

    peer.dataloader_hv_product = counted
    began = time.perf_counter()
    values, vectors = peer.eigenvalues(maxIter=100, tol=tol, top_n=5)
    seconds = time.perf_counter() - began
    flat = np.stack([torch.cat([p.flatten() for p in v]).cpu().numpy() for v in vectors], 1)
    worst = residual_of(check, np.array(values), flat) / exact.width
    truth = np.array(sorted(values_of(exact), key=abs, reverse=True)[:5])
    missed = missing(np.array(sorted(values, key=abs, reverse=True)), truth, tol * exact.width)
    model.zero_grad(set_to_none=True)
    return Row("PyHessian", tol, products, seconds, worst, missed, 5)


if __name__ == "__main__":
    main()
