"""The documentation runs: Python blocks of the pages, and examples in docstrings."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import zojax

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = sorted(m.name for m in pkgutil.walk_packages(zojax.__path__, "zojax."))
DOCTEST_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_runs(page, tmp_path, monkeypatch):
    """The blocks of a page run in order and share their names; files go to a scratch folder."""
    monkeypatch.chdir(tmp_path)
    parsers = [PythonCodeBlockParser(doctest_optionflags=DOCTEST_FLAGS), SkipParser()]
    for example in Sybil(parsers=parsers).parse(page).examples():
        example.evaluate()


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=DOCTEST_FLAGS).failed == 0
