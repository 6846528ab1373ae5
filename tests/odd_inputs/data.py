"""Data by name, as people have them: other dtypes, shapes, labels, folders and files than one thinks of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from analysis import AnalysisError, DataSplits, load_data
from analysis.jobs.probe import probe_model
from analysis.jobs.settings import ProbeSettings
from analysis.sources.own_data import count_classes, known_labels, require_examples
from analysis.sources.preprocessing import Preprocessing

from ..analysis.small import data_with_two_labels, model
from . import Case, command

N = 12
GREY = np.arange(N * 36, dtype=np.uint8).reshape(N, 6, 6)
Y = np.arange(N) % 3


# -- arrays ----------------------------------------------------------------------------------------------


def arrays(
    x: Any = GREY, y: Any = Y, test: tuple[Any, Any] | None = None, preprocessing: Preprocessing | None = None
) -> DataSplits:
    """Of the training and of the test set alike, if nothing else is said."""
    other_x, other_y = (x, y) if test is None else test
    np.savez("data.npz", x_train=x, y_train=y, x_test=other_x, y_test=other_y)
    return load_data("npz:data.npz", preprocessing=preprocessing)


def images_are(expected: Any, x: Any, **options: Any) -> None:
    data = arrays(x, **options)
    found = torch.stack([data.test[i][0] for i in range(N)])  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float32), rtol=1e-6, atol=1e-6)


def labels_are(expected: Any, y: Any, classes: int = 3) -> None:
    data = arrays(y=y)
    assert [data.test[i][1] for i in range(N)] == list(expected)
    assert data.num_classes == classes


UNIT = (GREY / 255).astype(np.float32)
WHOLE = {  # one and the same meaning
    "uint8": GREY,
    "uint8 with a channel": GREY[..., None],
    "big-endian float32": UNIT.astype(">f4"),
    "float32": UNIT,
    "float64": UNIT.astype(np.float64),
    "float32 with a channel": UNIT[..., None],
    "Fortran order": np.asfortranarray(GREY),
    "a negative stride": GREY[:, ::-1][:, ::-1],
}
UNKNOWN_SCALE = (np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)
ONE_HOT = np.eye(3)[Y]
LABELS = {
    **{f"{np.dtype(t)} labels": Y.astype(t) for t in (np.uint8, np.int8, np.uint16, np.int32, np.uint64)},
    "whole float labels": Y.astype(float),
    "a column of labels": Y[:, None],
    "a column of float labels": Y[:, None].astype(np.float32),
    "one-hot labels": ONE_HOT,
    "one-hot booleans": ONE_HOT.astype(bool),
    "one-hot uint8": ONE_HOT.astype(np.uint8),
}


def changed(array: Any, index: Any, value: Any, dtype: Any = None) -> Any:
    array = np.array(array, dtype=dtype)
    array[index] = value
    return array


BAD_LABELS = {
    "half labels": (Y + 0.5, "y_train has the label 0.5 in row 0"),
    "one half label": (changed(Y, 5, 1.25, float), "y_train has the label 1.25 in row 5"),
    "NaN labels": (changed(Y, 4, np.nan, float), "y_train has the label nan in row 4"),
    "infinite labels": (changed(Y, 4, np.inf, float), "y_train has the label inf in row 4"),
    "negative labels": (Y - 1, "y_train has the label -1 in row 0"),
    "-100 for ignored": (changed(Y, 7, -100), "y_train has the label -100 in row 7"),
    "text labels": (np.array(list("abc"))[Y], "y_train holds text"),
    "bytes labels": (np.array(list("abc"), dtype="S1")[Y], "y_train holds text"),
    "complex labels": (Y + 0j, "y_train is complex128"),
    "dates": (np.array(["2020-01-01"] * N, dtype="M8[D]"), "labels are class numbers"),
    "two labels each": (np.c_[Y, Y], "y_train has shape (12, 2)"),
    "soft labels": (np.full((N, 3), 1 / 3), "y_train has shape (12, 3)"),
    "several ones": (np.ones((N, 3)), "y_train has shape (12, 3)"),
    "label maps": (np.zeros((N, 6, 6), int), "y_train has shape (12, 6, 6)"),
    "a single label": (np.int64(1), "y_train has shape ()"),
    "serial numbers": (Y + 10**9, "number the classes from 0"),
    "past int64": (Y.astype(np.float64) + 1e300, "has the label 1e+300"),
    "fewer labels": (Y[:-1], "there are 12 images but 11 labels"),
    "no labels": (Y[:0], "y_train has shape (0,)"),
    "one class": (np.zeros(N, int), "a single class"),
}
BAD_IMAGES = {
    **{
        f"{np.dtype(t)} images": (GREY.astype(t), f"x_train is {np.dtype(t)} with values from 0 to")
        for t in UNKNOWN_SCALE[1:]
    },
    "int8 images": ((GREY // 2).astype(np.int8), "x_train is int8 with values from 0 to 127"),
    "complex images": (GREY + 0j, "x_train is complex128"),
    "NaN images": (changed(UNIT, (5, 0, 0), np.nan), "image 5 of x_train holds NaN"),
    "infinite images": (changed(UNIT, (0, 5, 5), -np.inf), "image 0 of x_train holds NaN or infinite"),
    "images beyond float32": (UNIT.astype(float) * 1e300, "beyond float32's"),
    "flat images": (GREY.reshape(N, -1), "x_train has shape (12, 36)"),
    "videos": (np.zeros((N, 2, 6, 6, 3), np.uint8), "x_train has shape (12, 2, 6, 6, 3)"),
    "channels first": (np.zeros((N, 3, 6, 6), np.uint8), "np.moveaxis(x_train, 1, -1)"),
    "one channel first": (np.zeros((N, 1, 28, 28), np.uint8), "looks like channels first"),
    "no images": (GREY[:0], "x_train has shape (0, 6, 6)"),
    "images without pixels": (GREY[:, :0], "x_train has shape (12, 0, 6)"),
    "text": (np.array(["a"] * N), "x_train has shape (12,)"),
    "a number": (np.float32(1), "x_train has shape ()"),
}
COLOUR = np.random.default_rng(0).integers(0, 256, (N, 6, 6, 3), dtype=np.uint8)


def rgb_of_grey() -> None:
    images_are(np.repeat(UNIT[:, None], 3, 1), GREY, preprocessing=Preprocessing(rgb=True))


def grey_floats_to_rgb() -> None:
    images_are(np.repeat(UNIT[:, None], 3, 1), UNIT, preprocessing=Preprocessing(rgb=True))


def normalised() -> None:
    how = Preprocessing(mean=(0.25,), std=(0.5,))
    images_are((UNIT[:, None] - 0.25) / 0.5, GREY, preprocessing=how)
    images_are((UNIT[:, None] - 0.25) / 0.5, UNIT, preprocessing=how)


def cut() -> None:
    images_are(UNIT[:, None, 1:5, 1:5], GREY, preprocessing=Preprocessing(4, resize=6))


def digits(preprocessing: Preprocessing) -> torch.Tensor:
    data = load_data("sklearn:digits", preprocessing=preprocessing)
    return torch.stack([data.test[i][0] for i in range(3)])  # type: ignore[arg-type]


def digits_heed_what_is_asked() -> None:
    plain = digits(Preprocessing())
    torch.testing.assert_close(digits(Preprocessing(rgb=True)), plain.expand(-1, 3, -1, -1))
    torch.testing.assert_close(digits(Preprocessing(mean=(0.3,), std=(2.0,))), (plain - 0.3) / 2)
    torch.testing.assert_close(digits(Preprocessing(6, resize=8)), plain[..., 1:7, 1:7])
    assert digits(Preprocessing(32)).shape == (3, 1, 32, 32)


def booleans() -> None:
    images_are((GREY > 40).astype(np.float32)[:, None], GREY > 40)


def standardised_floats_stay() -> None:
    x = np.random.default_rng(0).standard_normal((N, 6, 6)).astype(np.float32)
    images_are(x[:, None], x)


# -- files -----------------------------------------------------------------------------------------------


def npz(write: Callable[[Path], Any]) -> None:
    write(Path("data.npz"))
    load_data("npz:data.npz")


def save_npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, GREY)


def with_pickle(path: Path) -> None:
    x = np.array([{}], dtype=object)
    np.savez(path, allow_pickle=True, x_train=x, y_train=Y, x_test=x, y_test=Y)


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an .npy named .npz": (save_npy, "holds a single array; save the four together"),
    "an empty .npz": (Path.touch, "is damaged or no .npz file"),
    "text named .npz": (lambda p: p.write_text("x_train"), "is damaged or no .npz file"),
    "a folder named .npz": (Path.mkdir, "is damaged or no .npz file"),
    "a pickle in an .npz": (with_pickle, "is damaged or no .npz file"),
    "no .npz": (lambda p: None, "there is no file 'data.npz'"),
    "a link to nothing as .npz": (lambda p: p.symlink_to("gone"), "there is no file 'data.npz'"),
    "other names in an .npz": (lambda p: np.savez(p, images=GREY), "lacks an array"),
}


def folder(
    train: str = "abc", valid: str = "", test: str = "", spoil: Callable[[Path], Any] = lambda _: None
) -> DataSplits:
    """Four images of each class; the first letter is a class' shade."""
    for split, classes in (("train", train), ("valid", valid), ("test", test)):
        for name in classes:
            path = Path("images", split, name)
            path.mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (9, 7), (10 * ord(name) % 256, i, 0)).save(path / f"{i}.png")
    spoil(Path("images"))
    return load_data("folder:images", preprocessing=Preprocessing(4))


