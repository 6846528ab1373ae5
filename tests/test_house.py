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


def test_every_public_name_of_analysis_is_there_and_documented() -> None:
    import analysis

    homes = [name for names in analysis._HOMES.values() for name in names]
    assert sorted(homes) == sorted(analysis.__all__)
    for name in analysis.__all__:
        assert getattr(analysis, name).__doc__, name
        assert getattr(analysis, name).__name__ == name
    assert set(analysis.__all__) <= set(dir(analysis))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = analysis.nothing
