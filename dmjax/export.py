"""A synthetic set for other libraries.

    python -m dmjax.export runs/tiny/synthetic.npz --to torch

`png` is an ImageFolder, `numpy` plain arrays, `torch` one file in the layout of the authors of distribution matching,
`huggingface` a folder for `datasets.load_from_disk`, `tfds` one for `tfds.builder_from_directory`. Images that a stored
image holds several of come unpacked.
"""

import sys
from pathlib import Path

from dmjax.common.errors import UserError, near_misses
from dmjax.config import ExportConfig
from dmjax.data import released
from dmjax.data.formats import FORMATS
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.settings import cli

_FILES = (".npz", ".npy", ".png", ".pt", ".pth", ".zip")


def export(synthetic: SyntheticSet | str | Path, out: str | Path, to: str = "png") -> str:
    """Writes a set for another library.

    Args:
      synthetic: The set, the path of its file, or the name of a released one.
      out: The file or folder to write, which must not be there or be an empty folder.
      to: The format: png, numpy, torch, huggingface or tfds.

    Returns:
      What was written, in a few words.
    """
    if to not in FORMATS:
        raise UserError(f"there is no format {to!r}; {near_misses(to, list(FORMATS))}")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; choose another --out")
    if to != "torch" and out.suffix in _FILES:
        raise UserError(f"the format {to} is a folder; name one that does not end in {out.suffix}")
    return FORMATS[to](synthetic if isinstance(synthetic, SyntheticSet) else released.open_set(synthetic), out)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, when_interrupted="start it again")


def _main(arguments: list[str]) -> None:
    arguments = cli.first_is("--synthetic", arguments)
    config = cli.parse(ExportConfig(), arguments, "python -m dmjax.export", f"{__doc__}")
    if config.synthetic is None:
        raise UserError(
            "name a set first, such as runs/tiny/synthetic.npz, or one that comes with the package, such as mnist-ipc1"
        )
    synthetic = released.open_set(config.synthetic)
    beside = f"{config.synthetic}-" if "released" in synthetic.metadata else ""
    name = beside + ("synthetic.pt" if config.to == "torch" else config.to)
    print(export(synthetic, config.out or released.folder_of(config.synthetic) / name, config.to))


cli.make_callable(__name__)

if __name__ == "__main__":
    sys.exit(main())
