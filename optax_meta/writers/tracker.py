"""What the runs of experiment trackers have in common: they can only grow."""

from collections.abc import Callable, Sequence

from optax_meta.recording import Row


class Tracker:
    """A run of an experiment tracker: rows at steps that it has already are left out.

    Trackers neither replace nor remove a step; some would keep both rows, others warn at each.

    Args:
        next_step: returns the first step that the run lacks; asked at the first row.
        send: passes rows on, at least one, by increasing step.
    """

    def __init__(
        self, next_step: Callable[[], float], send: Callable[[Sequence[Row]], None]
    ) -> None:
        self.next_step, self.send = next_step, send
        self.next: float | None = None

    def put(self, rows: Sequence[Row]) -> None:
        """Send the rows that are new."""
        # Asked once, not at every row: for some trackers the answer is a call over the network.
        if self.next is None:
            self.next = self.next_step()
        new = [row for row in rows if row["step"] >= self.next]
        if new:
            self.send(new)
            self.next = new[-1]["step"] + 1

    def close(self, *, stopped: bool) -> None:
        """Leave the run to whoever started it."""
