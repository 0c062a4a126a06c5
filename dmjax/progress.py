"""Progress bars in a terminal and in a notebook; silence elsewhere."""

import sys
from collections.abc import Iterable
from typing import Any


def progress_bar(
    items: Iterable[Any] | None, description: str, enabled: bool, total: int | None = None, **kwargs: Any
) -> Any:
    """A tqdm bar over `items` (or to be updated by hand), shown where someone is looking."""
    from tqdm.auto import tqdm

    someone_looks = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(items, desc=description, total=total, disable=not (enabled and someone_looks), **kwargs)
