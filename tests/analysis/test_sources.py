"""Models and data by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from analysis import AnalysisError, load_data, load_model
from analysis.sources.paper_models import digits_convnet, mnist_convnet
from analysis.sources.preprocessing import Preprocessing


def lengths(data: object) -> list[int]:
    return [len(getattr(data, split)) for split in ("train", "valid", "test")]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    x = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    y = np.arange(60) % 4
    np.savez(path, x_train=x[:48], y_train=y[:48], x_test=x[48:], y_test=y[48:])
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from PIL import Image

    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (20, 12), (40 * i, 0, 0)).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_digits_need_no_download() -> None:
    data = load_data("sklearn:digits")
    assert sum(lengths(data)) == 1797
    x, y = data.train[0]
    assert x.shape == (1, 8, 8)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    assert 0 <= int(y) < data.num_classes == 10


def test_splits_are_disjoint_and_depend_on_the_seed_alone() -> None:
    data, again, other = (load_data("sklearn:digits", seed=seed) for seed in (0, 0, 1))
    parts = [set(split.indices) for split in (data.train, data.valid, data.test)]  # type: ignore[attr-defined]
    assert len(set.union(*parts)) == 1797 == sum(map(len, parts))
    assert data.fingerprint() == again.fingerprint() != other.fingerprint()


def test_arrays(archive: Path) -> None:
    data = load_data(f"npz:{archive}")
    assert lengths(data) == [40, 8, 12]
    assert data.num_classes == 4
    assert data.train[0][0].shape == (1, 8, 8)
    assert load_data(f"npz:{archive}", preprocessing=Preprocessing(16, rgb=True)).train[0][0].shape == (
        3,
        16,
        16,
    )


def test_folders(folder: Path) -> None:
    data = load_data(f"folder:{folder}", preprocessing=Preprocessing(10))
    assert lengths(data) == [12, 12, 12]
    assert data.train[0][0].shape == (3, 10, 10)
    flat = load_data(f"folder:{folder / 'train'}", preprocessing=Preprocessing(10))
    assert lengths(flat) == [8, 2, 2]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("MNIST", "'MNIST' does not say where to look; write torchvision:MNIST"),
        ("torchvision:MNST", "torchvision has no data set 'MNST'; the nearest names are MNIST"),
        ("torchvision:MNIST", "MNIST is not under 'nowhere'; pass --data-dir"),
        ("sklearn:iris", "use sklearn:digits"),
        ("npz:nowhere.npz", "there is no file 'nowhere.npz'"),
        ("folder:nowhere", "no images in 'nowhere'; it needs one folder per class"),
        ("no_such_module:data", "there is no module 'no_such_module'"),
        ("analysis.sources.paper_models:digits_convnt", "has no function 'digits_convnt'; the nearest names"),
        ("analysis.sources.paper_models:digits_convnet", "must return a DataSplits or three data sets"),
    ],
)
def test_data_that_are_not_there(name: str, sentence: str) -> None:
    with pytest.raises(AnalysisError, match=sentence):
        load_data(name, data_dir="nowhere")


@pytest.mark.parametrize("kept", [0, 30, 500])
def test_a_cut_archive_is_named(archive: Path, kept: int) -> None:
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(AnalysisError, match=r"data.npz' is damaged or no .npz file"):
        load_data(f"npz:{archive}")


def test_an_archive_lacks_an_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x_train=np.zeros((4, 2, 2)))
    with pytest.raises(AnalysisError, match=r"lacks an array: .*y_train"):
        load_data(f"npz:{tmp_path / 'data.npz'}")


def test_pickles_in_an_archive_are_refused(tmp_path: Path) -> None:
    x = np.array([{}], dtype=object)
    np.savez(tmp_path / "data.npz", allow_pickle=True, x_train=x, y_train=x, x_test=x, y_test=x)
    with pytest.raises(AnalysisError, match=r"is damaged or no .npz file"):
        load_data(f"npz:{tmp_path / 'data.npz'}")


@pytest.mark.parametrize(
    "name", ["torchvision:resnet18", "timm:resnet10t", "paper:mnist_convnet", "analysis.models:lenet"]
)
def test_models_by_name_have_the_wanted_classes(name: str) -> None:
    model = load_model(name, num_classes=7)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    assert last.out_features == 7


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("torchvision:resnet19", "torchvision has no model 'resnet19'; the nearest names are resnet"),
        ("timm:vit_tinny", "timm has no model 'vit_tinny'"),
        ("paper:mnist", "of the papers' models none is called 'mnist'; the nearest names are mnist_convnet"),
        (
            "analysis.sources.paper_models:mnist",
            "has no function 'mnist'; the nearest names are mnist_convnet",
        ),
        ("analysis.runs.schedule:Schedule.steps", "has no function"),
        ("resnet18", "does not say where to look"),
    ],
)
def test_models_that_are_not_there(name: str, sentence: str) -> None:
    with pytest.raises(AnalysisError, match=sentence):
        load_model(name, num_classes=7)


def test_the_convnets_fit_their_images() -> None:
    assert mnist_convnet()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert digits_convnet(4)(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    # conv 832 + 51,264; fc 1,606,144 + 5,130
    assert sum(p.numel() for p in mnist_convnet().parameters()) == 1_663_370
