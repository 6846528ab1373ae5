"""Models and data by name."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from probes.selection import nearest

from .errors import AnalysisError
from .preprocessing import Preprocessing

__all__ = ["DataSplits", "find_device", "load_data", "load_model", "require_model"]


@dataclass(frozen=True)
class DataSplits:
    """Three map-style data sets of (x, y), y a class number.

    Attributes:
        train: to train on.
        valid: to choose on.
        test: to report on.
        num_classes: number of classes.
    """

    train: Dataset[Any]
    valid: Dataset[Any]
    test: Dataset[Any]
    num_classes: int

    def fingerprint(self) -> str:
        """A hash of the sizes and of sixteen examples of each split: the same data give the same text."""
        digest = hashlib.sha256()
        for split in (self.train, self.valid, self.test):
            size = _size(split)
            digest.update(str(size).encode())
            for i in np.linspace(0, size - 1, min(16, size)).astype(int):
                x, y = split[int(i)]
                digest.update(np.ascontiguousarray(x).tobytes() + str(int(y)).encode())
        return digest.hexdigest()[:16]


def find_device(name: str) -> torch.device:
    """A device by name.

    Raises:
        AnalysisError: if it is not there.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise AnalysisError(f"there is no device {name!r} here; use --device cpu.") from error


def load_model(name: str, num_classes: int) -> nn.Module:
    """Build `torchvision:NAME`, `timm:NAME` or `my.module:function`, with random weights.

    Raises:
        AnalysisError: for a name that does not exist; the message has the nearest ones.
    """
    source, rest = _split(name, "torchvision:resnet18, timm:vit_tiny_patch16_224 or my.module:build")
    require_model(name)
    model: nn.Module
    if source == "torchvision":
        import torchvision.models as zoo

        own_weights = {"init_weights": True} if rest in ("inception_v3", "googlenet") else {}
        model = zoo.get_model(rest, weights=None, num_classes=num_classes, **own_weights)
    elif source == "timm":
        import timm

        model = timm.create_model(rest, pretrained=False, num_classes=num_classes)
    else:
        model = _call(source, rest, num_classes=num_classes)
    if not isinstance(model, nn.Module):
        raise AnalysisError(f"{name!r} returned a {type(model).__name__}, not a torch.nn.Module.")
    return model


def require_model(name: str) -> None:
    """Refuse a name that torchvision or timm does not have.

    Raises:
        AnalysisError: with the nearest names.
    """
    source, _, rest = name.partition(":")
    if source == "torchvision":
        import torchvision.models as zoo

        _require(rest, zoo.list_models(module=zoo), "torchvision has no model")
    elif source == "timm":
        import timm

        _require(rest, timm.list_models(), "timm has no model")


def load_data(
    name: str,
    *,
    data_dir: str = "data",
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
) -> DataSplits:
    """Load data by name; images become float32 (C, H, W), in 0..1 unless `preprocessing` says otherwise.

    - `sklearn:digits`: 1,797 real handwritten digits of 8x8 pixels that come with scikit-learn.
    - `torchvision:MNIST` and its like (FashionMNIST, CIFAR10, ...), already under `data_dir`.
    - `folder:PATH`: images in one folder per class, below `train`, `valid` (or `val`) and `test` or not.
    - `npz:PATH`: arrays `x_train`, `y_train`, `x_test`, `y_test`, images as NHWC or NHW.
    - `my.module:make_data`: a function that returns a `DataSplits`, or (train, valid, test) data sets.

    Where a validation set is missing, a sixth of the training set is set aside by `seed`; where a test set
    is missing too, another sixth.

    Raises:
        AnalysisError: for data that are not there or cannot be read, saying what to bring.
    """
    preprocessing = preprocessing or Preprocessing()
    source, rest = _split(name, "torchvision:MNIST, folder:PATH, npz:PATH or my.module:make_data")
    if source == "sklearn":
        return _digits(rest, seed)
    if source == "torchvision":
        return _torchvision(rest, data_dir, preprocessing.transform(), seed)
    if source == "folder":
        if preprocessing.size is None:  # photographs are of many sizes
            preprocessing = replace(preprocessing, size=224, resize=preprocessing.resize or 224)
        return _folder(Path(rest), preprocessing.transform(), seed)
    if source == "npz":
        return _npz(Path(rest), preprocessing.transform(), seed)
    return _own(name, _call(source, rest))


# -- sources -------------------------------------------------------------------------------------------


def _digits(name: str, seed: int) -> DataSplits:
    if name != "digits":
        raise AnalysisError(f"scikit-learn data {name!r} is not offered; use sklearn:digits.")
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    images = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return _splits(TensorDataset(images, torch.tensor(y)), None, None, 10, seed)


