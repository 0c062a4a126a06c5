"""What a notebook shows of an object: a picture and a line of facts, or a line and a table."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any


def picture(image: Any, facts: str) -> str:
    """A PIL image, which is inside the text and so needs no file, above a line of facts."""
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    style = "image-rendering: pixelated; max-width: 100%"
    return f'<img src="data:image/png;base64,{data}" style="{style}">{line(facts)}'


def line(text: str) -> str:
    """A line of text, in which no character has a meaning of its own."""
    return f"<div>{html.escape(text)}</div>"


def table(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A table whose rows begin with their names."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *columns))
    body = "".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{html.escape(value)}</td>' for value in values)}</tr>"
        for name, values in rows.items()
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
