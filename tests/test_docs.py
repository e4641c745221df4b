"""Every example in a docstring or in the README runs; every public name is fully described."""

import ast
import doctest
import importlib
import inspect
import itertools
import operator
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
NAMESPACES = [name for name in PUBLIC if inspect.ismodule(getattr(optax_meta, name))]
NUMBER = re.compile(r"\d[\d.]*(?:e[+-]\d+)?")
SHAPE = re.compile(r"\b(float|int|uint|bool)(32|64)?\[")


def defined_in(namespace):
    """Return the public functions and classes that a module or its files define, by full names."""
    module = getattr(optax_meta, namespace)
    return [
        f"{namespace}.{name}"
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and f"{value.__module__}.".startswith(f"{module.__name__}.")
    ]


FUNCTIONS_AND_CLASSES = [
    *(name for name in PUBLIC if name not in NAMESPACES),
    *(name for namespace in NAMESPACES for name in defined_in(namespace)),
]


def arguments(value):
    """Return what a docstring must describe: arguments of a function, own fields of a class."""
    if inspect.isfunction(value):
        return tuple(inspect.signature(value).parameters)
    # Every Flax module has these two as well.
    return tuple(name for name in inspect.get_annotations(value) if name not in ("parent", "name"))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:More than 20 figures")
def test_docstring_examples(name):
    module = importlib.import_module(name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for example in finder.find(module, extraglobs=GLOBALS):
        runner.run(example)
    assert runner.failures == 0


@pytest.mark.parametrize("name", NAMESPACES)
def test_every_namespace_is_described(name):
    assert inspect.getdoc(getattr(optax_meta, name))


@pytest.mark.parametrize("name", FUNCTIONS_AND_CLASSES)
def test_every_public_name_is_documented(name):
    value = operator.attrgetter(name)(optax_meta)
    doc = inspect.getdoc(value) or ""
    assert ">>>" in doc, f"{name} has no example"
    described = doc.partition("Example:")[0]
    missing = [
        a for a in arguments(value) if not re.search(rf"^ +\**{a}: ", described, re.MULTILINE)
    ]
    assert not missing, f"{name} does not describe {', '.join(missing)}"
    if not inspect.isfunction(value):
        return
    if "raise ValueError" in inspect.getsource(value):
        assert "Raises:" in doc, f"{name} does not say what it raises"
    if re.search(r"Array|ndarray|Hyperparams", str(inspect.signature(value).return_annotation)):
        assert SHAPE.search(doc), f"{name} returns arrays of what shape?"


def test_readme_examples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    names = [{} for _ in blocks]
    for block, own in zip(blocks, names, strict=True):
        capsys.readouterr()
        exec(compile(block, str(README), "exec"), own)  # noqa: S102 - our own README
        if shown := re.search(r"(?:^# .*\n)+\Z", block, re.MULTILINE):
            said, printed = re.sub("^# ", "", shown[0], flags=re.MULTILINE), capsys.readouterr().out
            assert NUMBER.split(printed) == NUMBER.split(said)
            numbers = [list(map(float, NUMBER.findall(text))) for text in (printed, said)]
            np.testing.assert_allclose(*numbers, rtol=0.05)
    assert names[0]["row"].value < 0.1  # what greets a newcomer has learned something


def test_readme_links_lead_somewhere():
    text = README.read_text()
    titles = [title.lower() for title in re.findall(r"^#+ (.*)", text, re.MULTILINE)]
    anchors = {"#" + re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("http"):
            assert target in anchors or (README.parent / target).exists(), target


def messages():
    """Return every text in the sources, with … for what is filled in."""
    trees = [ast.parse(path.read_text()) for path in Path(optax_meta.__file__).parent.rglob("*.py")]
    for node in itertools.chain.from_iterable(map(ast.walk, trees)):
        if isinstance(node, ast.JoinedStr):
            parts = [x.value if isinstance(x, ast.Constant) else "…" for x in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_the_readme_quotes_messages_as_they_are():
    quoted = re.findall(r"\*\*“(.*?)”\*\*", README.read_text())
    assert quoted
    known = list(messages())
    for quote in quoted:
        pattern = re.compile(".*".join(map(re.escape, quote.split("…"))), re.DOTALL)
        assert any(map(pattern.search, known)), quote
