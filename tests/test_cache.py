"""The cache of decoded images: once, keyed by content, whole or not at all."""

import os
import signal
import subprocess
import sys

import numpy as np
from conftest import ROOT
from PIL import Image
from test_data import load

from dmjax import data


def test_decoding_happens_once_and_anew_when_the_content_changes(make_folder, tmp_path, monkeypatch):
    folder, cache = make_folder(), tmp_path / "cache"
    first = load("folder", folder, cache=cache)
    assert isinstance(first.images, np.memmap)
    decoded = []
    original = data.folder._decode
    monkeypatch.setattr(data.folder, "_decode", lambda *a: decoded.append(a) or original(*a))
    load("folder", folder, cache=cache)
    assert not decoded
    image = folder / "train" / "class0" / "0.png"
    stamp = image.stat()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(image)
    os.utime(image, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # only the bytes tell
    assert (load("folder", folder, cache=cache).images[0, 0] == [1, 2, 3]).all()
    assert decoded


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from dmjax import data
from dmjax.config import DataConfig
from dmjax.data import folder

decode = folder._decode

def killed(member, *rest):
    if member.name.startswith("train/class2"):
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(member, *rest)

folder._decode = killed
data.load(DataConfig("folder", Path(sys.argv[1]), cache=Path(sys.argv[2])))
"""


def test_a_killed_writer_leaves_nothing_that_counts(make_folder, tmp_path):
    folder, cache = make_folder(), tmp_path / "cache"
    command = [sys.executable, "-c", KILLED_WRITER, str(folder), str(cache)]
    killed = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (left,) = cache.iterdir()
    assert ".tmp-" in left.name
    assert load("folder", folder, cache=cache).counts.tolist() == [5, 3, 4]
    (entry,) = cache.iterdir()  # the remains are gone
    # A damaged entry is made again.
    (entry / "images.npy").write_bytes((entry / "images.npy").read_bytes()[:200])
    assert load("folder", folder, cache=cache).counts.tolist() == [5, 3, 4]
