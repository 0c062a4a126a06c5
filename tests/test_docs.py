"""What the README and the documentation point to is there."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT

from dmjax.methods.cloud import Cloud

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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
        assert f": {page.name}\n" in navigation
        assert page.name in ("index.md", "api.md") or f"docs/{page.name}" in text


def test_the_method_of_ones_own_is_complete():
    """The file that the page on methods shows: its distance is what it says, and the setting is a field."""
    text = (ROOT / "docs" / "methods.md").read_text()
    [source] = re.findall(r"```python\n(# my_method.py\n.*?)```", text, re.DOTALL)
    names = {"__name__": "my_method"}
    exec(compile(source, "my_method.py", "exec"), names)
    method = names["L1"](scale=2.0)
    real = Cloud(jnp.array([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]), jnp.array([1.0, 1.0, 0.0]))
    synthetic = Cloud(jnp.array([[0.0, 5.0]]), jnp.ones(1))
    assert float(method.distance(jax.random.key(0), real, synthetic)) == 2 * (2 + 2)
