"""Run directories that were cut, edited, or are none, and results that are none."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from analysis import Logged, Run
from analysis.jobs.train import train
from analysis.results.spectrum import load_shares, load_spectrum
from probes import ProbeResult

from ..analysis.small import SETTINGS, model
from ..analysis.test_runs import RESULT
from . import Case, Refused, command

NAMES = ("--model", SETTINGS.model, "--data", SETTINGS.data)
TRAIN = ("train", *NAMES, "--epochs", "1", "--fit-epochs", "1", "--batch-size", "60", "--probe", "input")
SHORT = replace(
    SETTINGS, epochs=1, fit_epochs=1, batch_size=60, probe=("input",), evaluate="epoch", snapshots="log:1"
)


@cache
def finished() -> Path:
    """A run that was trained, for all cases together."""
    folder = tempfile.TemporaryDirectory()
    _kept.append(folder)
    train(SHORT, Path(folder.name, "run"), progress=False)
    return Path(folder.name, "run")


_kept: list[tempfile.TemporaryDirectory[str]] = []


def resume() -> str:
    return command(*TRAIN, "--snapshots", "log:1", "--resume", "--run", "run")


def hessian() -> str:
    return command("hessian", "--run", "run", "--largest", "1", "--smallest", "0", "--line-searches", "0")


def probe() -> str:
    return command("probe", "--run", "run", "--layers", "input", "--l2", "0.1")


def damaged(file: str, damage: Callable[[Path], Any], use: Callable[[], Any] = resume) -> Callable[[], Any]:
    """Damage a file of a finished run and go on with it: a refusal changes nothing."""

    def run() -> None:
        shutil.copytree(finished(), "run")
        damage(Path("run", file))
        before = contents()
        try:
            use()
        except Refused:
            now = contents()
            assert now == before if use is resume else now.items() >= before.items()
            raise

    return run


def contents() -> dict[Path, bytes | None]:
    """All that is in the run."""
    return {path: path.read_bytes() if path.is_file() else None for path in Path("run").rglob("*")}


def holds(content: bytes | str) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(share: float) -> Callable[[Path], Any]:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


# -- resume.pt -----------------------------------------------------------------------------------------


def saved(**changes: Any) -> Callable[[Path], Any]:
    """The checkpoint with other contents; None takes one away."""

    def damage(path: Path) -> None:
        state = {**torch.load(path, weights_only=True), **changes}
        torch.save({key: value for key, value in state.items() if value is not None}, path)

    return damage


class _Poison:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("poisoned"),)


def not_poisoned(path: Path) -> None:
    torch.save({"step": _Poison()}, path)


def checkpoints() -> list[Case]:
    other = {name: tensor[:1] for name, tensor in model(3).state_dict().items() if tensor.ndim}
    foreign, broken = (
        "is no checkpoint of this run; delete it to start this run anew",
        "resume.pt' is damaged",
    )
    kinds: dict[str, tuple[Callable[[Path], Any], str]] = {
        "empty": (holds(b""), broken),
        "text": (holds("step 3"), broken),
        "cut to a half": (cut(0.5), broken),
        "cut by a little": (cut(0.99), broken),
        "zeros": (lambda path: path.write_bytes(bytes(path.stat().st_size)), broken),
        "with code in it": (not_poisoned, broken),
        "a folder": (folder, broken),
        "a link to itself": (link_to_itself, broken),
        "a list": (lambda path: torch.save([1, 2], path), "holds a list, no checkpoint"),
        "a number": (lambda path: torch.save(3, path), "holds a int, no checkpoint"),
        "a dict of something else": (lambda path: torch.save({"epoch": 3}, path), foreign),
        "without the model": (saved(model=None), foreign),
        "without the streams": (saved(random=None), foreign),
        "with half of the streams": (saved(random={"python": (3, [], None)}), foreign),
        "of a step that is none": (saved(step="third"), foreign),
        "of a step before the first": (saved(step=-1), foreign),
        "of a step beyond the last": (saved(step=10**6), foreign),
        "of another model": (saved(model=other), foreign),
        "of another optimizer": (saved(optimizer={"state": {}, "param_groups": []}), foreign),
        "of no probes": (saved(probes={}), foreign),
        "with losses that are none": (saved(losses=["low"]), foreign),
        "with losses that are one number": (saved(losses=3), foreign),
    }
    return [Case(f"resume.pt {name}", damaged("resume.pt", *how[:1]), how[1]) for name, how in kinds.items()]


# -- results.jsonl, config.json, settings.json ---------------------------------------------------------


def lines(*added: str, at: int = 0) -> Callable[[Path], Any]:
    def damage(path: Path) -> None:
        there = path.read_text().splitlines()
        path.write_text("\n".join([*there[:at], *added, *there[at:]]) + "\n")

    return damage


def edited(kind: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """Change the lines of a kind."""

    def damage(path: Path) -> None:
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            if record["kind"] == kind:
                change(record)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))

    return damage


def as_before(damage: Callable[[Path], Any]) -> Callable[[], Any]:
    """A damage that takes nothing away: the finished run is found finished."""

    def use() -> None:
        damaged("results.jsonl", damage)()
        assert Path("run/results.jsonl").read_bytes() == (finished() / "results.jsonl").read_bytes()

    return use


def results() -> list[Case]:
    first = "line 1 of 'run/results.jsonl' is damaged; delete that line"
    wrong = {
        "that is no UTF-8": b"\xff\xfe{}",
        "of zeros, as a crash of the machine leaves it": bytes(20),
        "that is an array": b"[1, 2]",
        "that is a number": b"3",
        "without a step": b'{"kind": "scalars"}',
        "without a kind": b'{"step": 3}',
        "whose step is text": b'{"step": "3", "kind": "scalars"}',
        "that is nested without end": b"[" * 100_000,
        "of a result cut in half": b'{"step": 3, "kind": "ProbeRes',
        "that is empty": b"",
    }
    version = "was edited, or is another version's; delete that line to go on"
    return [
        *(
            Case(
                f"a line {name}",
                damaged("results.jsonl", lambda p, line=line: p.write_bytes(line + b"\n" + p.read_bytes())),
                first,
            )
            for name, line in wrong.items()
        ),
        Case(
            "a half last line",
            as_before(lambda path: path.write_bytes(path.read_bytes() + b'{"step": 3, "ki')),
        ),
        Case(
            "a last line that ends within a letter",
            as_before(lambda path: path.write_bytes(path.read_bytes() + b'{"\xc3')),
        ),
        Case(
            "a result with another field",
            damaged("results.jsonl", edited("ProbeResult", lambda r: r["readings"][0].update(auroc=1))),
            version,
        ),
        Case(
            "a result with a field less",
            damaged("results.jsonl", edited("ProbeResult", lambda r: r.pop("split"))),
            version,
        ),
        Case(
            "a result whose readings are none",
            damaged("results.jsonl", edited("ProbeResult", lambda r: r.update(readings=3))),
            version,
        ),
        Case(
            "results that are a folder",
            damaged("results.jsonl", folder),
            "cannot read 'run/results.jsonl': Is a directory",
        ),
        Case(
            "results that link to themselves",
            damaged("results.jsonl", link_to_itself),
            "cannot read 'run/results.jsonl'",
        ),
        Case(
            "a spectrum of another version",
            damaged("results.jsonl", lines('{"step": 1, "kind": "Spectrum", "width": 3}'), hessian),
            version,
        ),
    ]


def configs() -> list[Case]:
    damage = "'run/config.json' is damaged; start a new run directory"
    wrong: dict[str, tuple[Callable[[Path], Any], str]] = {
        "empty": (holds(""), damage),
        "cut": (cut(0.5), damage),
        "an array": (holds("[1, 2]"), damage),
        "a list of pairs": (holds('[["lr", 1]]'), damage),
        "a number": (holds("3"), damage),
        "no UTF-8": (holds(b"\xff\xff"), damage),
        "a folder": (folder, "cannot read 'run/config.json'"),
        "a link to itself": (link_to_itself, "cannot read 'run/config.json'"),
    }
    commands = {"train": resume, "hessian": hessian, "probe": probe}
    return [
        *(
            Case(f"{command}: config.json is {name}", damaged("config.json", how, use), sentence)
            for command, use in commands.items()
            for name, (how, sentence) in wrong.items()
        ),
        *(
            Case(
                f"{command}: config.json without a setting",
                damaged("config.json", without("rgb"), use),
                "is no run of thermoscope train",
            )
            for command, use in (("hessian", hessian), ("probe", probe))
        ),
        Case(
            "train: other settings",
            damaged("config.json", with_setting(lr=0.5)),
            "was started with lr=0.5, not 0.001",
        ),
        Case(
            "train: other data",
            damaged("config.json", with_setting(data_fingerprint="0")),
            "are not those that 'run' began with",
        ),
        *(
            Case(
                f"{command}: other data",
                damaged("config.json", with_setting(data_fingerprint="0"), use),
                "not those that the run was trained on",
            )
            for command, use in (("hessian", hessian), ("probe", probe))
        ),
        Case(
            "probe: a run whose model is gone",
            damaged("config.json", with_setting(model="gone:model"), probe),
            "there is no module 'gone'",
        ),
        Case(
            "probe: a run whose data are gone",
            damaged("config.json", with_setting(data="npz:gone.npz"), probe),
            "there is no file 'gone.npz'",
        ),
    ]


def with_setting(**changes: Any) -> Callable[[Path], Any]:
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(key: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key})
    )


# -- snapshots and spectra -----------------------------------------------------------------------------


def snapshot(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], Any]:
    def damage(path: Path) -> None:
        safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path)

    return damage


def snapshots() -> list[Case]:
    def first(how: Callable[[Path], Any]) -> Callable[[], Any]:
        return damaged(
            "snapshots/step_00000000.safetensors",
            how,
            lambda: command("probe", "--run", "run", "--steps", "0"),
        )

    def foreign() -> None:
        shutil.copytree(finished(), "run")
        known = Run("run").snapshots()
        for name in ("step_best", "step_-1", "step_3", "step_٣", "step_", "step_0000000x", "last"):
            Path("run/snapshots", f"{name}.safetensors").write_bytes(b"mine")
        Path("run/snapshots/notes.txt").touch()
        assert Run("run").snapshots() == known
        assert sorted(known) == [0, 1, 2]

    def bare() -> None:
        shutil.copytree(finished(), "run")
        shutil.rmtree("run/snapshots")
        hessian()

    another = "is a checkpoint of another model"
    return [
        Case("files of the user's own among the snapshots", foreign),
        Case("no snapshots", bare, "has no snapshots; train with --snapshots"),
        Case(
            "a step without a snapshot",
            damaged("config.json", lambda p: None, lambda: command("probe", "--run", "run", "--steps", "7")),
            "has no snapshot of step 7; there are 0, 1, 2",
        ),
        Case("a snapshot cut in half", first(cut(0.5)), "is damaged"),
        Case("an empty snapshot", first(holds(b"")), "is damaged"),
        Case("a snapshot of text", first(holds("weights")), "is damaged"),
        Case("a snapshot that is a folder", first(folder), "there is no checkpoint"),
        Case("a snapshot that links to itself", first(link_to_itself), "there is no checkpoint"),
        Case(
            "a snapshot without a weight",
            first(snapshot(lambda w: {n: t for n, t in w.items() if n != "fc.bias"})),
            another,
        ),
        Case(
            "a snapshot with a weight more",
            first(snapshot(lambda w: {**w, "head.bias": torch.zeros(1)})),
            another,
        ),
        Case(
            "a snapshot of complex numbers",
            first(snapshot(lambda w: {**w, "fc.bias": w["fc.bias"] + 1j})),
            "'fc.bias' is complex64 there",
        ),
        Case(
            "a snapshot of whole numbers",
            first(snapshot(lambda w: {**w, "fc.bias": w["fc.bias"].to(torch.int8)})),
            "'fc.bias' is int8 there",
        ),
        Case(
            "a snapshot of masks",
            first(snapshot(lambda w: {**w, "fc.bias": w["fc.bias"] > 0})),
            "'fc.bias' is bool there",
        ),
        Case(
            "a counter with half a batch",
            first(snapshot(lambda w: {**w, "norm.num_batches_tracked": torch.tensor(1.5)})),
            "'norm.num_batches_tracked' is float32 there",
        ),
    ]


def settings_files() -> list[Case]:
    def of(folder: str, content: str, use: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            shutil.copytree(finished(), "run")
            Path("run", folder).mkdir()
            Path("run", folder, "settings.json").write_text(content)
            Path("run/spectra").mkdir(exist_ok=True)
            Path("run/spectra/step_00000000.npz").write_bytes(b"")  # something was measured with them
            use()

        return run

    return [
        Case(
            "spectra/settings.json empty", of("spectra", "", hessian), "settings.json' is damaged or missing"
        ),
        Case(
            "spectra/settings.json an array",
            of("spectra", "[]", hessian),
            "settings.json' is damaged or missing",
        ),
        Case(
            "spectra/settings.json of others",
            of("spectra", '{"largest": 7}', hessian),
            "was made with largest=7, not 1",
        ),
    ]


def spectra() -> list[Case]:
    def of(content: bytes) -> Callable[[], Any]:
        def use() -> None:
            Path("s.npz").write_bytes(content)
            with pytest.raises(Exception, match="is damaged"):
                load_shares(Path("s.npz"))
            load_spectrum(Path("s.npz"))

        return use

    def archive(**arrays: Any) -> bytes:
        np.savez("made.npz", **arrays)
        content = Path("made.npz").read_bytes()
        Path("made.npz").unlink()
        return content

    def cut_archive() -> None:
        of(archive(values=np.zeros(30))[:-40])()

    return [
        Case("an empty spectrum", of(b""), "is damaged"),
        Case("a spectrum of text", of(b"3, 2, 1"), "is damaged"),
        Case("a spectrum cut short", cut_archive, "is damaged"),
        Case("a spectrum without its arrays", lambda: of(archive(x=np.zeros(3)))(), "is damaged"),
        Case("no spectrum", lambda: load_spectrum(Path("nothing.npz")), "there is no spectrum 'nothing.npz'"),
    ]


# -- places --------------------------------------------------------------------------------------------


def places() -> list[Case]:
    def at(path: str, make: Callable[[], Any] = lambda: None) -> Callable[[], Any]:
        def use() -> None:
            make()
            command(*TRAIN, "--run", path)

        return use

    def trained(path: str) -> Callable[[], Any]:
        def use() -> None:
            printed = command(*TRAIN, "--evaluate", "none", "--run", path)
            assert path.split("/")[-1] in printed
            assert Path(path, "resume.pt").is_file()

        return use

    def nowhere() -> None:
        Path("gone").mkdir()
        os.chdir("gone")
        Path("../gone").rmdir()
        try:
            command(*TRAIN, "--run", "run")
        finally:
            os.chdir("/")

    return [
        Case("a run that is a file", at("file", Path("file").touch), "cannot write 'file': File exists"),
        Case(
            "a run below a file",
            at("file/run", Path("file").touch),
            "cannot write 'file/run': Not a directory",
        ),
        Case(
            "a run that links to itself",
            at("loop", lambda: Path("loop").symlink_to("loop")),
            "cannot write 'loop'",
        ),
        Case(
            "a run below a link to itself",
            at("loop/run", lambda: Path("loop").symlink_to("loop")),
            "link leads back to itself",
        ),
        Case("a run of a name too long", at("x" * 300), "the name is too long"),
        Case("a run of a path too long", at("/".join(["x" * 200] * 30)), "the name is too long"),
        Case("a run below a device", at("/dev/null/run"), "cannot write '/dev/null/run': Not a directory"),
        Case("a run without a name", at(""), "give the name of a folder"),
        Case("a run with a zero in its name", at("a\0b"), "give the name of a folder"),
        Case("a run in another's script, with spaces", trained("läufe 二/erster versuch")),
        Case("a run by way of its parent", trained("a/../b")),
        Case("a folder that is deleted under the command", nowhere, "No such file or directory"),
        Case(
            "a directory that holds a run",
            damaged("config.json", lambda p: None, lambda: command(*TRAIN, "--run", "run")),
            "holds a run already; add --resume",
        ),
        Case(
            "a directory that holds somebody's results",
            at("mine", lambda: Run("mine").log_scalars({"x": 1.0}, 0)),
            "holds a run already",
        ),
    ]


# -- results that are none -----------------------------------------------------------------------------


def logged() -> list[Case]:
    def log(thing: Any, step: Any = 0) -> Callable[[], Any]:
        def use() -> None:
            with Run("run") as run:
                try:
                    run.log(thing, step)
                finally:
                    assert list(run.records()) == []

        return use

    def scalars(**values: Any) -> Callable[[], Any]:
        return lambda: Run("run").log_scalars(values, 0)

    def numbers() -> None:
        run = Run("run")
        run.log_scalars(
            {"a": np.float32(0.5), "b": torch.tensor(2.0), "c": np.int64(3), "d": 4, "e": True}, np.int64(7)
        )  # type: ignore[dict-item, arg-type]
        run.log(RESULT, torch.tensor(8))  # type: ignore[arg-type]
        assert next(run.records()) == {
            "step": 7,
            "kind": "scalars",
            "a": 0.5,
            "b": 2.0,
            "c": 3.0,
            "d": 4,
            "e": 1.0,
        }
        assert list(run.results(ProbeResult)) == [Logged(8, RESULT)]

    def not_a_number() -> None:
        run = Run("run")
        run.log_scalars({"loss": float("nan")}, 0)
        (record,) = run.records()
        assert np.isnan(record["loss"])

    kinds = "log one of Controls, Density, LineSearch, ProbeResult, Spectrum, or register a family for it"
    return [
        Case("a dict is logged", log({"loss": 1.0}), "log numbers by name with run.log_scalars"),
        Case("None is logged", log(None), f"a NoneType cannot be logged; {kinds}"),
        Case("a list of results is logged", log([RESULT]), f"a list cannot be logged; {kinds}"),
        Case("a single reading is logged", log(RESULT.readings[0]), f"a Reading cannot be logged; {kinds}"),
        Case("a model is logged", log(model(3)), "a Sequential cannot be logged"),
        Case("a class is logged", log(type(RESULT)), "a type cannot be logged"),
        Case("a step that is text", log(RESULT, "3"), "step must be a whole number, not '3'"),
        Case("half a step", log(RESULT, 1.5), "step must be a whole number, not 1.5"),
        Case("no step", log(RESULT, None), "step must be a whole number, not None"),
        Case("text is logged as a number", scalars(loss="low"), "'loss' is a str; log numbers"),
        Case("None is logged as a number", scalars(loss=None), "'loss' is a NoneType; log numbers"),
        Case(
            "several numbers are logged as one",
            scalars(loss=torch.zeros(3)),
            "'loss' is a Tensor; log numbers",
        ),
        Case("a number called step", scalars(step=3.0), "'step' is the name of what every line has"),
        Case("a number called kind", scalars(kind=3.0), "'kind' is the name of what every line has"),
        Case("numbers of NumPy's and torch's", numbers),
        Case("a loss that is no number any more", not_a_number),
    ]


# -- no room -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def file_size(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def no_room() -> list[Case]:
    def small(limit: int) -> Callable[[], Any]:
        """Nothing is left behind, and with room the same command works; here it is not run again."""

        def use() -> None:
            try:
                with file_size(limit):
                    command(*TRAIN, "--run", "run")
            finally:
                assert not Path("run").exists()

        return use

    def later() -> None:
        shutil.copytree(finished(), "run")
        before = Path("run/results.jsonl").read_bytes()
        run = Run("run")
        with file_size(len(before) + 10), pytest.raises(Exception, match="ulimit -f"):
            run.log(RESULT, 9)
        assert Path("run/results.jsonl").read_bytes() == before
        run.log(RESULT, 9)
        assert next(reversed(list(run.results(ProbeResult)))) == Logged(9, RESULT)

    return [
        *(
            Case(
                f"files of at most {limit} bytes",
                small(limit),
                "files may not be that large here (ulimit -f)",
            )
            for limit in (1, 300, 5000)
        ),
        Case("results that may not grow", later),
    ]


CASES = [
    *checkpoints(),
    *results(),
    *configs(),
    *snapshots(),
    *settings_files(),
    *spectra(),
    *places(),
    *logged(),
    *no_room(),
]
