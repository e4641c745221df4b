"""Every example runs, every figure is that of its file, every public name is fully described."""

import ast
import doctest
import importlib.util
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
import readme

import optax_meta

MODULES = [
    module.name
    for module in pkgutil.walk_packages(optax_meta.__path__, "optax_meta.")
    if module.name != "optax_meta.__main__"
]
ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / name
    for name in ("README.md", "examples/README.md", "benchmarks/README.md", "CONTRIBUTING.md")
]
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
NEWLINE = "\n"
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


class _Finder(doctest.DocTestFinder):
    """Finds also what a decorator of another module has wrapped."""

    def _from_module(self, module, object):  # noqa: A002
        return super()._from_module(module, inspect.unwrap(object))


def test_a_decorated_function_is_found():
    found = _Finder().find(importlib.import_module("optax_meta.controllers.plateau"))
    assert "optax_meta.controllers.plateau.plateau" in {example.name for example in found}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:More than 20 figures")
def test_docstring_examples(name):
    module = importlib.import_module(name)
    finder = _Finder(exclude_empty=True)
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


BLOCKS = [
    pytest.param(
        block[1],
        id=f"{page.relative_to(ROOT)}:{page.read_text().count(NEWLINE, 0, block.start()) + 1}",
    )
    for page in PAGES
    for block in re.finditer(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_code_block_runs_and_prints_what_it_says(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "block", "exec"), {})  # noqa: S102 - our own pages
    if shown := re.search(r"(?:^# .*\n)+\Z", block, re.MULTILINE):
        said, printed = re.sub("^# ", "", shown[0], flags=re.MULTILINE), capsys.readouterr().out
        assert NUMBER.split(printed) == NUMBER.split(said)
        numbers = [list(map(float, NUMBER.findall(text))) for text in (printed, said)]
        np.testing.assert_allclose(*numbers, rtol=0.05)


def test_what_greets_a_newcomer_has_learned_something():
    block = re.search(r"```python\n(.*?)```", PAGES[0].read_text(), re.DOTALL)[1]
    *_, last = re.findall(r"^# loss (\S+)", block, re.MULTILINE)
    assert float(last) < 0.1  # and the test above holds that it prints this


def test_the_front_page_is_one_page():
    assert len(PAGES[0].read_text().splitlines()) <= 150


def anchors(page):
    titles = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {"#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith("http"):
            path, mark, name = target.partition("#")
            to = (page.parent / path).resolve() if path else page
            assert to.exists(), target
            assert not mark or mark + name in anchors(to), target


def test_every_example_is_linked():
    text = PAGES[1].read_text()
    for path in (ROOT / "examples").glob("*.py"):
        assert f"({path.name})" in text, path.name


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_figures_of_a_page_are_those_of_the_files(page):
    assert readme.rendered(page.read_text()) == page.read_text(), "run benchmarks/readme.py"


def test_every_table_stands_on_a_page():
    found = [b["name"] for page in readme.PAGES for b in readme.BLOCK.finditer(page.read_text())]
    assert set(found) == set(readme.BLOCKS)


# What a message must hold to name the way out: what is demanded, what to do, or, passed on, what
# the system or an error inside says of it.
WAY_OUT = re.compile(
    r"\b(must|needs?|may|add|ask|call|change|choose|give|go on|install|leave|name|pass|put|remove|"
    r"restore|return|save|see|start|use)\b|(?<!cannot )\b(read|write)\b|(it has|they hold) …"
    r"|cannot (read|write|be saved)\b.*: …"
)


def message(node):
    """Return the text of an expression, with … for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(message, node.values))
    if isinstance(node, ast.BinOp):
        return message(node.left) + message(node.right)
    return "…"


TREES = {
    name: ast.parse(Path(importlib.util.find_spec(name).origin).read_text()) for name in MODULES
}


def named(trees):
    """Return the texts that a name may stand for where it is raised: constants and loops."""
    found = {}
    for node in itertools.chain.from_iterable(map(ast.walk, trees)):
        match node:
            case ast.Assign(targets=[ast.Name(name)], value=ast.Constant(str(text))):
                found.setdefault(name, []).append(text)
            case ast.For(target=ast.Tuple([*_, ast.Name(name)]), iter=rows):
                pairs = [x.elts[-1] for x in ast.walk(rows) if isinstance(x, ast.Tuple)]
                texts = [message(x) for x in pairs if isinstance(x, ast.JoinedStr | ast.BinOp)]
                found.setdefault(name, []).extend(texts)
    return found


def raised(tree, trees):
    """Yield the line and each text that a ValueError or an ImportError may be raised with."""
    for node in ast.walk(tree):
        match node:
            case ast.Raise(exc=ast.Call(ast.Name("ValueError" | "ImportError"), [ast.Name(name)])):
                yield from ((node.lineno, text) for text in named(trees).get(name, ["…"]))
            case ast.Raise(exc=ast.Call(ast.Name("ValueError" | "ImportError"), [text])):
                yield node.lineno, message(text)


def names_no_way_out(tree, trees):
    """Return lines whose message says what is wrong, but not what is demanded or what to do.

    A text that begins with "it" is the end of another one, which names the way out.
    """
    return [
        (line, text)
        for line, text in raised(tree, trees)
        if not WAY_OUT.search(text) and not re.match(r"its? ", text)
    ]


@pytest.mark.parametrize("name", MODULES)
def test_an_error_names_the_way_out(name):
    assert names_no_way_out(TREES[name], TREES.values()) == []


def test_a_message_without_a_way_out_is_found():
    tree = ast.parse("""
raise ValueError(f"`path` is {path}")
raise ValueError(f"`factor` must lie in (0, 1), got {factor}")
WRONG = "nothing of the kind"
raise ValueError(WRONG) from None
raise ImportError(f"no {module}: " f"pip install {module}")
for holds, why in ((a > 0, f"`a` is {a}"), (b > 0, f"`b` must be positive, got {b}")):
    raise ValueError(why)
raise ValueError(f"cannot read `{path}`")
raise ValueError(elsewhere)
""")
    assert {line for line, _ in names_no_way_out(tree, [tree])} == {2, 5, 8, 9, 10}
    assert sum(len([*raised(tree, TREES.values())]) for tree in TREES.values()) > 50
