"""Do the tests notice small changes of the code? A random sample of mutants, or all of them.

    python scripts/mutants.py ['probes.fit.*' ...] [--sample 200] [--seed 0]

mutmut makes the mutants of the files that pyproject.toml names and runs, for each, the tests that reach its
function; this draws a sample of those that match a pattern, says for each file how many died, with a 95 %
interval over all, and shows the changes that nobody noticed. Whether one of them is equivalent (changes no
result) is for a reader to say. The first call learns which test reaches which function, which takes as long
as the tests themselves.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

from scipy.stats import binomtest

STATS = Path("mutants/mutmut-stats.json")
SURVIVED, NO_TESTS = 0, 33


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("patterns", nargs="*", default=["*"], help="names of mutants (default: all)")
    parser.add_argument("--sample", type=int, help="how many (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    options = parser.parse_args()

    mutmut("run", "none")  # makes the mutants and the statistics, and then finds nothing to run
    if not STATS.exists():
        sys.exit("mutmut could not run the tests; see its message above.")
    names = sorted(n for n in exit_codes() if any(fnmatch(n, pattern) for pattern in options.patterns))
    if not names:
        sys.exit(f"no mutant matches {' '.join(options.patterns)}.")
    chosen = names
    if options.sample is not None and options.sample < len(names):
        chosen = random.Random(options.seed).sample(names, options.sample)
    reached = json.loads(STATS.read_text())["tests_by_mangled_function_name"]
    tested = [name for name in chosen if reached.get(name.rpartition("__mutmut_")[0])]
    if tested:
        mutmut("run", "--max-children", "2", *tested)
    report(chosen, set(tested), len(names))


def mutmut(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "mutmut", *words], check=False)


def exit_codes() -> dict[str, int | None]:
    """What became of each mutant, by name."""
    found: dict[str, int | None] = {}
    for file in Path("mutants").rglob("*.meta"):
        found |= json.loads(file.read_text())["exit_code_by_key"]
    return found


def report(chosen: list[str], tested: set[str], of: int) -> None:
    codes = exit_codes()
    alive = [n for n in chosen if n not in tested or codes[n] in (SURVIVED, NO_TESTS)]
    for name in alive:
        subprocess.run([sys.executable, "-m", "mutmut", "show", name], check=False)
    tried, survived = (Counter(n.partition(".x")[0] for n in names) for names in (chosen, alive))
    for file in sorted(tried):
        print(f"{file:40} {tried[file] - survived[file]:5} of {tried[file]:5} died")
    died = len(chosen) - len(alive)
    low, high = binomtest(died, len(chosen)).proportion_ci(method="wilson")
    print(f"{died} of {len(chosen)} tried ({of} there are) died: {died / len(chosen):.1%}")
    if len(chosen) < of:
        print(f"95 % interval over all: {low:.1%} to {high:.1%}")


if __name__ == "__main__":
    main()
