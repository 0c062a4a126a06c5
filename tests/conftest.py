"""Every test runs with four simulated CPU devices and strict dtype and rank promotion.

Most of the time goes into compiling small programs. So they are compiled fast rather than well, and kept under
.pytest_cache, where both workers, processes that tests start, and the next run find them.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
FAST += " --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jax").startswith("0.10."):  # jax 0.11 has no other emitters
    FAST += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4 {FAST}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
COMPILED = ROOT / ".pytest_cache" / "compiled"

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", str(COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_configure(config):
    """With -n, a file stays with one worker as long as the other has work: what its tests share is made once."""
    if config.getoption("dist", "no") == "load":
        config.option.dist = "worksteal"


def contents(folder):
    """Of all files, without the seconds that differ from run to run."""
    found = {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {path: re.sub(rb'"seconds": [0-9.e-]+', b"", content) for path, content in found.items()}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def torch():
    torch = pytest.importorskip("torch", reason="needs torch: pip install -r tests/requirements-torch.txt")
    torch.set_num_threads(1)  # the other worker has the other core
    return torch


@pytest.fixture
def shared():
    """Path of a real data file, or a skip that says what is missing."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs real data that is not here: {path}")
        return path

    return find


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def make_folder(tmp_path):
    """Writes train/CLASS/*.png and test/CLASS/*.png of random images."""
    from PIL import Image

    def make(train=(5, 3, 4), test=2, size=(8, 8), mode="RGB", root="images"):
        rng = np.random.default_rng(1)
        folder = tmp_path / root
        for split, counts in (("train", train), ("test", [test] * len(train))):
            for c, n in enumerate(counts):
                place = folder / split / f"class{c}"
                place.mkdir(parents=True)
                for i in range(n):
                    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
                    base = np.full(shape, 40 + 60 * c)
                    pixels = np.clip(base + rng.integers(-30, 30, shape), 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(place / f"{i}.png")
        return folder

    return make


@pytest.fixture(autouse=True, scope="module")
def programs_are_forgotten():
    """Compiled programs of a file are not kept in memory, where those of a thousand tests take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def run_command():
    """Runs `python -m MODULE ARGS` in a process of its own."""

    def start(module: str, *args, devices=1, optimised=False, **options) -> subprocess.Popen:
        # None leaves it to the command, which makes every core a device.
        flags = f"--xla_force_host_platform_device_count={devices}" if devices else ""
        environment = os.environ | {
            "XLA_FLAGS": flags if optimised else f"{flags} {FAST}",
            "JAX_COMPILATION_CACHE_DIR": str(COMPILED),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", module, *map(str, args)]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options
        )

    def run(module: str, *args, timeout=300, **options) -> subprocess.CompletedProcess:
        process = start(module, *args, **options)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    run.start = start
    return run
