"""Training: the state, the optimiser, the step, checkpoints and the loop (SPEC 2, 3)."""
