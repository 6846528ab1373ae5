"""Imports point one way, and an instrument can be used alone."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "probes": {"torch", "numpy", "scipy", "tqdm"},
    "hessian": {"torch", "numpy", "scipy", "tqdm"},
}


@pytest.mark.parametrize("package", ALLOWED)
def test_instruments_need_little_and_not_each_other(package: str) -> None:
    for file in sorted((ROOT / package).glob("**/*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                top = name.partition(".")[0]
                assert top in ALLOWED[package] or top in sys.stdlib_module_names, f"{file.name}: {name}"


def test_every_public_name_is_there_and_documented() -> None:
    import hessian
    import probes

    for package in (probes, hessian):
        for name in package.__all__:
            assert getattr(package, name).__doc__ or name == "Mode", name
