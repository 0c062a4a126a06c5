"""The commands that the README and the documentation show."""

import re
import shlex
from pathlib import Path

from conftest import ROOT

STARTS = r"(?:[A-Z_]+=\S+ )*(?:python|pip|dmjax|mkdocs|bash|sbatch|ruff|twine|git|apt-get)(?= )"
SCRIPT = r"experiments/[\w/]+\.sh"
_SHOWN = re.compile(rf"^ {{4,}}({STARTS}.*)$", re.MULTILINE)  # an indented line
_FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")


def pages() -> list[Path]:
    """The README and the pages of the documentation, each once, though some are links to files of the root."""
    docs = sorted(path for path in (ROOT / "docs").rglob("*.md") if "figures" not in path.parts)
    return [ROOT / "README.md", *docs]


def of(page: Path) -> list[str]:
    """The commands of a page, in order, as one line each and taken apart at `&&`, `;` and `&`."""
    text = _FENCED.sub(lambda m: m.group(2) if m.group(1) in ("bash", "sh", "console") else "", page.read_text())
    found = [match.group(1) for match in _SHOWN.finditer(text)]
    scripts = [script for script in _INLINE.findall(text) if re.fullmatch(SCRIPT, script)]
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    for match in _INLINE.finditer(prose):
        inline = " ".join(match.group(1).split())
        if re.match(STARTS, inline) and _says_something(inline):
            found.append(inline)
    parts = [part.strip() for command in found for part in _parts(command)]
    return [part for part in parts if re.match(STARTS, part)] + scripts


def every() -> dict[str, list[str]]:
    """All commands, and the pages that show each."""
    found: dict[str, list[str]] = {}
    for page in pages():
        if page.name != "commands.md":
            for command in of(page):
                found.setdefault(command, []).append(str(page.relative_to(ROOT)))
    return found


def listed() -> dict[str, str]:
    """The commands of the list of those that no test runs, and the rest of their rows."""
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", (ROOT / "docs" / "commands.md").read_text(), re.MULTILINE)
    return {command.replace("\\|", "|"): rest for command, rest in rows}


def _parts(command: str) -> list[str]:
    return [command] if "python -c" in command else re.split(r"&&|;|&\s*$|\s#\s", command)


def _says_something(inline: str) -> bool:
    """A module or a program alone is named in passing: it is no command to run."""
    words = [word for word in shlex.split(inline) if "=" not in word or word.startswith("-")]
    return len(words) > (3 if words[:2] == ["python", "-m"] else 2) or words[0] in ("mkdocs",)
