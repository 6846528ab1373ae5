"""Data sets by name."""

from __future__ import annotations

import hashlib
import inspect
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from thermoscope.errors import AnalysisError

from .arrays import ArrayImages, class_numbers, require_images
from .folders import ClassFolders
from .names import call, function_of, require_known, source_and_rest
from .own_data import count_classes, require_examples
from .preprocessing import Preprocessing

__all__ = ["DataSplits", "load_data", "takes_preprocessing"]


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
                label = sorted(y.items()) if isinstance(y, Mapping) else int(y)
                digest.update(np.ascontiguousarray(x).tobytes() + str(label).encode())
        return digest.hexdigest()[:16]


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
    - `folder:PATH`: images in one folder per class, below `train`, `valid` (or `val`) and `test` or not; the
      folders of `train` number the classes.
    - `npz:PATH`: arrays `x_train`, `y_train`, `x_test`, `y_test`, images as NHWC or NHW: uint8 ones are
      divided by 255, floats are taken as they are, and other integers refused, for their scale is not known.
    - `my.module:make_data`: a function that returns a `DataSplits`, or (train, valid, test) data sets. If it
      has a parameter `preprocessing`, it gets that, and is to heed it.

    Where a validation set is missing, a sixth of the training set is set aside by `seed`; where a test set
    is missing too, another sixth.

    Raises:
        AnalysisError: for data that are not there or cannot be read, saying what to bring.
    """
    preprocessing = preprocessing or Preprocessing()
    source, rest = source_and_rest(name, "torchvision:MNIST, folder:PATH, npz:PATH or my.module:make_data")
    if source == "sklearn":
        return _digits(rest, preprocessing, seed)
    if source == "torchvision":
        return _torchvision(rest, data_dir, preprocessing, seed)
    if source == "folder":
        if preprocessing.size is None:  # photographs are of many sizes
            preprocessing = replace(preprocessing, size=224, resize=preprocessing.resize or 224)
        return _folder(Path(rest), preprocessing, seed)
    if source == "npz":
        return _npz(Path(rest), preprocessing, seed)
    if preprocessing != Preprocessing() and not takes_preprocessing(name):
        raise AnalysisError(
            f"{name!r} makes its own images, so no size, channels, mean or std can be asked for; give the "
            "function a parameter `preprocessing`."
        )
    return _own(name, call(source, rest, preprocessing=preprocessing))


def takes_preprocessing(name: str) -> bool:
    """Whether data of this name are made as a `Preprocessing` says: all, but those of one's own function."""
    source, _, rest = name.partition(":")
    if source in ("sklearn", "torchvision", "folder", "npz"):
        return True
    return "preprocessing" in inspect.signature(function_of(source, rest)).parameters


# -- sources -------------------------------------------------------------------------------------------


def _digits(name: str, preprocessing: Preprocessing, seed: int) -> DataSplits:
    if name != "digits":
        raise AnalysisError(f"scikit-learn data {name!r} is not offered; use sklearn:digits.")
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    images = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    if preprocessing != Preprocessing():
        transform = preprocessing.transform()
        images = torch.stack([transform(image.numpy()) for image in images[:, 0]])
    return _splits(TensorDataset(images, torch.tensor(y)), None, None, 10, seed)


