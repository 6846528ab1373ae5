"""A command line that answers a mistyped word with the nearest ones."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from typing import Any

from thermoscope.nearest import nearest

__all__ = ["CommandParser"]


class CommandParser(argparse.ArgumentParser):
    """Looks at the words before anything else is asked for, such as options that are missing."""

    def parse_known_args(  # type: ignore[override]  # one of its overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Refuse a command or an option that is not there, with exit status 2."""
        commands = self._commands()
        for word in args or ():
            if word == "--":
                break
            if word.startswith("--"):
                self._require_option(word.partition("=")[0])
            elif commands and not word.startswith("-"):
                if word not in commands:
                    self.error(f"there is no command {word!r}; {_nearest(word, commands)}")
                break  # what follows is the command's
        return super().parse_known_args(args, namespace)

    def _commands(self) -> Collection[str]:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return list(action.choices)
        return ()

    def _require_option(self, word: str) -> None:
        known = [name for name in self._option_string_actions if name.startswith("--")]
        if word not in known and sum(name.startswith(word) for name in known) != 1:
            self.error(f"there is no option {word}; {_nearest(word, known)}")


def _nearest(word: str, known: Collection[str]) -> str:
    close = nearest(word, sorted(known), count=3)
    return f"the nearest are {', '.join(close)}" if len(close) > 1 else f"did you mean {close[0]}?"