def names_keep_their_numbers(valid: str, test: str) -> None:
    data = folder("abc", valid, test)
    assert data.num_classes == 3
    for split, names in ((data.valid, valid), (data.test, test)):
        found = [split[i] for i in range(len(split))]  # type: ignore[arg-type]
        for x, y in found:
            assert round(float(x[0, 0, 0]) * 255) == 10 * ord("abc"[y]) % 256
        assert sorted({y for _, y in found}) == ["abc".index(name) for name in names]


def seen(data: DataSplits) -> None:
    """Look at every image."""
    for split in (data.train, data.valid, data.test):
        for i in range(len(split)):  # type: ignore[arg-type]
            split[i]


def seen_by_workers(data: DataSplits) -> None:
    list(torch.utils.data.DataLoader(data.train, 2, num_workers=1))


def first_png(path: Path) -> Path:
    return path / "train" / "a" / "0.png"


def cut_short(path: Path) -> None:
    whole = first_png(path).read_bytes()
    first_png(path).write_bytes(whole[: len(whole) // 2])


def deep(path: Path) -> None:
    Image.fromarray(np.full((7, 9), 40000, np.uint16)).save(first_png(path))


def link_to_nothing(path: Path) -> None:
    first_png(path).unlink()
    first_png(path).symlink_to("gone.png")


def not_images(path: Path) -> None:
    (path / "train" / "a" / "notes.txt").write_text("thesis")
    (path / "train" / ".cache").mkdir()
    (path / "train" / "README").write_text("")


def one_of_other_modes(path: Path) -> None:
    for i, mode in enumerate(("L", "LA", "RGBA", "P")):
        Image.new(mode, (9, 7)).save(path / "train" / "a" / f"{i}.png")


def empty_class(path: Path) -> None:
    (path / "train" / "d").mkdir()


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an empty image": (lambda p: first_png(p).write_bytes(b""), "0.png' is empty; delete it"),
    "text named .png": (lambda p: first_png(p).write_text("thesis"), "is no image, or damaged"),
    "an image cut short": (cut_short, "is no image, or damaged"),
    "a link to nothing": (link_to_nothing, "is a link to nothing"),
    "an image of 16 bits": (deep, "has more than 8 bits per channel"),
    "a class without images": (empty_class, "the class folder 'images/train/d' has no images"),
    "a file in the place of a folder": (
        lambda p: (p / "train").rename(p / "x") and (p / "train").write_text(""),
        "has a folder 'valid', but none called 'train'",
    ),
}


# -- data sets of one's own ------------------------------------------------------------------------------


class Given(Dataset[Any]):
    """Examples as they are."""

    def __init__(self, *examples: Any) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Any:
        return self.examples[i]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(0, 0)])


