"""The notebook of the repository runs and is stored with its outputs; what else a notebook's cells may do works."""

import importlib.util
import re
import time

import notebook as quickstart
import pytest
from conftest import FAST

MISSING = [name for name in ("nbclient", "ipykernel") if importlib.util.find_spec(name) is None]
needs_kernel = pytest.mark.skipif(
    bool(MISSING), reason=f"needs {' and '.join(MISSING)}: pip install -r tests/requirements-notebook.txt"
)
quiet = pytest.mark.filterwarnings("ignore")  # those of the notebook libraries, of which we know nothing


def check_outputs(notebook):
    """Every cell was run, in order, and shows something; the learned images beat the random ones."""
    cells = quickstart.code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell["outputs"] or cell["id"] == "install", cell["id"]
        assert "error" not in [output["output_type"] for output in cell["outputs"]], quickstart.text_of(cell)
        assert not [output for output in cell["outputs"] if output.get("name") == "stderr"], quickstart.text_of(cell)
    shown = {cell["id"]: quickstart.text_of(cell) for cell in cells}
    learned, random = map(float, re.findall(r"images: ([\d.]+) %", shown["verdict"]))
    assert learned > random + 10, shown["verdict"]
    [accuracy] = re.findall(r"Accuracy\(([\d.]+) \+- ", shown["judge"])
    assert float(accuracy) == learned
    assert "data:image/png" in shown["result"]


def test_the_stored_outputs_are_those_of_the_stored_code():
    notebook = quickstart.read()
    check_outputs(notebook)
    stale = "the code was changed after it was run: python tests/notebook.py"
    assert notebook["metadata"]["outputs_are_of"] == quickstart.digest(notebook), stale


def test_the_notebook_is_small_and_knows_no_machine():
    text = quickstart.NOTEBOOK.read_text()
    assert len(text) < 300_000
    found = re.findall(r"(?:/tmp|/root|/home|/Users|site-packages|ipykernel_)[\w/.-]*", text)
    assert not found
    ids = [cell["id"] for cell in quickstart.read()["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z-]+", name) for name in ids)  # given by hand: those that tools make are random


def test_the_own_distance_is_short():
    [own] = [cell for cell in quickstart.read()["cells"] if cell["id"] == "own"]
    body = "".join(own["source"]).split("own = ")[0].split("@dataclasses", 1)[1]
    assert len([line for line in body.splitlines() if line.strip()]) <= 15


@pytest.mark.slow
@needs_kernel
@quiet
def test_the_notebook_runs_from_start_to_end(tmp_path):
    start = time.perf_counter()
    notebook = quickstart.run(quickstart.read(), tmp_path)
    assert time.perf_counter() - start < 180  # what its reader is promised, on two cores
    check_outputs(notebook)
    assert (tmp_path / "learned_digits" / "synthetic.npz").exists()
    assert len(list((tmp_path / "learned_digits" / "images").rglob("*.png"))) == 10


SETUP = """
import dataclasses, dmjax, jax.numpy as jnp

@dataclasses.dataclass(frozen=True)
class L1(dmjax.DM):
    scale: float = 1.0

    def distance(self, key, real, synthetic):
        mean = lambda cloud: cloud.weights @ cloud.features / cloud.weights.sum()
        return self.scale * jnp.abs(mean(real) - mean(synthetic)).sum()

config = dmjax.Config(
    method=L1(iterations=6, batch_real=8), network=dmjax.NetworkConfig(width=4, depth=1), ipc=1, progress=False,
    evaluation=dmjax.EvaluationConfig(networks=1, epochs=1), workdir="run", images_every=0, chunk=2,
    checkpoint=dmjax.CheckpointConfig(every=2),
)
"""
STOP = """
def stop(snapshot):
    if snapshot.iteration == 4:
        raise RuntimeError("enough")

dmjax.condense(config, on_chunk=stop)
"""
ON = """
seen = []
whole = dmjax.condense(dataclasses.replace(config, workdir="whole", progress=True))
synthetic = dmjax.condense(config, on_chunk=lambda snapshot: seen.append(snapshot.iteration))
print(seen, (synthetic.images == whole.images).all(), dmjax.evaluate("run/synthetic.npz", progress=False))
synthetic
"""


def shown(sources, folder):
    """What each of these cells shows when they are run one after another, in a kernel that compiles fast."""
    sources = [f"import os; os.environ['XLA_FLAGS'] = {FAST!r}", *sources]
    made = [
        {"cell_type": "code", "id": f"cell-{i}", "source": text, "metadata": {}, "outputs": [], "execution_count": None}
        for i, text in enumerate(sources)
    ]
    notebook = {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    run = quickstart.run(notebook, folder, allow_errors=True)
    return [quickstart.text_of(cell).strip() for cell in quickstart.code_cells(run)[1:]]


@needs_kernel
@quiet
def test_a_method_of_ones_own_lives_in_a_cell_and_mistakes_are_one_line(tmp_path):
    changed = SETUP.replace("jnp.abs(", "jnp.square(")
    broken = SETUP.replace("jnp.abs(", "jnp.abz(").replace('workdir="run"', "workdir=None")
    outputs = shown(
        [
            *(SETUP, STOP, ON),
            *(SETUP.replace("mean =", "# a comment\n        mean ="), "dmjax.condense(config)"),
            *(changed, "dmjax.condense(config)"),
            *(broken, "dmjax.condense(config)"),
            *("dmjax.Config(ipd=3)", "dmjax.condense(dataclasses.replace(config, ipc=0))"),
            "print(sum(range(3))",
        ],
        tmp_path,
    )
    assert "RuntimeError: enough" in outputs[1]  # what is not the user's input has its traceback
    assert len(outputs[1].splitlines()) > 5
    assert "condensing" in outputs[2]  # the bar, with or without ipywidgets, which it does not ask for
    assert "IProgress" not in outputs[2]
    assert "[6] True " in outputs[2]  # goes on after the checkpoint of iteration 4
    assert "data:image/png" in outputs[2]
    assert "data:image/png" in outputs[4]
    assert re.fullmatch(
        r"UserError: run belongs to .* \(the code of __main__:L1 was changed\); remove it,.*", outputs[6]
    )
    line = r"return self\.scale \* jnp\.abz\(mean\(real\) - mean\(synthetic\)\)\.sum\(\)"
    expected = rf"UserError: method '__main__:L1' does not run: AttributeError: .*abz.* \(line 9 of its cell: {line}\)"
    assert re.fullmatch(expected, outputs[8])
    assert outputs[9] == "UserError: Config has no setting 'ipd'; did you mean 'ipc'?"
    assert outputs[10] == "UserError: ipc must be at least 1, not 0"
    assert "SyntaxError" in outputs[11]
