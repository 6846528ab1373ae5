"""Images in one folder per class."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from thermoscope.errors import AnalysisError

__all__ = ["ClassFolders", "UnreadableImage"]

_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class UnreadableImage(AnalysisError):
    """An image that is damaged. Processes that load data put a traceback around the sentence: it is cut."""

    def __init__(self, message: str):
        super().__init__(message.rsplit(f"{UnreadableImage.__name__}: ", 1)[-1].strip())


class ClassFolders(Dataset[Any]):
    """The images below one folder per class, with the numbers of the classes.

    Args:
        folder: holds the classes' folders.
        transform: from an RGB image to a tensor.
        classes: the classes in their order, if other data have numbered them.

    Attributes:
        classes: names in the order of their numbers.
        samples: path and class number of each image.
        targets: the class numbers.

    Raises:
        AnalysisError: for a folder without images, files that are empty or gone, and classes that the other
            data do not have.
    """

    def __init__(
        self, folder: Path, transform: Callable[[Any], torch.Tensor], classes: Sequence[str] | None = None
    ):
        self._transform = transform
        here = sorted(p.name for p in folder.iterdir() if _is_class(p)) if folder.is_dir() else []
        self.classes = here if classes is None else list(classes)
        unknown = [name for name in here if name not in self.classes]
        if unknown:
            raise AnalysisError(
                f"{str(folder)!r} has the class {unknown[0]!r}, which the training set lacks; move it away, "
                "or add images of it to the training set."
            )
        self.samples: list[tuple[str, int]] = []
        for name in here:
            found = list(_images_in(folder / name))
            if not found and len(here) > 1:
                raise AnalysisError(
                    f"the class folder {str(folder / name)!r} has no images; fill it, or delete it."
                )
            self.samples += [(path, self.classes.index(name)) for path in found]
        if not self.samples:
            raise AnalysisError(
                f"no images in {str(folder)!r}; it needs one folder per class with image files in it."
            )
        self.targets = [number for _, number in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        path, number = self.samples[i]
        return self._transform(_read(path)), number


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _images_in(folder: Path) -> Iterator[str]:
    """Paths of the images below a folder, sorted.

    Raises:
        AnalysisError: for one that is empty, or a link to nothing.
    """
    for parent, _, names in sorted(os.walk(folder, followlinks=True)):
        for name in sorted(names):
            path = os.path.join(parent, name)
            if not name.lower().endswith(_ENDINGS):
                continue
            if not os.path.exists(path):
                raise AnalysisError(f"{path!r} is a link to nothing; delete it, or bring what it leads to.")
            if os.path.getsize(path) == 0:
                raise AnalysisError(f"{path!r} is empty; delete it, or copy it again.")
            yield path


def _read(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise UnreadableImage(
                    f"{path!r} has more than 8 bits per channel, which would be cut off; convert it to 8."
                )
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{path!r} is no image, or damaged; delete it, or copy it again.") from error