class Counted(Stream):
    def __len__(self) -> int:
        return 1


PAIR = TensorDataset(torch.zeros(4, 1), torch.arange(4))


def own(split: Any) -> int:
    """What is made of a training set of somebody's own."""
    require_examples("my:data", (split, PAIR, PAIR))
    return count_classes("my:data", (split, PAIR, PAIR))


def classes_are(expected: int, split: Any) -> None:
    assert own(split) == expected


X = torch.zeros(1)
OWN_BAD = {
    "an IterableDataset": (Stream(), "are a Stream, which cannot be asked for its i-th example"),
    "an IterableDataset with a length": (Counted(), "cannot be asked for its i-th example"),
    "a generator": ((i for i in range(3)), "cannot be asked for its i-th example"),
    "none": (None, "cannot be asked for its i-th example"),
    "an empty list": ([], "the train data of 'my:data' are empty"),
    "an empty data set": (TensorDataset(torch.zeros(0, 1), torch.zeros(0)), "are empty"),
    "images alone": (Given(X, X), "example 0 of the train data of 'my:data' is no pair"),
    "triples": (Given((X, 1, 2)), "is no pair (x, y)"),
    "a half label": (Given((X, 0), (X, 0.5)), "example 1 of the train data of 'my:data' has the label 0.5"),
    "a float label": (Given((X, 1.0)), "has the label 1.0"),
    "float tensors": (TensorDataset(X.expand(4, 1), torch.arange(4.0)), "example 0 of the train data"),
    "one-hot tensors": (TensorDataset(X.expand(4, 1), torch.eye(4)), "example 0 of the train data"),
    "a column": (TensorDataset(X.expand(4, 1), torch.arange(4)[:, None]), "has the label tensor([0])"),
    "text": (Given((X, "cat")), "has the label 'cat'"),
    "no label": (Given((X, None)), "has the label None"),
    "a negative label": (Given((X, 1), (X, -1)), "example 1 of the train data of 'my:data' has the label -1"),
    "several label sets": (Given((X, {"a": 1})), "or a DataSplits with num_classes"),
}
OWN_GOOD = {
    "a list": ([(X, 1), (X, 5)], 6),
    "NumPy's numbers": (Given((X, np.uint8(7))), 8),
    "tensors": (Given((X, torch.tensor(6))), 7),
    "booleans": (Given((X, True)), 4),
    "a subset without the last class": (
        Subset(TensorDataset(torch.zeros(9, 1), torch.arange(9)), [0, 5, 2]),
        6,
    ),
}


