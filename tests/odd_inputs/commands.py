"""Words on the command line that nobody should have typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import Case, Refused, command

SMALL = ("--model", "tests.analysis.small:model", "--data", "tests.analysis.small:data")
TRAIN = (
    "train",
    "--epochs",
    "1",
    "--fit-epochs",
    "1",
    "--batch-size",
    "60",
    "--probe",
    "input",
    "--run",
    "run",
)
ODD = "tests.analysis.odd:"


def typed(*words: str) -> Callable[[], Any]:
    """A command that leaves nothing behind when it is refused."""

    def use() -> None:
        before = sorted(Path().rglob("*"))
        try:
            command(*words)
        except Refused:
            assert sorted(Path().rglob("*")) == before
            raise

    return use


def train(*words: str) -> Callable[[], Any]:
    return typed(*TRAIN, *SMALL, *words)


def numbers() -> list[Case]:
    """Every numeric option of every command, with numbers that mean nothing."""
    trained, hessian, probe = (*TRAIN, *SMALL), ("hessian", "--run", "run"), ("probe", "--run", "run")
    above = "must be a finite number above 0"
    options: dict[tuple[str, ...], dict[str, dict[str, str]]] = {
        trained: {
            "lr": {
                "-1": above,
                "0": above,
                "nan": above,
                "inf": above,
                "1e400": above,
                "fast": "invalid float",
            },
            "probe-lr": {"-1": above, "0": above, "nan": above, "-inf": "expected one argument"},
            "epochs": {"0": "no positive whole", "-1": "no positive whole", "1.5": "no positive whole"},
            "batch-size": {"0": "no positive whole", "²": "no positive whole", "1e3": "no positive whole"},
            "fit-epochs": {
                "0": "no positive whole",
                "": "no positive whole",
                "9" * 5000: "no positive whole",
            },
            "workers": {"-1": "no whole number", "1.5": "no whole number", "٣": "no whole number"},
            "image-size": {"0": "no positive whole", "-8": "no positive whole", "8x8": "no positive whole"},
            "seed": {"-1": "no whole number", str(2**32): "below 2^32", str(2**60): "below 2^32"},
        },
        hessian: {
            "tol": {"0": above, "-1": above, "nan": above, "2": "at most 1", "tight": "invalid float"},
            "subset": {"0": above, "-0.5": above, "nan": above, "1.5": "at most 1", "50": "at most 1"},
            "largest": {"-1": "no whole number", "2.5": "no whole number"},
            "smallest": {"-1": "no whole number", "all": "no whole number"},
            "line-searches": {"-1": "no whole number"},
            "steps": {"-1": "no whole number", "last": "no whole number"},
            "seed": {"-1": "no whole number", str(2**60): "below 2^32"},
        },
        probe: {
            "l2": {
                "0": "l2 must be finite",
                "-1": "l2 must be finite",
                "nan": "l2",
                "inf": "l2",
                "x": "invalid",
            },
            "examples": {"-1": "no whole number", "all": "no whole number"},
            "batch-size": {"0": "no positive whole", "-4": "no positive whole"},
            "workers": {"-1": "no whole number"},
            "steps": {"-1": "no whole number"},
            "seed": {"-1": "no whole number", str(2**60): "below 2^32"},
        },
    }
    return [
        Case(f"{words[0]} --{option} {value[:12]!r}", typed(*words, f"--{option}", value), sentence)
        for words, of_command in options.items()
        for option, values in of_command.items()
        for value, sentence in values.items()
    ]


def schedules() -> list[Case]:
    wrong = (
        "every:²",
        "every:0",
        "every:-1",
        "every:",
        "log",
        "log:1e3",
        "daily",
        "",
        "epoch:2",
        " none",
        "log:²",
    )
    return [
        *(
            Case(f"--{option} {text!r}", train(f"--{option}", text), "is no schedule; write log:20")
            for option in ("evaluate", "snapshots")
            for text in wrong
        ),
        Case("--snapshots log:1000000000", train("--snapshots", "log:1000000000"), "more than a million"),
        Case(
            "measuring at each of a hundred million steps",
            train("--epochs", "100000000", "--evaluate", "every:1"),
            "means 200,000,000 times, more than a million",
        ),
        Case("a billion epochs, each measured", train("--epochs", "1000000000"), "more than a million"),
    ]


def words() -> list[Case]:
    """Commands, options and names that are not there."""
    devices = [
        Case(f"--device {device!r}", train("--device", device), f"there is no device {device!r} here")
        for device in (
            "meta",
            "quantum",
            "",
            "cpu:x",
            "gpu",
            "cuda:99",
            *(() if torch.cuda.is_available() else ("cuda",)),
        )
    ]
    return [
        *devices,
        Case("a command with a slip", typed("tarin"), "there is no command 'tarin'; did you mean train?"),
        Case(
            "a command of another tool", typed("evaluate"), "there is no command 'evaluate'; the nearest are"
        ),
        Case(
            "an option with a slip",
            typed("train", "--modle", "x"),
            "there is no option --modle; the nearest are --model",
        ),
        Case("an option of another command", typed("layers", "--run", "x"), "there is no option --run"),
        Case("an option before the command", typed("--run", "x", "layers"), "there is no option --run"),
        Case("an option that may mean two", train("--p", "x"), "there is no option --p"),
        Case("no command", typed(), "the following arguments are required: COMMAND"),
        Case("a word too many", train("--resume", "now"), "unrecognized arguments: now"),
        Case("an option without its value", typed("train", "--model"), "expected one argument"),
        Case("--debug after the command changes nothing", lambda: command("layers", "--debug", "--help")),
        Case("an unfinished class in a glob", train("--probe", "[a"), "no layer matches '[a'"),
        Case(
            "a range the wrong way round",
            train("--probe", "[z-a]"),
            "'[z-a]' is no pattern of names: bad character range",
        ),
        Case("an empty layer", train("--probe", ""), "no layer matches ''"),
        Case("a layer that is not there", train("--probe", "cnv"), "the nearest names are conv"),
        Case("everything left out", train("--exclude", "input"), "no layer"),
        Case("a reduction that is none", train("--reduce", "median"), "unknown reduction 'median'"),
        Case(
            "an optimizer in capitals",
            train("--optimizer", "Adam"),
            "unknown optimizer 'Adam'; use sgd, adam",
        ),
        Case("layers of no model", typed("layers", "--model", "resnet18"), "does not say where to look"),
        Case(
            "layers of a shape that is none",
            typed("layers", "--model", "torchvision:resnet18", "--input", "big"),
            "is no shape",
        ),
        Case(
            "a run of nothing",
            typed("hessian", "--run", "nowhere"),
            "'nowhere' is no run of thermoscope train",
        ),
        Case(
            "probing a run of nothing",
            typed("probe", "--run", "nowhere"),
            "'nowhere' is no run of thermoscope train",
        ),
        Case(
            "no eigenpair at all",
            typed("hessian", "--run", "run", "--largest", "0", "--smallest", "0"),
            "ask for one eigenpair",
        ),
        Case(
            "a model without data",
            typed("probe", "--run", "run", "--model", "torchvision:resnet18"),
            "--model needs --data",
        ),
        Case(
            "features of a type that is none",
            typed("probe", "--run", "run", "--dtype", "float64"),
            "invalid choice: 'float64'",
        ),
        Case(
            "a palette that is none",
            typed("probe", "--run", "run", "--palette", "grey"),
            "invalid choice: 'grey'",
        ),
        Case(
            "a control that is none",
            typed("probe", "--run", "run", "--controls", "magic"),
            "invalid choice: 'magic'",
        ),
        Case("to resume nothing", train("--resume"), "there is no run in 'run' to resume"),
    ]


def user_code() -> list[Case]:
    """Models and data of the user's own that are not what is needed."""

    def with_model(name: str) -> Callable[[], Any]:
        return typed(*TRAIN, "--model", ODD + name, "--data", SMALL[3])

    def with_data(name: str) -> Callable[[], Any]:
        return typed(*TRAIN, "--model", SMALL[1], "--data", ODD + name)

    return [
        Case(
            "a model that returns a dict without logits",
            with_model("dict_without_logits"),
            "returns a dict without logits",
        ),
        Case("a model that returns None", with_model("none_model"), "returns a NoneType without logits"),
        Case(
            "a model that returns nothing in a tuple",
            with_model("empty_tuple_model"),
            "returns a tuple without logits",
        ),
        Case("a model that returns text", with_model("text_model"), "returns a str without logits"),
        Case("a model that detaches its output", with_model("detached_model"), "no gradient reaches"),
        Case("a model that returns one number", with_model("scalar_model"), "the cross-entropy wants logits"),
        Case("a model with too few outputs", with_model("too_few_outputs"), "the model returns (2, 1)"),
        Case("a model that returns maps", with_model("maps_model"), "the model returns (2, 3, 2, 2)"),
        Case(
            "a model whose forward fails",
            with_model("failing_model"),
            "cannot take images of shape (1, 6, 6): 'somewhere'",
        ),
        Case(
            "a model whose forward fails in training alone",
            lambda: command(*TRAIN, "--model", ODD + "failing_late", "--data", SMALL[3]),
            "ZeroDivisionError: in my own forward (",
        ),
        Case("a frozen model", with_model("frozen_model"), "has no parameters to train"),
        Case("a model without parameters", with_model("without_parameters"), "has no parameters to train"),
        Case("no model at all", with_model("no_module"), "returned a str, not a torch.nn.Module"),
        Case(
            "a builder that fails", with_model("failing_builder"), "ValueError: no configuration found (in "
        ),
        Case("a builder that wants more", with_model("demanding_builder"), "TypeError: "),
        Case("a function that is not there", with_model("nothing"), "has no function 'nothing'"),
        Case(
            "a module that is not there",
            typed(*TRAIN, "--model", "no_such:model", *SMALL[2:]),
            "there is no module 'no_such'",
        ),
        Case("an empty training set", with_data("empty_training"), "are empty"),
        Case("images of different shapes", with_data("ragged"), "of the same shape"),
        Case("pictures that are text", with_data("text_inputs"), "an example must be a tensor"),
        Case("labels between the classes", with_data("float_labels"), "class numbers"),
        Case("a label beyond the classes", with_data("label_too_large"), "class numbers"),
    ]


