"""The house rules that a machine can check."""

import ast
import subprocess
import sys
from pathlib import Path

import optax_meta
from optax_meta import arguments, tasks
from optax_meta.meta import evaluation, runs

PACKAGE = Path(optax_meta.__file__).parent
FLOORS = [
    {"lazy", "metrics", "checks", "policy_gradient", "train_state", "spikes"},
    {"base", "horizon", "origins", "tracking"},
    {"geometry", "sampling"},
    {"guards", "measuring", "snapshots"},
    {"observations", "actions", "rewards", "injection", "state", "by_hand"},
    {"deciding", "averaging"},
    {"transform"},
    {"policies", "recording"},
    {"controllers", "checkpoints", "configs"},
    {"writers"},
    {"meta"},
    {"reports"},
    {"arguments"},
    {"cli"},
    {"__main__"},
]


def imports_of(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith("optax_meta")
        ):
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return names


def floor(name):
    return next(i for i, names in enumerate(FLOORS) if name in names)


def test_imports_run_upward_only():
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        for imported in imports_of(path) - {name}:
            assert floor(imported) <= floor(name), f"{path.name} imports {imported}"


def test_no_import_cycle_among_modules():
    graph = {p.stem: imports_of(p) - {p.stem} for p in PACKAGE.glob("*.py") if p.stem != "__init__"}
    while leaves := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph


def test_importing_needs_no_extra():
    heavy = (
        "matplotlib",
        "sklearn",
        "jinja2",
        "pandas",
        "tensorboardX",
        "optax_meta.reports.page",
        "optax_meta.cli",
    )
    code = (
        "import optax_meta, sys\n"
        "[getattr(optax_meta, name) for name in dir(optax_meta)]\n"
        f"assert not [m for m in {heavy!r} if m in sys.modules]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_names_what_there_is():
    assert tuple(tasks.TASKS) == arguments.TASKS
    assert tuple(evaluation.METHODS) == arguments.METHODS
    assert tuple(runs.RECIPES) == arguments.RECIPES


def test_the_distribution_has_one_version():
    from importlib.metadata import version

    assert version("optax-meta") == optax_meta.__version__


def test_every_line_of_the_stub_is_a_public_name():
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    names = {alias.asname for node in imports for alias in node.names}
    assert names == {*dir(optax_meta)} - {"__version__"}
    assert all(getattr(optax_meta, name) is not None for name in names)


def test_modules_that_docstrings_name_are_found():
    names = "checkpoints", "meta.runs", "recording", "reports.page", "transform"
    code = f"import optax_meta; {', '.join(f'optax_meta.{name}' for name in names)}"
    subprocess.run([sys.executable, "-c", code], check=True)
    for package in (optax_meta, optax_meta.meta, optax_meta.reports):
        assert not hasattr(package, "nothing")