def known_without_images() -> None:
    class Never(TensorDataset):
        def __getitem__(self, i: Any) -> Any:
            raise AssertionError("an image was loaded")

    data = Never(torch.zeros(6, 1), torch.tensor([3, 1, 2, 0, 5, 4]))
    labels = known_labels(Subset(Subset(data, [5, 4, 3, 0]), [0, 3]))
    assert labels is not None
    assert labels.tolist() == [4, 3]
    assert known_labels(Given((X, 1))) is None


def known_of_folders_and_arrays() -> None:
    for data in (folder("ab"), arrays()):
        labels = known_labels(data.train)
        assert labels is not None
        assert labels.tolist() == [data.train[i][1] for i in range(len(labels))]


# -- how images are to be prepared -----------------------------------------------------------------------

PREPARED: dict[str, tuple[Callable[[], Any], str]] = {
    "two means for one channel": (
        lambda: arrays(preprocessing=Preprocessing(mean=(0.1, 0.2), std=(1.0, 1.0))),
        "2 means and standard deviations for images of 1 channels",
    ),
    "three means for digits": (
        lambda: digits(Preprocessing(mean=(0.1,) * 3, std=(1.0,) * 3)),
        "3 means and standard deviations for images of 1 channels",
    ),
    "RGB of five channels": (
        lambda: arrays(np.zeros((N, 6, 6, 5), np.uint8), preprocessing=Preprocessing(rgb=True)),
        "an image of 5 channels cannot be made RGB",
    ),
    "a mean without a deviation": (lambda: Preprocessing(mean=(0.5,)), "1 means and 0 standard deviations"),
    "a deviation of 0": (lambda: Preprocessing(mean=(0.5,), std=(0.0,)), "a standard deviation is 0"),
    "a negative deviation": (lambda: Preprocessing(mean=(0.5,), std=(-1.0,)), "positive deviations"),
    "a NaN deviation": (lambda: Preprocessing(mean=(0.5,), std=(float("nan"),)), "positive deviations"),
    "an infinite mean": (lambda: Preprocessing(mean=(float("inf"),), std=(1.0,)), "give finite means"),
    "a size of 0": (lambda: Preprocessing(size=0), "cut to 0 pixels"),
    "a resize of 0": (lambda: Preprocessing(resize=0), "cannot be resized to 0 pixels"),
    "a crop larger than the image": (lambda: Preprocessing(size=8, resize=4), "cut to 8 pixels"),
    "floats of 0..255 with a mean of 0..1": (
        lambda: arrays(GREY.astype(np.float32), preprocessing=Preprocessing(mean=(0.5,), std=(0.5,))),
        "x_train has values from 0 to 255, and the mean",
    ),
    "standardised floats with a mean": (
        lambda: arrays(UNIT - 0.5, preprocessing=Preprocessing(mean=(0.5,), std=(0.5,))),
        "x_train has values from -0.5 to",
    ),
    "a size for data that make their own images": (
        lambda: load_data("tests.analysis.small:data", preprocessing=Preprocessing(32)),
        "makes its own images",
    ),
    "--rgb for data that make their own images": (
        lambda: load_data("tests.analysis.small:data", preprocessing=Preprocessing(rgb=True)),
        "give the function a parameter `preprocessing`",
    ),
    "--mean for data that make their own images": (
        partial(
            command, "probe", "--model", "tests.analysis.small:model", "--data", "tests.analysis.small:data",
            "--run", "run", "--mean", "0.5", "--std", "0.5",
        ),
        "makes its own images",
    ),
}  # fmt: skip