def _torchvision(name: str, data_dir: str, transform: Callable[[Any], torch.Tensor], seed: int) -> DataSplits:
    import torchvision.datasets as sets

    known = [n for n in sets.__all__ if inspect.isclass(getattr(sets, n))]
    _require(name, known, "torchvision has no data set")
    build = getattr(sets, name)
    if "train" not in inspect.signature(build).parameters:
        raise AnalysisError(f"torchvision's {name} has no train flag; wrap it in my.module:make_data.")
    try:
        train = build(data_dir, train=True, transform=transform)
        test = build(data_dir, train=False, transform=transform)
    except (RuntimeError, FileNotFoundError) as error:
        raise AnalysisError(
            f"{name} is not under {data_dir!r}; pass --data-dir, or fetch it once with "
            f"torchvision.datasets.{name}({data_dir!r}, download=True)."
        ) from error
    return _splits(train, None, test, len(train.classes), seed)


def _folder(path: Path, transform: Callable[[Any], torch.Tensor], seed: int) -> DataSplits:
    from torchvision.datasets import ImageFolder

    def read(folder: Path) -> Any:
        try:
            return ImageFolder(str(folder), transform=transform)
        except FileNotFoundError as error:
            raise AnalysisError(
                f"no images in {str(folder)!r}; it needs one folder per class with image files in it."
            ) from error

    if not (path / "train").is_dir():
        everything = read(path)
        return _splits(everything, None, None, len(everything.classes), seed)
    train = read(path / "train")
    valid = next((read(path / n) for n in ("valid", "val") if (path / n).is_dir()), None)
    test = read(path / "test") if (path / "test").is_dir() else None
    return _splits(train, valid, test or valid, len(train.classes), seed)


def _npz(path: Path, transform: Callable[[Any], torch.Tensor], seed: int) -> DataSplits:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    except KeyError as error:
        raise AnalysisError(f"{str(path)!r} lacks an array: {error.args[0]}.") from error
    except FileNotFoundError as error:
        raise AnalysisError(f"there is no file {str(path)!r}.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise AnalysisError(f"{str(path)!r} is damaged or no .npz file; copy it again.") from error
    train = _ArrayImages(arrays["x_train"], arrays["y_train"], transform)
    test = _ArrayImages(arrays["x_test"], arrays["y_test"], transform)
    classes = int(max(arrays["y_train"].max(), arrays["y_test"].max())) + 1
    return _splits(train, None, test, classes, seed)


def _own(name: str, made: Any) -> DataSplits:
    if isinstance(made, DataSplits):
        return made
    if not isinstance(made, (tuple, list)) or len(made) != 3:
        raise AnalysisError(f"{name!r} must return a DataSplits or three data sets: train, valid, test.")
    labels = [int(split[i][1]) for split in made for i in range(_size(split))]
    train, valid, test = made
    return DataSplits(train, valid, test, max(labels) + 1)


class _ArrayImages(Dataset[Any]):
    """Arrays of images, turned into tensors one by one."""

    def __init__(
        self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], transform: Callable[[Any], torch.Tensor]
    ):
        if len(x) != len(y):
            raise AnalysisError(f"there are {len(x)} images but {len(y)} labels.")
        self._x, self._y, self._transform = x, y.astype(np.int64), transform

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self._transform(np.ascontiguousarray(self._x[i])), int(self._y[i])


# -- helpers -------------------------------------------------------------------------------------------


def _splits(train: Any, valid: Any, test: Any, num_classes: int, seed: int) -> DataSplits:
    """Fill in missing splits from the training set, chosen by `seed` alone."""
    if valid is None:
        order = torch.randperm(_size(train), generator=torch.Generator().manual_seed(seed)).tolist()
        part = _size(train) // 6
        if part == 0:
            raise AnalysisError(f"{_size(train)} examples are too few to set some aside for validation.")
        valid, source = Subset(train, order[:part]), train
        if test is None:
            test, order = Subset(source, order[-part:]), order[:-part]
        train = Subset(source, order[part:])
    return DataSplits(train, valid, test, num_classes)


def _split(name: str, examples: str) -> tuple[str, str]:
    source, colon, rest = name.partition(":")
    if not colon or not rest:
        raise AnalysisError(f"{name!r} does not say where to look; write {examples}.")
    return source, rest


def _call(module_name: str, function_name: str, **arguments: Any) -> Any:
    """Call a function of the user's with those of the arguments that it takes."""
    if os.getcwd() not in sys.path:  # `my_models.py` stands where the command is typed
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise AnalysisError(
            f"there is no module {error.name!r} (wanted by {module_name!r}); install it, or type the command "
            "in the folder where it stands."
        ) from error
    functions = {n: value for n, value in vars(module).items() if callable(value) and not n.startswith("_")}
    _require(function_name, list(functions), f"{module_name!r} has no function")
    function = functions[function_name]
    accepted = inspect.signature(function).parameters
    return function(**{k: v for k, v in arguments.items() if k in accepted})


def _require(name: str, known: Sequence[str], refusal: str) -> None:
    if name not in known:
        raise AnalysisError(f"{refusal} {name!r}; {nearest(name, known)}.")


def _size(split: Any) -> int:
    return len(split)
