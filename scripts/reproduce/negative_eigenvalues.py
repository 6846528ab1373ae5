"""Negative eigenvalues of the Hessian of a LeNet over its training (Alain, Le Roux & Manzagol 2019).

    python scripts/reproduce/negative_eigenvalues.py --data-dir data [--quick]

A LeNet with ReLU (3.3 million parameters) learns MNIST by RMSProp in batches of 32. At snapshots from
initialisation on, LA(20) and SA(3) of the Hessian of the loss on a fixed 5% of the training set, and line
searches along the outermost. Killed and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import mnist, parser, shuffled
from tqdm import tqdm

from analysis import HessianSettings, Run, load_model, measure_hessian
from analysis.results.line_search import curvature
from analysis.runs.run import versions
from hessian import LineSearch, Spectrum

STEPS = (0, 10, 200, 2000)
QUICK_STEPS = (0, 10, 100)
FIGURES = ("eigenvalues", "decreases", "steps", "parameter_shares")
PAPER = """\
The paper saw: along negative curvature the loss can fall by much more than along positive curvature, and the
best step there is far larger than 1/|λ|, while along positive curvature 1/α* is close to λ; the extreme
eigenvalues grow at first and settle within some thousand minibatches."""
CHANGED = """\
Version 0.1.0 judged an eigenvector by the spectrum's width alone, and counted the line searches along all
of them: late in training, pairs of the small negative end had residuals of up to a tenth of |λ|, and their
vectors' neighbours in them; the side of v on which a search looked was open, so that 1/α* came out negative
at minibatch 0. Now a pair is known by its own size too, searches look downhill, a reading says how far the
vector's angle leaves it open (±), and one whose slope has no sure sign counts for nothing: "not
determined". The negative end is so dense beside its distance from zero that this is the lot of several of
its vectors at this tolerance."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--run", type=Path, help="run directory (default: runs/negative_eigenvalues)")
    options = arguments.parse_args()
    name = "negative_eigenvalues_quick" if options.quick else "negative_eigenvalues"
    path = options.run or Path("runs") / name
    steps = QUICK_STEPS if options.quick else STEPS
    config = {
        "model": "paper:small_lenet" if options.quick else "paper:lenet",
        "data": "torchvision:MNIST",
        "data_dir": str(options.data_dir),
        "image_size": None,
        "rgb": False,
        "seed": options.seed,
        "optimizer": "rmsprop",
        "lr": 1e-4,
        "batch_size": 32,
    }
    train(path, config, steps, options)
    settings = HessianSettings(
        largest=20,
        smallest=3,
        tol=2e-3,
        subset=0.02 if options.quick else 0.05,
        line_searches=2,
        vectors=False,
        steps=steps,
    )
    spectra = measure_hessian(path, settings)
    with Run(path) as run:
        searches = run.named(LineSearch)
    table = curvature(spectra, searches)
    print(table.to_string())
    write(options, path, name, table_rows(table), findings(spectra, searches))


def train(path: Path, config: dict[str, object], steps: tuple[int, ...], options: argparse.Namespace) -> None:
    """Snapshots of a training run, unless they are there."""
    with Run(path, config) as run:
        if set(steps) <= set(run.snapshots()):
            return
        torch.manual_seed(options.seed)
        model = load_model(str(config["model"]), 10)
        optimizer = torch.optim.RMSprop(model.parameters(), 1e-4)
        run.snapshot(model, 0)
        step, bar = 0, tqdm(total=steps[-1], unit="step", disable=None)
        while step < steps[-1]:
            for x, y in shuffled(mnist(options).train, 32, options.seed + step):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                step += 1
                bar.update()
                if step in steps:
                    run.snapshot(model, step, loss=loss.item())
                if step == steps[-1]:
                    break


