"""Every example in a docstring or in the README runs; every public name has one."""

import doctest
import importlib
import inspect
import pkgutil
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_meta

MODULES = [
    module.name
    for module in pkgutil.walk_packages(optax_meta.__path__, "optax_meta.")
    if module.name != "optax_meta.__main__"
]
README = Path(__file__).parent.parent / "README.md"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
GLOBALS = {
    "jax": jax,
    "jnp": jnp,
    "np": np,
    "optax": optax,
    "optax_meta": optax_meta,
    "tempfile": tempfile,
}
PUBLIC = [name for name in dir(optax_meta) if not name.startswith("_")]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:More than 20 figures")
def test_docstring_examples(name):
    module = importlib.import_module(name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for example in finder.find(module, extraglobs=GLOBALS):
        runner.run(example)
    assert runner.failures == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented(name):
    value = getattr(optax_meta, name)
    doc = inspect.getdoc(value)
    assert doc
    if not inspect.ismodule(value) and name not in ("Metrics", "Record", "ControlState"):
        assert ">>>" in doc, f"{name} has no example"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_of_a_public_function_is_documented(name):
    function = getattr(optax_meta, name)
    if not inspect.isfunction(function):
        pytest.skip("not a function")
    arguments = inspect.getdoc(function).split("Args:")[-1]
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"\b{parameter}\b", arguments), f"{name}: {parameter}"


def test_readme_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})  # noqa: S102 - our own README


def test_readme_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    for target in targets:
        if not target.startswith("http"):
            assert (README.parent / target).exists(), target
