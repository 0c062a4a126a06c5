"""Formulas of the site as MathML, which browsers show by themselves: no script, and nothing to load.

And flags that stay whole where a line ends, since a browser would break `--batch-real` after any of its hyphens.
"""

import html
import re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
CODE = re.compile(r"(?<=<code>).*?(?=</code>)", re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*")


def on_page_content(page_html: str, page, **_) -> str:
    """Replaces what the extension arithmatex has marked, and marks flags."""

    def formula(match: re.Match) -> str:
        tag, kind, latex = match.groups()
        try:
            mathml = convert(html.unescape(latex), display="block" if kind == "[" else "inline")
        except Exception as error:
            raise PluginError(
                f"{page.file.src_path}: {type(error).__name__}: {error} in the formula {latex}"
            ) from error
        if "\\" in mathml or "&#x0005C;" in mathml:
            raise PluginError(f"{page.file.src_path}: a command that latex2mathml does not know in {latex}")
        return f'<{tag} class="formula">{mathml}</{tag}>'

    def whole(code: re.Match) -> str:
        return FLAG.sub(r'<span class="flag">\g<0></span>', code.group(0))

    return CODE.sub(whole, FORMULA.sub(formula, page_html))
