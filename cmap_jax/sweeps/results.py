"""The results of a sweep's complete runs, row by row."""

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from cmap_jax.evaluation.compare import Difference
from cmap_jax.evaluation.over_seeds import OverSeeds, SeededResults, compare_over_seeds
from cmap_jax.evaluation.results_file import EVALUATION, read_results
from cmap_jax.files import read_json
from cmap_jax.sweeps.plan import Row, Run, read_plan
from cmap_jax.sweeps.records import RunRecord
from cmap_jax.workdir.description import MODEL


@dataclasses.dataclass
class RowRuns:
    """The runs of a row.

    Attributes:
        row: its name and flags.
        planned: seeds of the plan.
        results: of the complete runs.
        seconds: time of each complete run; None where it is not known.
        made_by: commit and package versions of each complete run.
    """

    row: Row
    planned: Sequence[int]
    results: SeededResults
    seconds: dict[int, float | None] = dataclasses.field(default_factory=dict)
    made_by: dict[int, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def missing(self) -> list[int]:
        """Seeds whose run is not complete."""
        return [seed for seed in self.planned if seed not in self.results.stored]


@dataclasses.dataclass(frozen=True)
class RowSummary:
    """A row of the table.

    Attributes:
        runs: the runs behind it.
        numbers: by protocol and name, over the seeds.
        differences: from the first row, by protocol and name; empty for the first row, and where
            there is a reason against the comparison.
        why_not: that reason; else None.
    """

    runs: RowRuns
    numbers: Mapping[str, Mapping[str, OverSeeds]]
    differences: Mapping[str, Mapping[str, Difference]]
    why_not: str | None = None


class SweepResults:
    """The complete runs of a sweep; `read` adds those that were completed since the last call."""

    def __init__(self, folder: str | os.PathLike, prefix: str = ""):
        """Read the plan.

        Args:
            folder: must hold a sweep.
            prefix: begins the name of every row.

        Raises:
            FileNotFoundError, ValueError: as `plan.read_plan`.
        """
        plan = read_plan(folder)
        self._runs = plan.runs(folder)
        self.rows: list[RowRuns] = []
        for row in plan.rows:
            named = dataclasses.replace(row, name=prefix + row.name)
            self.rows.append(RowRuns(named, plan.seeds, SeededResults(named.name)))

    def read(self) -> None:
        """Read the results of the runs that are complete.

        Raises:
            FileNotFoundError, ValueError: a complete run lacks its results, or they are broken.
        """
        by_folder = {runs.row.folder: runs for runs in self.rows}
        for run in self._runs:
            runs = by_folder[run.row.folder]
            if run.seed not in runs.results.stored:
                _read_run(run, runs)


def _read_run(run: Run, into: RowRuns) -> None:
    record = RunRecord(run.workdir)
    if not record.is_complete():
        return
    file = epath.Path(run.workdir) / EVALUATION
    if not file.exists():
        raise FileNotFoundError(
            f"{file} is missing, though its run was complete: cmap evaluate "
            f"{shlex.quote(str(run.workdir))}"
        )
    into.results.add(run.seed, read_results(file))
    into.seconds[run.seed] = record.seconds()
    about = read_json(run.workdir / MODEL)
    into.made_by[run.seed] = {key: about.get(key) for key in ("git_commit", "versions")}


def summarize(rows: Sequence[RowRuns]) -> list[RowSummary]:
    """Return the rows that have results; all but the first are compared with the first.

    A comparison that is not possible is no error, since the others are: the row says why.
    """
    first, *others = rows
    summaries = []
    if first.results.stored:
        summaries.append(RowSummary(first, first.results.numbers(), {}))
    for runs in others:
        if not runs.results.stored:
            continue
        differences, why_not = {}, None
        try:
            differences = compare_over_seeds(first.results, runs.results)
        except ValueError as error:
            why_not = str(error)
        summaries.append(RowSummary(runs, runs.results.numbers(), differences, why_not))
    return summaries
