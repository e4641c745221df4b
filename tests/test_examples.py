"""The 15-step demonstration; the other examples are run by test_flax.py and test_distributed.py."""

import fifteen_steps


def test_fifteen_steps(capsys):
    fifteen_steps.main(seeds=2)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(fifteen_steps.METHODS)
