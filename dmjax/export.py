"""A synthetic set for other libraries.

    python -m dmjax.export --synthetic runs/tiny/synthetic.npz --to torch

`png` is an ImageFolder, `numpy` plain arrays, `torch` one file in the layout of the authors of distribution matching,
`huggingface` a folder for `datasets.load_from_disk`, `tfds` one for `tfds.builder_from_directory`. Images that a stored
image holds several of come unpacked.
"""

import sys

from dmjax.common.errors import UserError
from dmjax.config import ExportConfig
from dmjax.data.formats import FORMATS
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.settings import cli


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(_main, arguments, when_interrupted="start it again")


def _main(arguments: list[str]) -> None:
    config = cli.parse(ExportConfig(), arguments, "python -m dmjax.export", f"{__doc__}")
    if config.synthetic is None:
        raise UserError("name a set: --synthetic runs/tiny/synthetic.npz, for instance")
    synthetic = SyntheticSet.load(config.synthetic)
    out = config.out or config.synthetic.with_name("synthetic.pt" if config.to == "torch" else config.to)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; choose another --out")
    print(FORMATS[config.to](synthetic, out))


if __name__ == "__main__":
    sys.exit(main())
