"""A store larger than the memory allowed is fitted all the same, to the same solution."""

import json
import subprocess
import sys

import numpy as np
import pytest

from probes import ArrayFeatures, fit_probes

from .fitting import clusters

_CHILD = """
import json, resource, sys
import numpy as np, torch
from pathlib import Path
from probes import ArrayFeatures, fit_probes

path, memory, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
x = np.load(path + "/x.npy", mmap_mode="r")
y = np.load(path + "/y.npy")
torch.set_num_threads(1)  # stacks and pools of further threads would count as data
torch.ones(300, 300) @ torch.ones(300, 300)
in_use = int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (in_use + limit, in_use + limit))  # of what is not a mapped file
found = fit_probes(ArrayFeatures({"x": x}, y), l2=0.1, tol=1e-7, memory=memory, progress=False)
print(json.dumps([found.path[0].objective, found.path[0].converged]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is one of Linux")
def test_a_store_larger_than_memory(tmp_path):
    x, y = clusters(160_000, 256, 10, noise=6)  # 156 MiB as float32
    x = x.astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)

    def run(memory, limit):
        command = [sys.executable, "-c", _CHILD, str(tmp_path), str(memory), str(limit)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    low = run(2**24, 144 * 2**20)
    assert low.returncode == 0, low.stderr
    assert run(2**30, 144 * 2**20).returncode != 0  # so the limit is one
    objective, converged = json.loads(low.stdout)
    assert converged
    held = fit_probes(ArrayFeatures({"x": x}, y), l2=0.1, tol=1e-7, progress=False)
    assert objective == pytest.approx(held.path[0].objective, rel=2e-7)
