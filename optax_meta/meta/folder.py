"""The folder of `optax-meta meta-train`: which run is there, and the policy it ends with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optax_meta import checkpoints
from optax_meta.meta.evaluation import library_versions
from optax_meta.policies import Policy

Settings = Mapping[str, str | int]
"""What makes a run the same run: the command's options `recipe`, `seed`, `learner`, `groups`,
`rollouts`. How many updates it takes may change, since a run may be lengthened."""


def claim(folder: Path, settings: Settings, *, write: bool) -> None:
    """Note the settings of a run in its folder, or refuse to go on with a run of others.

    A checkpoint would be restored all the same where only the recipe or the seed differs, and the
    policy's card would tell of a run that never was.

    Args:
        folder: of the run; made where there is none.
        settings: of the run that starts or goes on.
        write: whether to note them; on several hosts one does.

    Raises:
        ValueError: a run of other settings is there, `settings.json` is damaged, or the folder
            cannot be written to.

    Example:
        >>> from pathlib import Path
        >>> from optax_meta.meta.folder import claim
        >>> with tempfile.TemporaryDirectory() as name:
        ...     claim(Path(name), {"seed": 0}, write=True)
        ...     claim(Path(name), {"seed": 1}, write=True)
        Traceback (most recent call last):
        ValueError: ... holds a run with --seed 0: go on with the same, or choose another --out
    """
    path = folder / "settings.json"
    if path.exists():
        _check_same(path, settings)
    elif write:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Renamed when it is whole, so that no kill leaves half a file, which would be refused.
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(settings) + "\n")
            partial.replace(path)
        except OSError as error:
            raise ValueError(
                f"cannot write to `{folder}`: {error.strerror}; choose another --out"
            ) from error


def _check_same(path: Path, settings: Settings) -> None:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = None
    if not isinstance(known, dict) or not known.keys() >= settings.keys():
        raise ValueError(
            f"`{path}` is damaged: write {json.dumps(settings)} into it if that is the run "
            "there, or choose another --out"
        )
    if other := [name for name in settings if known.get(name) != settings[name]]:
        raise ValueError(
            f"`{path.parent}` holds a run with "
            f"{', '.join(f'--{name} {known.get(name)}' for name in other)}: "
            "go on with the same, or choose another --out"
        )


def write_policy(
    policy: Policy,
    folder: Path,
    settings: Settings,
    *,
    updates: int,
    devices: int,
    distribution: Mapping[str, Any],
) -> Path:
    """Write what was learned, with notes from which it can be learned again.

    Args:
        policy: as `runs.train` returned it.
        folder: of the run, with its `log.jsonl`.
        settings: as for `claim`.
        updates: how many the policy took.
        devices: how many the run was spread over: its sums, hence its bits, depend on it.
        distribution: what it learned from, `MetaTrainer.description`.

    Returns:
        The file, `DIR/RECIPE.policy`.
    """
    # A run may have been stopped and gone on: the log's last row counts what all its parts took.
    *_, last = (folder / "log.jsonl").read_text().splitlines()
    cost = {k: v for k, v in json.loads(last).items() if k.startswith("inner_steps")}
    recipe = settings["recipe"]
    # With the defaults spelt out, since those of a later version may differ.
    flags = {"recipe": recipe, "updates": updates, **settings, "devices": devices}
    notes = {
        "command": " ".join(["optax-meta meta-train", *(f"--{k} {v}" for k, v in flags.items())]),
        "updates": updates,
        "seed": settings["seed"],
        **cost,
        "distribution": distribution,
        "versions": library_versions(),
    }
    path = folder / f"{recipe}.policy"
    checkpoints.save_policy(policy, path, notes=notes)
    return path
