"""Imports point one way, and an instrument can be used alone."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "thermoscope": {"torch", "numpy"},
    "probes": {"thermoscope", "torch", "numpy", "scipy", "tqdm"},
    "hessian": {"thermoscope", "torch", "numpy", "scipy", "tqdm"},
}


@pytest.mark.parametrize("package", ALLOWED)
def test_instruments_need_little_and_not_each_other(package: str) -> None:
    for file in sorted((ROOT / package).glob("**/*.py")):
        allowed = ALLOWED[package] | ({"analysis"} if file.name == "command.py" else set())
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                top = name.partition(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, f"{file.name}: {name}"


# Which other folders of its package a folder may import; files at the top of a package are in none.
LAYERS = {
    "thermoscope": {},
    "probes": {
        "features": (),
        "targets": (),
        "online": ("features", "targets"),
        "fit": ("targets",),
        "store": ("features",),
        "controls": ("fit",),
    },
    "hessian": {
        "empirical_risk": (),
        "products": ("empirical_risk",),
        "spectrum": ("products",),
        "experimental": ("empirical_risk", "products", "spectrum"),
    },
    "analysis": {
        "sources": (),
        "figures": (),
        "results": ("figures",),
        "runs": ("results", "sources"),
        "jobs": ("runs", "results", "figures", "sources"),
        "commands": ("jobs", "runs", "results", "sources"),
    },
}


def imported(file: Path) -> set[str]:
    """The modules that a file imports, relative ones made absolute."""
    package = ".".join(file.relative_to(ROOT).parent.parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            found.add(importlib.util.resolve_name(name, package) if node.level else name)
    return found


@pytest.mark.parametrize(("package", "folder"), [(p, f) for p, folders in LAYERS.items() for f in folders])
def test_folders_import_one_way(package: str, folder: str) -> None:
    """Files at the top of a package join its folders, so a folder leans on few of them."""
    others = [other for other in LAYERS[package] if other not in (folder, *LAYERS[package][folder])]
    for file in sorted((ROOT / package / folder).glob("**/*.py")):
        for name in imported(file):
            parts = name.split(".")
            assert parts[0] != package or parts[1:2] == [] or parts[1] not in others, f"{file}: {name}"


def test_every_folder_has_its_layer() -> None:
    for package, folders in LAYERS.items():
        there = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        assert there == set(folders)


def test_every_public_name_is_there_and_documented() -> None:
    import hessian
    import probes

    for package in (probes, hessian):
        for name in package.__all__:
            assert getattr(package, name).__doc__, name


def test_every_public_name_of_analysis_is_there_and_documented() -> None:
    import analysis

    homes = [name for names in analysis._HOMES.values() for name in names]
    assert sorted([*homes, "AnalysisError"]) == sorted(analysis.__all__)
    for name in analysis.__all__:
        assert getattr(analysis, name).__doc__, name
    assert set(analysis.__all__) <= set(dir(analysis))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = analysis.nothing


def test_the_how_tos_are_what_the_tests_do() -> None:
    """Each class of CONTRIBUTING.md stands in a test, word for word, and takes no more than twenty lines."""
    files = ["test_contracts_hessian.py", "test_contracts_probes.py", "analysis/test_families.py"]
    tests = "".join((ROOT / "tests" / file).read_text() for file in files)
    blocks = re.findall(r"```python\n(.*?)\n\n\n", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.S)
    assert len(blocks) == 4
    for block in blocks:
        assert block in tests, block
        assert len(block.splitlines()) <= 20, block