def findings(spectra: dict[int, Spectrum], searches: dict[tuple[int, str], LineSearch]) -> str:
    """The paper's three statements, as numbers of this run."""
    highest = max(spectra, key=lambda step: spectra[step].largest[0].value)
    lowest = min(spectra, key=lambda step: spectra[step].smallest[0].value)
    first, *_, before, last = sorted(spectra)
    change = spectra[last].largest[0].value / spectra[before].largest[0].value
    settled = (
        f"LA 1 goes from {spectra[first].largest[0].value:.3g} to its highest, "
        f"{spectra[highest].largest[0].value:.3g}, at minibatch {highest:,} and is "
        f"{spectra[last].largest[0].value:.3g} at minibatch {last:,}; SA 1 from "
        f"{spectra[first].smallest[0].value:.3g} to its lowest, {spectra[lowest].smallest[0].value:.3g}, at "
        f"minibatch {lowest:,} and {spectra[last].smallest[0].value:.3g} at the last. Between the last two "
        f"snapshots LA 1 changes by a factor of {change:.2g}."
    )
    asked = len(searches)
    searches = {place: search for place, search in searches.items() if search.determined}
    down = {sign: [s for s in searches.values() if sign * s.curvature > 0] for sign in (1, -1)}

    def median(values: list[float]) -> float:
        return float(torch.tensor(values).median()) if values else float("nan")

    decrease = {sign: median([s.decrease for s in group]) for sign, group in down.items()}
    newton = {
        sign: median([1 / (s.alpha_best * abs(s.curvature)) for s in group if s.alpha_best > 0])
        for sign, group in down.items()
    }
    wins = sum(
        searches[step, "SA 1"].decrease > searches[step, "LA 1"].decrease
        for step, end in searches
        if end == "SA 1" and (step, "LA 1") in searches
    )
    total = sum(end == "SA 1" for _, end in searches)
    return f"""\
Here, by the {len(searches)} of {asked} line searches along vectors that are determined:

- Are decreases larger on the negative side? The best decrease along the most negative eigenvector is larger
  than along the most positive one at {wins} of {total} snapshots; the medians over all searches are
  {decrease[-1]:.2g} nats (negative) and {decrease[1]:.2g} (positive).
- Is 1/α* near λ on the positive side and far smaller on the negative? The median of (1/α*) / |λ| is
  {newton[1]:.2g} on the positive side and {newton[-1]:.2g} on the negative.
- Do the extremes settle? {settled}"""


def table_rows(table: object) -> str:
    frame = table.reset_index()  # type: ignore[attr-defined]
    head = "| " + " | ".join(frame.columns) + " |\n|" + "---:|" * len(frame.columns)
    return "\n".join([head, *("| " + " | ".join(map(str, row)) + " |" for row in frame.to_numpy())])


def write(options: argparse.Namespace, path: Path, name: str, table: str, text: str) -> None:
    """The page and its figures in the folder for documents."""
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = []
    for figure in FIGURES:
        shutil.copy(path / "figures" / f"hessian_{figure}.png", options.out / f"{name}_{figure}.png")
        pictures.append(f"![{figure.replace('_', ' ')}]({name}_{figure}.png)")
    searches = sorted((path / "figures").glob("hessian_line_search_SA1_*.png"))
    middle = searches[len(searches) // 2]
    shutil.copy(middle, options.out / f"{name}_line_search.png")
    pictures.append(f"![a line search along negative curvature]({name}_line_search.png)")
    command = "python scripts/reproduce/negative_eigenvalues.py" + (" --quick" if options.quick else "")
    page = f"""\
# Negative eigenvalues of a LeNet's Hessian

{PAPER}

Eigenvalues of the Hessian of the loss on a fixed part of the training set, the inverse of the best step size
along their vectors, and the best decrease of the loss (nats); `residual` is the largest ||Hv - λv|| of the 23
pairs as a share of the spectrum's width; `seconds` are as they passed, whatever else the machine did:

{table}

{text}

{CHANGED}

{chr(10).join(pictures)}

Made by `{command}` with {torch.get_num_threads()} threads, {json.dumps(versions())}.
"""
    (options.out / f"{name}.md").write_text(page)
    print(f"\nwritten: {options.out / name}.md and {len(pictures)} figures")


if __name__ == "__main__":
    main()
