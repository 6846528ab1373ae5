"""A real TensorBoard server reads what a run wrote."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from analysis import Run

from .test_runs import RESULT


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    logs = tmp_path_factory.mktemp("logs")
    with Run(logs / "run") as run:
        run.log(RESULT, 0)
        later = replace(RESULT, readings=tuple(replace(r, error=r.error / 2) for r in RESULT.readings))
        run.log(later, 20)
        run.events.add_hparams({"lr": 0.1, "probe": ("a", "b")}, {"hparam/test_error": 0.25}, 20)
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(logs),
        "--port",
        "0",
        "--host",
        "127.0.0.1",
    ]
    process = subprocess.Popen([*command, "--load_fast", "false"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"(http://\S+)", line):
            break
    assert found is not None
    yield found[1].rstrip("/")
    process.kill()
    process.wait()


def get(server: str, route: str, **query: str) -> Any:
    url = f"{server}/data/{route}?{urllib.parse.urlencode(query)}"
    for _ in range(50):  # the server loads the events in the background
        with urllib.request.urlopen(url, timeout=30) as answer:
            content = answer.read()
        if content not in (b"{}", b"[]"):
            break
    return content


def test_scalars_of_every_layer(server: str) -> None:
    tags = json.loads(get(server, "plugin/scalars/tags"))["run"]
    for layer in ("conv1", "fc"):
        for kind in ("error", "loss", "top5_error"):
            assert f"probes/valid/{kind}/{layer}" in tags
    assert "model/valid/error" in tags
    points = json.loads(get(server, "plugin/scalars/scalars", run="run", tag="probes/valid/error/fc"))
    assert [(step, round(value, 6)) for _, step, value in points] == [(0, 0.1), (20, 0.05)]


def test_a_figure_for_every_evaluation(server: str) -> None:
    tag = "probes/valid/error by depth"
    assert tag in json.loads(get(server, "plugin/images/tags"))["run"]
    pictures = json.loads(get(server, "plugin/images/images", run="run", tag=tag, sample="0"))
    assert [picture["step"] for picture in pictures] == [0, 20]
    image = get(server, "plugin/images/individualImage", **dict(urllib.parse.parse_qsl(pictures[1]["query"])))
    assert image.startswith(b"\x89PNG")


def test_settings_on_the_hparams_page(server: str) -> None:
    request = urllib.request.Request(
        f"{server}/data/plugin/hparams/experiment", data=b"{}", headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        experiment = json.loads(answer.read())
    assert {info["name"] for info in experiment["hparamInfos"]} == {"lr", "probe"}
    assert [info["name"]["tag"] for info in experiment["metricInfos"]] == ["hparam/test_error"]
