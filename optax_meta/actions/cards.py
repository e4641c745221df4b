"""Action spaces as JSON values, as policy files and configs hold them."""

from collections.abc import Mapping
from typing import Any

from optax_meta.actions.moves import add, level, log_step, scale
from optax_meta.actions.spaces import ActionSpace, factored, joint, ordered
from optax_meta.checks import check_known, chosen

_OF_SPACE = "moves", "factored", "spread"
_OF_MOVE = "hyperparam", "kind", "amounts", "bounds"
_MOVES = {"scale": scale, "add": add, "log": log_step, "level": level}


def space_of(card: Mapping[str, Any]) -> ActionSpace:
    """Return the action space that a card describes.

    Args:
        card: "moves", each with "hyperparam", "kind" ("scale", "add", "log" or "level"), "amounts"
            and "bounds"; "factored"; "spread", 0 where it is left out.

    Raises:
        KeyError: something is missing.
        ValueError: an unknown entry or kind of move, or a number that the move refuses.

    Example:
        >>> space_of(card_of(optax_meta.actions.classic())) == optax_meta.actions.classic()
        True
    """
    check_known("action_space", card, _OF_SPACE)
    moves = []
    for move in card["moves"]:
        check_known("moves", move, _OF_MOVE)
        make = chosen("move", _MOVES, move["kind"])
        moves.append(make(move["hyperparam"], move["amounts"], bounds=move["bounds"]))
    if spread := card.get("spread"):
        return ordered(*moves, spread=spread)
    return (factored if card["factored"] else joint)(*moves)


def card_of(space: ActionSpace) -> dict[str, Any]:
    """Return what `space_of` makes the action space of again, JSON values.

    Args:
        space: any.

    Example:
        >>> card_of(optax_meta.actions.learning_rate())["moves"][0]["amounts"]
        [0.5, 1.0, 2.0]
    """
    moves = [
        {**move._asdict(), "amounts": list(move.amounts), "bounds": list(move.bounds)}
        for move in space.moves
    ]
    spread = {"spread": space.spread} if space.spread else {}
    return {"factored": space.factored, **spread, "moves": moves}
