"""The public names: few, documented, and listed in the API page."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import zojax

ROOT = Path(__file__).resolve().parent.parent
API_PAGE = ROOT / "docs" / "api.md"
SOURCES = sorted((ROOT / "zojax").rglob("*.py"))
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def test_names_are_few_and_distinct():
    assert len(zojax.__all__) == len(set(zojax.__all__))
    assert len(zojax.__all__) <= 60


@pytest.mark.parametrize("name", zojax.__all__)
def test_name_is_there_and_documented(name):
    assert inspect.getdoc(getattr(zojax, name)), f"zojax.{name} has no docstring"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_definitions_are_documented(source):
    """Read from the source: a NamedTuple without a docstring gets a made-up one at run time."""
    module = ast.parse(source.read_text(encoding="utf-8"))
    bare = [
        f"{source.name}:{node.lineno} {node.name}"
        for node in module.body
        if isinstance(node, DEFINITIONS)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not bare
    assert ast.get_docstring(module), "the module has no docstring"


@pytest.mark.skipif(not API_PAGE.exists(), reason="there is no docs/api.md")
def test_every_name_is_in_the_pages():
    pages = API_PAGE.read_text(encoding="utf-8") + (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [name for name in zojax.__all__ if not re.search(rf"\b{re.escape(name)}\b", pages)]
    assert not missing
