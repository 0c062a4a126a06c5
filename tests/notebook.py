"""The notebook experiments/quickstart.ipynb: run from start to end, and written with the outputs of that run.

    python tests/notebook.py

runs it and stores its outputs, with a digest of the code that they are of. Needs tests/requirements-notebook.txt.
"""

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "experiments" / "quickstart.ipynb"


def read(path: Path = NOTEBOOK) -> dict[str, Any]:
    """A notebook as it is stored."""
    return json.loads(path.read_text())


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells that are run."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def digest(notebook: dict[str, Any]) -> str:
    """Tells the code of a notebook from other code; what is around it may change without a new run."""
    sources = ["".join(cell["source"]) for cell in code_cells(notebook)]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]


def text_of(cell: dict[str, Any]) -> str:
    """What a cell has printed and displayed as text, and the errors that it has shown."""
    found = []
    for output in cell["outputs"]:
        data = output.get("data", {})
        found += [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
        found += output.get("traceback", [])
    return re.sub(r"\x1b\[[\d;]*m", "", "\n".join("".join(part) for part in found if part))  # without colours


def run(notebook: dict[str, Any], folder: Path, allow_errors: bool = False) -> dict[str, Any]:
    """Runs all cells in a fresh kernel that finds the package here, and returns the notebook with their outputs."""
    import nbclient
    import nbformat

    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # as a reader has it
    environment |= {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / ".ipython")}
    node = nbformat.reads(json.dumps(notebook), as_version=4)
    client = nbclient.NotebookClient(
        node,
        timeout=600,
        kernel_name="python3",
        allow_errors=allow_errors,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute(env=environment)


def main() -> None:
    """Runs the notebook and writes it with its outputs."""
    import nbformat

    notebook, start = read(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        made = run(notebook, Path(folder))
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    made["metadata"] = {**notebook["metadata"], "outputs_are_of": digest(notebook)}
    nbformat.write(made, NOTEBOOK)


if __name__ == "__main__":
    main()