def the_function_gets_what_is_asked() -> None:
    Path("heeding.py").write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "def data(preprocessing):\n"
        "    part = TensorDataset(torch.zeros(4, 1, preprocessing.size, 2), torch.arange(4) % 2)\n"
        "    return part, part, part\n"
    )
    data = load_data("heeding:data", preprocessing=Preprocessing(11))
    assert data.train[0][0].shape == (1, 11, 2)


def same_data_two_label_sets() -> None:
    data = data_with_two_labels()
    assert data.fingerprint() == data_with_two_labels().fingerprint()


def unsplittable(n: int) -> DataSplits:
    np.savez("data.npz", x_train=GREY[:n], y_train=Y[:n], x_test=GREY, y_test=Y)
    return load_data("npz:data.npz")


def hidden_files_are_left_out() -> None:
    data = folder("ab", spoil=not_images)
    assert len(data.train) + len(data.valid) + len(data.test) == 8  # type: ignore[arg-type]
    seen(data)


def workers_say_the_same() -> None:
    with pytest.raises(AnalysisError, match=r"^'images/train/a/0\.png' is no image") as refusal:
        seen_by_workers(folder(valid="abc", spoil=lambda path: first_png(path).write_text("thesis")))
    raise refusal.value


def before_extraction(train: list[int], test: list[int]) -> None:
    x = torch.zeros(6, 1, 6, 6)
    parts = [TensorDataset(x, torch.tensor(y)) for y in (train, train, test)]
    try:
        probe_model("run", model(3), DataSplits(*parts, 3), ProbeSettings(layers=("fc",)), progress=False)
    finally:
        assert not Path("run").exists(), "features were extracted first"


def trained_by_seed(seed: str) -> tuple[str, str]:
    """The table and the record of a probed model whose weights are random."""
    run = f"run{seed}"
    shown = command(
        *("probe", "--model", "torchvision:squeezenet1_1", "--data", "folder:images", "--image-size", "32"),
        *("--run", run, "--layers", "features.3", "--reduce", "avg", "--l2", "0.1", "--seed", seed),
    )
    return shown, Path(run, "results.jsonl").read_text()


def untrained_weights_are_seeded_and_named() -> None:
    folder()
    (shown, record), (again, same), (other, _) = map(trained_by_seed, "001")
    assert "untrained weights, random by seed 0" in shown
    assert '"weights": "untrained weights, random by seed 0' in record
    assert shown.replace("run0", "run") == again.replace("run0", "run")
    assert [line for line in other.splitlines() if "features.3" in line] != [
        line for line in shown.splitlines() if "features.3" in line
    ]
    assert record in same


