"""LA(20) and SA(3) of a network's Hessian: products and seconds, beside scipy over curvlinops, and PyHessian.

    pip install -e '.[bench]'
    python scripts/bench/eigenpairs.py [--quick] [--model lenet]

A LeNet is trained with RMSProp on scikit-learn's digits at 28 x 28 pixels; at an early, a middle and a late
step the pairs are asked for with residuals up to 1e-3 of the spectrum's width:

- eigsh: two calls of scipy's `eigsh` ("LA" and "SA") over curvlinops' operator, with the loosest tolerances
  that reach these residuals (the smallest wanted eigenvalue says which; halved until they are reached);
- PyHessian: its power iteration, which knows one end of |lambda| only, for its first 5 pairs;
- ours: `extreme_eigenpairs` from a random start and from the pairs of the snapshot before, all counted:
  the choice of mode, the linearisation, true residuals and the search for missed pairs.

Which pairs were missed is seen beside a run with a tolerance of 1e-7.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _common import device, finish
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.datasets import load_digits
from torch import nn

from analysis.models import lenet, small_lenet
from hessian import Loss, Spectrum, as_operator, extreme_eigenpairs

LARGEST, SMALLEST, TOL = 20, 3, 1e-3
MODELS = {"lenet": lenet, "small_lenet": small_lenet}


@dataclass(frozen=True)
class Row:
    """One method at one step."""

    name: str
    products: int
    seconds: float
    residual: float
    missed: int
    pairs: int


def main() -> None:
    warnings.filterwarnings("ignore")  # of the peers and of torch
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="300 examples and two steps: under a minute")
    parser.add_argument("--model", choices=MODELS, default="small_lenet")
    options = parser.parse_args()
    steps = (5, 60) if options.quick else (5, 100, 1000)
    torch.manual_seed(0)
    model = MODELS[options.model]().to(device())
    data = digits()
    subset = [(x[:150], y[:150]) for x, y in data[:2]] if options.quick else data
    figures, before = {}, None
    trained = train(model, data, steps)
    for step in trained:
        rows, before = at_snapshot(model, subset, before)
        print(f"step {step}: {sum(len(y) for _, y in subset)} examples, {before.width:.3g} wide")
        for row in rows:
            ratio = rows[0].seconds / row.seconds
            print(
                f"  {row.name:<12} {row.products:5d} products  {row.seconds:8.2f} s  x {ratio:5.2f} faster   "
                f"residual {row.residual:.1e} of the width   {row.missed} of {row.pairs} pairs missed",
                flush=True,
            )
        figures[step] = {row.name: row.__dict__ for row in rows}
    peers = {"curvlinops": version("curvlinops-for-pytorch"), "pyhessian": version("pyhessian")}
    size = sum(p.numel() for p in model.parameters())
    finish(benchmark="eigenpairs", quick=options.quick, parameters=size, steps=figures, **peers)


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


def at_snapshot(model: nn.Module, data: Any, before: Spectrum | None) -> tuple[list[Row], Spectrum]:
    started = time.perf_counter()
    cold = extreme_eigenpairs(Loss(model, F.cross_entropy, data).hessian(), LARGEST, SMALLEST, tol=TOL)
    cold_seconds = time.perf_counter() - started
    operator = Loss(model, F.cross_entropy, data).hessian()
    exact = extreme_eigenpairs(operator, LARGEST, SMALLEST, tol=1e-7)
    truth = values_of(exact)
    rows = [
        by_eigsh(model, data, exact, operator),
        by_pyhessian(model, data, exact, operator),
        Row("ours, cold", cold.products, cold_seconds, *quality(cold, truth), len(truth)),
    ]
    if before is not None:
        started = time.perf_counter()
        fresh = Loss(model, F.cross_entropy, data).hessian()
        warm = extreme_eigenpairs(fresh, LARGEST, SMALLEST, tol=TOL, start=before)
        seconds = time.perf_counter() - started
        rows.append(Row("ours, warm", warm.products, seconds, *quality(warm, truth), len(truth)))
    return rows, cold


def values_of(spectrum: Spectrum) -> np.ndarray:
    return np.array([pair.value for pair in spectrum.pairs])


def quality(spectrum: Spectrum, truth: np.ndarray) -> tuple[float, int]:
    """Largest residual as a share of the width, and how many of the true values are not there."""
    residual = max(pair.residual for pair in spectrum.pairs) / spectrum.width
    return residual, missing(values_of(spectrum), truth, spectrum.width)


def missing(values: np.ndarray, truth: np.ndarray, width: float) -> int:
    return int(sum(abs(v - t) > TOL * width for v, t in zip(values, truth, strict=True)))


class Counted(LinearOperator):
    """The peer's operator, its products counted."""

    def __init__(self, operator: Any):
        super().__init__(np.float32, operator.shape)
        self.operator, self.products = operator, 0

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        self.products += 1
        return self.operator @ x.reshape(-1).astype(np.float32)


def by_eigsh(model: nn.Module, data: Any, exact: Spectrum, check: Any) -> Row:
    from curvlinops import HessianLinearOperator

    start = np.random.default_rng(0).standard_normal(sum(p.numel() for p in model.parameters()))
    products, seconds, found = 0, 0.0, []
    for which, pairs in (("LA", exact.largest), ("SA", exact.smallest)):
        tol = TOL * exact.width / max(abs(pairs[-1].value), 1e-9)
        while True:
            began = time.perf_counter()
            parameters = list(model.parameters())
            peer = HessianLinearOperator(
                model.eval(), nn.CrossEntropyLoss(), parameters, data, check_deterministic=False
            )
            operator = Counted(peer.to_scipy())
            values, vectors = eigsh(operator, k=len(pairs), which=which, tol=tol, v0=start.astype(np.float32))
            took = time.perf_counter() - began
            if residual_of(check, values, vectors) <= TOL * exact.width:
                break
            tol /= 2
        products, seconds = products + operator.products, seconds + took
        found.append((values, residual_of(check, values, vectors)))
    values = np.sort(np.concatenate([v for v, _ in found]))[::-1]
    worst = max(residual for _, residual in found) / exact.width
    missed = missing(values, values_of(exact), exact.width)
    return Row("eigsh", products, seconds, worst, missed, len(values))


def residual_of(operator: Any, values: np.ndarray, vectors: np.ndarray) -> float:
    products = as_operator(operator) @ vectors
    return float(np.linalg.norm(products - vectors * values, axis=0).max())


def by_pyhessian(model: nn.Module, data: Any, exact: Spectrum, check: Any) -> Row:
    from pyhessian import hessian

    peer = hessian(model, nn.CrossEntropyLoss(), dataloader=data, cuda=device().type == "cuda")
    products, product = 0, peer.dataloader_hv_product

    def counted(v: Any) -> Any:
        nonlocal products
        products += 1
        return product(v)

    peer.dataloader_hv_product = counted
    began = time.perf_counter()
    values, vectors = peer.eigenvalues(maxIter=100, tol=TOL, top_n=5)
    seconds = time.perf_counter() - began
    flat = np.stack([torch.cat([p.flatten() for p in v]).cpu().numpy() for v in vectors], 1)
    worst = residual_of(check, np.array(values), flat) / exact.width
    truth = np.array(sorted(values_of(exact), key=abs, reverse=True)[:5])
    missed = missing(np.array(sorted(values, key=abs, reverse=True)), truth, exact.width)
    model.zero_grad(set_to_none=True)
    return Row("PyHessian", products, seconds, worst, missed, 5)


if __name__ == "__main__":
    main()
