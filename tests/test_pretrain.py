"""Networks trained on the whole set, from the command line: the command that trains them, and condensing with them."""

import json
import re
import signal
import time

import pytest
from conftest import contents

POOL = ("--config", "experiments/tiny.py", "--network.width", 4, "--network.depth", 1, "--pretrained.networks", 2)
POOL = (*POOL, "--pretrained.epochs", 3, "--pretrained.states", 4)


def test_the_command(run_command, tmp_path):
    """Trains, says how long before, and the second time that all is there; with other settings one line."""
    command = ("dmjax.pretrain", *POOL, "--pretrained.path", tmp_path / "pool")
    done = run_command(*command)
    assert done.returncode == 0, done.stderr
    assert re.match(r"0 of 10 states are there; the rest takes about \d\d:\d\d", done.stdout)
    rows = re.findall(r"\| network_00\d \| 5 \| (\d+) \| [\d.]+ / [\d.]+ / ([\d.]+) % \| [\d.]+ \|", done.stdout)
    assert len(rows) == 2
    assert all(float(last) > 30 for _, last in rows)
    assert f"files: {tmp_path / 'pool'}/" in done.stdout
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pool").rglob("*.msgpack")}
    again = run_command(*command)
    assert "all 10 states are there" in again.stdout
    assert again.stdout.splitlines()[1:] == done.stdout.splitlines()[1:]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "pool").rglob("*.msgpack")} == before
    other = run_command(*command, "--pretrained.batch-size", 32)
    assert other.returncode == 2
    assert re.fullmatch(r"error: .* another recipe \(batch_size 64, not 32\); give .*\n", other.stderr)
    shown = run_command("dmjax.pretrain", "--help")
    assert shown.returncode == 0
    assert all(flag in shown.stdout for flag in ("--pretrained.spacing", "--pretrained.together"))
    missing = run_command("dmjax.pretrain", "--pretrained.networks", 2)
    assert missing.returncode == 2
    assert missing.stderr == "error: name an experiment file, for example --config experiments/tiny.py\n"


def test_condensing_with_a_pool_from_the_command_line(run_command, tmp_path):
    """The folder of another data set, bounds that nothing meets, and a run that works."""
    small = (
        *("--config", "experiments/tiny.py", "--network.width", 4, "--network.depth", 1, "--iterations", 2),
        *("--evaluation.networks", 1, "--evaluation.epochs", 1, "--evaluation.random-real", "false", "--batch-real", 8),
        *("--evaluation.whole-dataset", "false", "--pretrained.networks", 1, "--pretrained.epochs", 2),
        *("--pretrained.path", tmp_path / "pool", "--match.networks", "pool"),
    )
    done = run_command("dmjax.condense", *small, "--workdir", tmp_path / "a", "--match.accuracy", 0.9, 0.95)
    assert done.returncode == 2
    assert "a validation accuracy from 0.9 to 0.95; they have" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "a").exists()
    done = run_command("dmjax.condense", *small, "--workdir", tmp_path / "b", "--match.accuracy", 0, 0.5)
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "b" / "config.json").read_text())["config"]["method"]["match"]
    assert (stored["networks"], stored["accuracy"]) == ("pool", [0.0, 0.5])
    about = tmp_path / "pool" / "about.json"
    about.write_text(about.read_text().replace('"digits"', '"mnist"'))
    done = run_command("dmjax.condense", *small, "--workdir", tmp_path / "c")
    assert done.returncode == 2
    assert "holds networks with another data set" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_command_that_is_stopped_goes_on_and_ends_in_the_same_bytes(run_command, tmp_path, signum):
    longer = ("dmjax.pretrain", *POOL[:-4], "--pretrained.epochs", 60, "--pretrained.states", 40)
    whole = run_command(*longer, "--pretrained.path", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    process = run_command.start(*longer, "--pretrained.path", tmp_path / "pool")
    while process.poll() is None and len(list((tmp_path / "pool").glob("network_*/*.msgpack"))) < 8:
        time.sleep(0.005)
    process.send_signal(signum)
    _, errors = process.communicate()
    assert process.returncode == (-9 if signum == signal.SIGKILL else 130)
    assert signum == signal.SIGKILL or errors.startswith("interrupted by SIGINT; the same command again goes on")
    there = len(list((tmp_path / "pool").glob("network_*/*.msgpack")))
    assert 8 <= there < 82
    again = run_command(*longer, "--pretrained.path", tmp_path / "pool")
    assert re.match(r"[1-9]\d* of 82 states are there", again.stdout), again.stderr
    assert contents(tmp_path / "pool") == contents(tmp_path / "whole")
