"""Writing files so that a reader sees the old content or the new, never half of it; and where caches belong."""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from dmjax.common.errors import UserError


def cache_folder(configured: Path | None = None) -> Path:
    """The cache folder: the configured one, or dmjax under $XDG_CACHE_HOME or ~/.cache."""
    if configured is not None:
        return configured
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmjax"


def check_regular(path: Path) -> None:
    """Raises a `UserError` for what is there but no file, such as a pipe or a device, which may never end."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}; name a file")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes under a temporary name and renames. Raises a `UserError` where that is not possible."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def check_room(folder: Path, size: float) -> None:
    """Raises a `UserError` where so many bytes do not fit on the disk any more, before half of them are written."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"no space left for {folder}: {size / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB free; make room, and "
            "the same command goes on"
        )


def check_writable(path: Path) -> None:
    """Raises a `UserError` where `write_bytes` would, and leaves what is there as it is."""
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    write_bytes(probe, b"")
    probe.unlink()


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON; a number that JSON does not know (nan, infinity) is an error."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path, mend: str = "remove it, or choose another --workdir") -> Any:
    """Reads JSON; None where there is no such file. Raises a `UserError`, which ends in `mend`, for a damaged one."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({str(error) or type(error).__name__}); {mend}") from None
