"""`dmjax COMMAND ...`, which is `python -m dmjax.COMMAND ...`.

dmjax condense --config tiny
dmjax evaluate --synthetic runs/tiny/synthetic.npz
dmjax report runs/tiny
dmjax --version
"""

import importlib
import sys
from collections.abc import Sequence

from dmjax import __version__
from dmjax.common.errors import UserError

COMMANDS = {
    "condense": "dmjax.condense",
    "evaluate": "dmjax.evaluate",
    "compare": "dmjax.compare",
    "export": "dmjax.export",
    "report": "dmjax.report",
    "pretrain": "dmjax.pretrain",
    "benchmark": "dmjax.benchmark.__main__",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    if "" not in sys.path:  # methods and networks of one's own are found here, as by `python -m`
        sys.path.insert(0, "")
    given = list(sys.argv[1:] if arguments is None else arguments)
    name, rest = (given[0], given[1:]) if given else ("", [])
    if name == "--version":
        print(f"dmjax {__version__}")
        return 0
    if name in ("", "-h", "--help"):
        print(f"{__doc__}\nCommands: {', '.join(COMMANDS)}; `dmjax COMMAND --help` has the flags of each.")
        return 0 if name else UserError.status
    if name not in COMMANDS:
        print(f"error: there is no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return UserError.status
    return importlib.import_module(COMMANDS[name]).main(rest)


if __name__ == "__main__":
    sys.exit(main())
