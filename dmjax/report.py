"""The page of a run or a comparison, report.html, made again from the files in its working folder.

    python -m dmjax.report runs/tiny

Every run and comparison ends with one; this is for those of older versions, and after files were changed by hand. The
same files give the same page, byte for byte.
"""

import sys

from dmjax import reporting
from dmjax.common.errors import UserError
from dmjax.config import ReportConfig
from dmjax.settings import cli


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, when_interrupted="start it again")


def _main(arguments: list[str]) -> None:
    config = cli.parse(ReportConfig(), arguments, "python -m dmjax.report", f"{__doc__}")
    if not config.folders:
        raise UserError("name the working folder of a run or a comparison, such as runs/tiny")
    for folder in config.folders:
        print(reporting.write(folder))


if __name__ == "__main__":
    sys.exit(main())
