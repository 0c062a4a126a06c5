"""What the README and the documentation point to is there."""

import importlib.util
import re
import subprocess
import sys
import tomllib

import commands
import jax
import jax.numpy as jnp
import pytest
import yaml
from conftest import ROOT

import dmjax
from dmjax import methods
from dmjax.methods.cloud import Cloud

PAGES = commands.pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_modules_and_files_that_exist(page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    text = page.read_text()
    for module in set(re.findall(r"python -m ((?:dmjax|experiments)[\w.]*)", text)):
        assert importlib.util.find_spec(module) is not None, module
    for file in set(re.findall(r"(?:experiments|tests|dmjax)/[\w/.-]+\.(?:py|sh|md|json|txt|png)", text)):
        assert (ROOT / file).exists(), file


def test_the_readme_is_short_and_names_every_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        name = page.relative_to(ROOT / "docs").as_posix()
        assert re.search(rf"(: |- ){name}\n", navigation)
        elsewhere = name.startswith("methods/") or name in ("index.md", "api.md", "contributing.md", "changelog.md")
        assert elsewhere or f"docs/{name}" in text, name
    assert "CONTRIBUTING.md" in text
    chooser = (ROOT / "docs" / "methods.md").read_text()
    for page in (ROOT / "docs" / "methods").glob("*.md"):
        assert f"(methods/{page.name}" in chooser


def test_every_method_has_a_page_whose_tables_are_those_of_the_code_and_the_results():
    pages = {page: page.read_text() for page in (ROOT / "docs" / "methods").glob("*.md")}
    for name in methods.built_in():
        of_it = [text for text in pages.values() if f"<!-- figures {name} -->" in text]
        assert len(of_it) == 1, name
        assert name in ("random", "whole") or f"<!-- settings {name} -->" in of_it[0], name  # these two have none
        assert "## Cost" in of_it[0]
        assert re.search(r"^## References?$", of_it[0], re.MULTILINE) or name == "match"
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "tables.py", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, f"run python docs/tables.py: {done.stdout}{done.stderr}"


def test_the_extra_for_the_site_is_its_requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "docs" / "requirements.txt").read_text().splitlines()
    assert project["optional-dependencies"]["docs"] == lines


def test_the_citation_and_the_changes_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == dmjax.__version__
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    [paper] = citation["references"]
    assert paper["url"].endswith("2110.04181")
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first.group(1) == dmjax.__version__


def test_the_method_of_ones_own_is_complete():
    """The file that the page on extending shows: its distance is what it says, and the setting is a field."""
    text = (ROOT / "docs" / "extending.md").read_text()
    [source] = re.findall(r"```python\n(# my_method.py\n.*?)```", text, re.DOTALL)
    names = {"__name__": "my_method"}
    exec(compile(source, "my_method.py", "exec"), names)
    method = names["L1"](scale=2.0)
    real = Cloud(jnp.array([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]), jnp.array([1.0, 1.0, 0.0]))
    synthetic = Cloud(jnp.array([[0.0, 5.0]]), jnp.ones(1))
    assert float(method.distance(jax.random.key(0), real, synthetic)) == 2 * (2 + 2)
