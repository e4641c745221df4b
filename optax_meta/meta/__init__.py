"""Learning a policy over many runs: one concept a file."""
