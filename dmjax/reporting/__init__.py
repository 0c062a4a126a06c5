"""report.html: what a run or a comparison has made, as one page that needs nothing but itself.

It is made from the files in the working folder alone, so that old runs can have one too, and the same files give the
same bytes. `sections.py` has the parts that pages share; `run.py`, `seeds.py` and `comparison.py` are the three pages.
"""

import sys
from pathlib import Path

from dmjax.common import files
from dmjax.common.errors import UserError
from dmjax.reporting import comparison, run, seeds

__all__ = ["NAME", "try_to_write", "write"]

NAME = "report.html"
"""The name of the page in the working folder."""


def write(folder: Path) -> Path:
    """Writes the page of the run, the runs with several seeds, or the comparison that a working folder holds.

    Returns:
      Where the page is.

    Raises:
      UserError: the folder holds none of them, they are not finished, or a file is damaged.
    """
    if (folder / "study.json").exists():
        page = comparison.page(folder)
    elif (folder / "runs.json").exists():
        page = seeds.page(folder)
    elif (folder / "config.json").exists():
        page = run.page(folder)
    else:
        raise UserError(f"{folder} holds no run and no comparison; name the working folder of one, such as runs/tiny")
    files.write_bytes(folder / NAME, page.encode())
    return folder / NAME


def try_to_write(folder: Path) -> None:
    """Does the same at the end of a run, where results are written already and a page that fails may cost nothing."""
    try:
        write(folder)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        print(
            f"no {NAME}: {reason if isinstance(error, UserError) else f'{type(error).__name__}: {reason}'}; "
            f"python -m dmjax.report {folder} tries again",
            file=sys.stderr,
        )
