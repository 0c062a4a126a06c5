"""The cache of compiled programs."""

import json
import os
import subprocess
import sys

import numpy as np
from conftest import ROOT

from dmjax.data.synthetic_set import SyntheticSet


def test_a_second_run_starts_from_the_cache(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    seconds, images = [], []
    for i in range(2):
        workdir = tmp_path / str(i)
        command = [sys.executable, "-m", "dmjax.condense", "--config", "experiments/tiny.py", "--workdir", workdir]
        command += ["--iterations", "5", "--batch-real", "16", "--network.width", "8", "--network.depth", "1"]
        command += ["--evaluation.networks", "1", "--evaluation.epochs", "1"]
        command += ["--evaluation.random-real", "false", "--evaluation.whole-dataset", "false"]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        seconds.append(json.loads((workdir / "results.json").read_text())["seconds"]["compile"])
        images.append(SyntheticSet.load(workdir / "synthetic.npz").images)
    (folder,) = (tmp_path / "cache" / "dmjax").glob("compiled-*")
    assert len(list(folder.iterdir())) > 0
    assert seconds[1] < 0.6 * seconds[0]
    np.testing.assert_array_equal(*images)
