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

from mutmut.stats import status_by_exit_code
from scipy.stats import binomtest

STATS = Path("mutants/mutmut-stats.json")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("patterns", nargs="*", default=["*"], help="names of mutants (default: all)")
    parser.add_argument("--sample", type=int, help="how many (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument("--children", default="2", help="processes (default: 2)")
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
        mutmut("run", "--max-children", options.children, *tested)
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
    became = {n: status_by_exit_code[codes[n]] if n in tested else "no tests" for n in chosen}
    alive = [name for name, status in became.items() if status in ("survived", "no tests")]
    died = [name for name, status in became.items() if status in ("killed", "timeout")]
    for name in alive:
        subprocess.run([sys.executable, "-m", "mutmut", "show", name], check=False)
    tried, dead = (Counter(n.partition(".x")[0] for n in names) for names in (alive + died, died))
    for file in sorted(tried):
        print(f"{file:40} {dead[file]:5} of {tried[file]:5} died")
    for status, count in sorted(Counter(became.values()).items()):
        print(f"{count:5} {status}")
    if not tried:
        sys.exit("none was tried.")
    low, high = binomtest(len(died), len(alive + died)).proportion_ci(method="wilson")
    print(
        f"{len(died)} of {len(alive + died)} tried ({of} there are) died: {len(died) / len(alive + died):.1%}"
    )
    if len(alive + died) < of:
        print(f"95 % interval over all: {low:.1%} to {high:.1%}")


if __name__ == "__main__":
    main()
