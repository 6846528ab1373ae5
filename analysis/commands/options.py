"""Command-line options that have their defaults from a settings class."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["count", "folder", "option_of", "positive", "settings_from"]

T = TypeVar("T")


def option_of(settings: type, group: Any, name: str, text: str, **kwargs: Any) -> None:
    """An option of the settings' field of that name, with its default."""
    default = {field.name: field.default for field in fields(settings)}[name.replace("-", "_")]
    shown = "" if default in (None, False, ()) else f" (default: {_shown(default)})"
    group.add_argument(f"--{name}", default=default, help=text + shown, **kwargs)


def settings_from(options: argparse.Namespace, settings: type[T]) -> T:
    """The settings that the options of these names say."""
    names = {field.name for field in fields(settings)}  # type: ignore[arg-type]
    chosen = {name: value for name, value in vars(options).items() if name in names}
    return settings(**{n: tuple(v) if isinstance(v, list) else v for n, v in chosen.items()})


def positive(text: str) -> int:
    """A whole number above 0."""
    if not _is_whole(text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no positive whole number")
    return int(text)


def count(text: str) -> int:
    """A whole number, 0 included."""
    if not _is_whole(text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number")
    return int(text)


def folder(text: str) -> Path:
    """A folder's name."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("give the name of a folder")
    return Path(text)


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20  # "²" is a digit, too


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