CASES = [
    *(Case(f"{name} images", partial(images_are, UNIT[:, None], x)) for name, x in WHOLE.items()),
    *(Case(name, partial(labels_are, Y, y)) for name, y in LABELS.items()),
    Case("boolean labels", partial(labels_are, Y > 0, Y > 0, 2)),
    Case("classes without rows", partial(labels_are, 2 * Y, 2 * Y, 5)),
    *(Case(name, partial(arrays, y=y), sentence) for name, (y, sentence) in BAD_LABELS.items()),
    *(Case(f"{name} to test on", partial(arrays, test=(GREY[: np.size(y) and len(np.atleast_1d(y))], y)),
           sentence.replace("y_train", "y_test"))
      for name, (y, sentence) in BAD_LABELS.items()
      if name in ("half labels", "NaN labels", "negative labels", "text labels", "two labels each")),
    *(Case(name, partial(arrays, x), sentence) for name, (x, sentence) in BAD_IMAGES.items()),
    *(Case(f"{name} to test on", partial(arrays, test=(x, Y)), sentence.replace("x_train", "x_test"))
      for name, (x, sentence) in BAD_IMAGES.items()
      if name in ("int64 images", "NaN images", "flat images", "channels first", "complex images")),
    Case("bytes and floats", partial(arrays, test=(UNIT, Y)), "x_train is uint8 and x_test float32"),
    Case("other image sizes", partial(arrays, test=(GREY[:, :5], Y)), "make them alike"),
    Case("other channels", partial(arrays, test=(COLOUR, Y)), "make them alike"),
    Case("too few to set some aside", partial(unsplittable, 5), "5 examples are too few"),
    Case("just enough to set some aside", partial(unsplittable, 6)),
    Case("boolean images", booleans),
    Case("standardised floats", standardised_floats_stay),
    Case("grey to RGB", rgb_of_grey),
    Case("grey floats to RGB", grey_floats_to_rgb),
    Case("a mean of one's own", normalised),
    Case("a crop", cut),
    Case("digits heed size, channels, mean", digits_heed_what_is_asked),
    *(Case(name, partial(npz, write), sentence) for name, (write, sentence) in FILES.items()),
    *(Case(f"valid {v}, test {t}", partial(names_keep_their_numbers, v, t))
      for v, t in (("abc", "abc"), ("bc", "c"), ("b", "ac"), ("c", "b"))),
    Case("a class only to test on", partial(folder, "ab", "ab", "abz"), "'images/test' has the class 'z'"),
    Case("a class only to validate on", partial(folder, "ab", "z"), "'images/valid' has the class 'z'"),
    Case("one class of images", partial(folder, "a"), "a single class"),
    *(Case(name, lambda spoil=spoil: seen(folder(valid="abc", spoil=spoil)), sentence)
      for name, (spoil, sentence) in SPOILT.items()),
    Case("damaged images found by a worker", workers_say_the_same, "is no image, or damaged"),
    Case("files that are no images", hidden_files_are_left_out),
    Case("grey, transparent and palette images", lambda: seen(folder(spoil=one_of_other_modes))),
    *(Case(f"{name} of one's own", partial(own, split), sentence)
      for name, (split, sentence) in OWN_BAD.items()),
    *(Case(f"{name} of one's own", partial(classes_are, n, split)) for name, (split, n) in OWN_GOOD.items()),
    Case("labels without images", known_without_images),
    Case("labels of folders and arrays", known_of_folders_and_arrays),
    *(Case(name, use, sentence) for name, (use, sentence) in PREPARED.items()),
    Case("a function that heeds preprocessing", the_function_gets_what_is_asked),
    Case("a label out of range", partial(before_extraction, [0, 1, 2, 3, 0, 1], [0] * 6),
         "train has label 3, which is out of range: with num_classes=3"),
    Case("a label out of range to test on", partial(before_extraction, [0, 1, 2] * 2, [0, 1, 2, 0, 1, 5]),
         "test has label 5, which is out of range"),
    Case("a class to test on that was not trained", partial(before_extraction, [0, 1] * 3, [0, 2] * 3),
         "test has rows of class 2, which train has none of"),
    Case("the same label everywhere", partial(before_extraction, [1] * 6, [1] * 6),
         "all rows of train have label 1"),
    Case("a label below 0", partial(before_extraction, [0, 1] * 3, [0, -1] * 3), "test has label -1"),
    Case("untrained weights", untrained_weights_are_seeded_and_named),
    Case("a fingerprint of two label sets", same_data_two_label_sets),
]  # fmt: skip
