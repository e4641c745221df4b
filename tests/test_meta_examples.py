"""Examples of `optax_meta.meta` need no more than `import optax_meta` and five other names."""

import ast
import builtins
import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import optax_meta

FOLDER = Path(optax_meta.__file__).parent / "meta"
PATHS = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.py"))
NAMES = {"jax", "jnp", "np", "optax", "optax_meta", "tempfile"}
PROGRAM = """
import doctest, sys, tempfile
import jax, jax.numpy as jnp, numpy as np, optax, optax_meta
sys.path.insert(0, "tests")
from test_meta_examples import NAMES, examples
flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
runner = doctest.DocTestRunner(optionflags=flags)
for name, found in examples(sys.argv[1]):
    given = {known: globals()[known] for known in NAMES}
    runner.run(doctest.DocTest(found, given, name, sys.argv[1], 0, ""))
assert runner.failures == 0
"""


def examples(path):
    """Yield name and examples of each docstring in a file, which is not imported."""
    for node in ast.walk(ast.parse((FOLDER / path).read_text())):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)):
            found = doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")
            if found:
                yield getattr(node, "name", path), found


@pytest.mark.parametrize("path", PATHS)
def test_examples_use_no_other_names(path):
    for name, found in examples(path):
        tree = ast.parse("".join(example.source for example in found))
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        own = {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
        own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        own |= {
            node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.alias))
        }
        unknown = {node.id for node in nodes} - own - NAMES - set(dir(builtins))
        assert not unknown, f"{name} of {path}"


@pytest.mark.heavy
@pytest.mark.parametrize("path", [path for path in PATHS if any(examples(path))])
def test_examples_run_in_a_fresh_process(path):
    subprocess.run([sys.executable, "-c", PROGRAM, path], check=True)
