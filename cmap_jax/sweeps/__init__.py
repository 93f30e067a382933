"""Sweeps: the runs of several settings over several seeds, in one folder with one table.

SWEEP/sweep.json           the plan: config, settings, seeds
      <row>/seed-<n>/      the workdir of each run
      <row>/seed-<n>.json  each attempt at that run: its start, seconds and exit status
      <row>/seed-<n>.log   the output of the run
      table.md, .json      means over the seeds, differences from the first row, times
      plot.png             the same as a picture
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.sweeps import (
        hyper,
        plan,
        plot,
        process,
        records,
        results,
        scheduler,
        tables,
    )

__all__ = [
    "hyper",
    "plan",
    "plot",
    "process",
    "records",
    "results",
    "scheduler",
    "tables",
]