def _torchvision(name: str, data_dir: str, preprocessing: Preprocessing, seed: int) -> DataSplits:
    import torchvision.datasets as sets

    known = [n for n in sets.__all__ if inspect.isclass(getattr(sets, n))]
    require_known(name, known, "torchvision has no data set")
    build = getattr(sets, name)
    parameters = inspect.signature(build).parameters
    needed = [n for n, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if "train" not in parameters or needed[1:]:
        lacks = "has no train flag" if "train" not in parameters else f"wants to know {needed[1]!r}"
        raise AnalysisError(f"torchvision's {name} {lacks}; wrap it in my.module:make_data.")
    transform = preprocessing.transform()
    try:
        train = build(data_dir, train=True, transform=transform)
        test = build(data_dir, train=False, transform=transform)
    except (RuntimeError, FileNotFoundError) as error:
        raise AnalysisError(
            f"{name} is not under {data_dir!r}; pass --data-dir, or fetch it once with "
            f"torchvision.datasets.{name}({data_dir!r}, download=True)."
        ) from error
    except (OSError, ValueError, EOFError, AssertionError) as error:
        raise AnalysisError(f"{name} under {data_dir!r} is damaged; fetch it again.") from error
    if not hasattr(train, "classes"):
        raise AnalysisError(f"torchvision's {name} names no classes; wrap it in my.module:make_data.")
    return _splits(train, None, test, len(train.classes), seed)


def _folder(path: Path, preprocessing: Preprocessing, seed: int) -> DataSplits:
    transform = preprocessing.transform()
    parts = [name for name in ("valid", "val", "test") if (path / name).is_dir()]
    if not (path / "train").is_dir():
        if parts:
            raise AnalysisError(f"{str(path)!r} has a folder {parts[0]!r}, but none called 'train'; add it.")
        everything = ClassFolders(path, transform)
        return _splits(everything, None, None, len(everything.classes), seed)
    train = ClassFolders(path / "train", transform)
    others = {name: ClassFolders(path / name, transform, train.classes) for name in parts}
    valid = others.get("valid", others.get("val"))
    return _splits(train, valid, others.get("test", valid), len(train.classes), seed)


def _npz(path: Path, preprocessing: Preprocessing, seed: int) -> DataSplits:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise AnalysisError(
                f"{str(path)!r} holds a single array; save the four together: np.savez(path, x_train=..., "
                "y_train=..., x_test=..., y_test=...)."
            )
        with archive:
            arrays = {key: archive[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    except KeyError as error:
        raise AnalysisError(f"{str(path)!r} lacks an array: {error.args[0]}.") from error
    except FileNotFoundError as error:
        raise AnalysisError(f"there is no file {str(path)!r}.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise AnalysisError(f"{str(path)!r} is damaged or no .npz file; copy it again.") from error
    x = {k: require_images(arrays[k], k, in_unit=bool(preprocessing.mean)) for k in ("x_train", "x_test")}
    y = {key: class_numbers(arrays[key], key) for key in ("y_train", "y_test")}
    one, other = x.values()
    if (one.dtype == np.uint8) != (other.dtype == np.uint8):
        raise AnalysisError(
            f"x_train is {arrays['x_train'].dtype} and x_test {arrays['x_test'].dtype}, so their scales "
            "differ; save both alike."
        )
    if one.shape[3:] != other.shape[3:] or (preprocessing.size is None and one.shape[1:] != other.shape[1:]):
        raise AnalysisError(
            f"x_train holds images of shape {one.shape[1:]} and x_test of {other.shape[1:]}; make them alike."
        )
    transform = preprocessing.transform()
    transform(np.ascontiguousarray(one[0]))  # what it refuses, it refuses now
    train, test = (ArrayImages(x[f"x_{s}"], y[f"y_{s}"], transform) for s in ("train", "test"))
    classes = int(max(labels.max() for labels in y.values())) + 1
    return _splits(train, None, test, classes, seed)


def _own(name: str, made: Any) -> DataSplits:
    if isinstance(made, DataSplits):
        require_examples(name, (made.train, made.valid, made.test))
        return made
    if not isinstance(made, (tuple, list)) or len(made) != 3:
        raise AnalysisError(f"{name!r} must return a DataSplits or three data sets: train, valid, test.")
    require_examples(name, made)
    train, valid, test = made
    return DataSplits(train, valid, test, count_classes(name, made))


# -- helpers -------------------------------------------------------------------------------------------


def _splits(train: Any, valid: Any, test: Any, num_classes: int, seed: int) -> DataSplits:
    """Fill in missing splits from the training set, chosen by `seed` alone."""
    if num_classes < 2:
        raise AnalysisError("the data have a single class; a classifier needs at least two.")
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


def _size(split: Any) -> int:
    return len(split)