def own_modules() -> list[Case]:
    """Files of the user's own with a fault in them; the sentence says where it is."""

    def broken(name: str, text: str) -> Callable[[], Any]:
        def use() -> None:
            Path(f"{name}.py").write_text(text)
            command("layers", "--model", f"{name}:build", "--input", "1x6x6")

        return use

    return [
        Case(
            "a module that is no Python", broken("odd_syntax", "def build(:\n"), "SyntaxError: invalid syntax"
        ),
        Case(
            "a module that fails at once",
            broken("odd_import", "1 / 0\n"),
            "ZeroDivisionError: division by zero (in ",
        ),
        Case(
            "a module that wants another one",
            broken("odd_wants", "import no_such_thing\n"),
            "there is no module 'no_such_thing' (wanted by 'odd_wants')",
        ),
        Case(
            "a builder with a slip",
            broken("odd_slip", "def build():\n    return modle()\n"),
            "NameError: name 'modle' is not defined",
        ),
    ]


def images() -> list[Case]:
    """Sizes that a model cannot take."""

    def npz(*shape: int) -> None:
        rng = np.random.default_rng(0)
        x, y = rng.integers(0, 255, (24, *shape), dtype=np.uint8), np.arange(24) % 3
        np.savez("data.npz", x_train=x, y_train=y, x_test=x, y_test=y)

    def sized(model: str, *shape: int, words: tuple[str, ...] = ()) -> Callable[[], Any]:
        def use() -> None:
            npz(*shape)
            command(*TRAIN, "--model", model, "--data", "npz:data.npz", *words)

        return use

    return [
        Case(
            "a ViT at another size",
            sized("torchvision:vit_b_16", 32, 32, 3),
            "cannot take images of shape (3, 32, 32): Wrong image height",
        ),
        Case("grey images for a ResNet", sized("torchvision:resnet18", 32, 32), "--rgb gives three channels"),
        Case("images too small to pool", sized(SMALL[1], 2, 2), "cannot take images of shape (1, 2, 2)"),
    ]


def shapes() -> list[Case]:
    """`thermoscope layers` for inputs that are none, or that the model cannot take."""

    def listed(shape: str, model: str = SMALL[1]) -> Callable[[], Any]:
        return typed("layers", "--model", model, "--input", shape)

    none, cannot = "is no shape; write it as 3x224x224", "the model cannot take inputs of shape"
    wrong = {
        "": none,
        "1x6x": none,
        "²x6x6": none,
        "1x-6x6": none,
        "1.5x6x6": none,
        "6,6": none,
        "3x6x6": f"{cannot} 3x6x6: Given groups=1",
        "1x2x2": f"{cannot} 1x2x2: Calculated padded input size",
        "36": f"{cannot} 36",
    }
    return [
        *(Case(f"layers for inputs of {shape!r}", listed(shape), text) for shape, text in wrong.items()),
        Case(
            "layers of a ViT at another size",
            listed("3x32x32", "torchvision:vit_b_16"),
            f"{cannot} 3x32x32: Wrong image height",
        ),
    ]


CASES = [*numbers(), *schedules(), *words(), *user_code(), *own_modules(), *images(), *shapes()]
