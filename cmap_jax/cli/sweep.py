r"""Train several settings with several seeds, one process after another, and compare them.

cmap sweep --config=configs/garments.py --vary config.model.variant=cmap,artemis --seeds 3
cmap sweep --config=configs/garments.py --vary config.optimizer.learning_rate=5e-4,1e-3 \
    --vary config.train.epochs=2,4 --config.eval.shortcuts=true --workdir=runs/rates
cmap sweep --config=my_config.py     # whose get_hyper(hyper) lists the settings

The same command continues a sweep that was stopped. `cmap compare` prints its table again.
"""

import argparse
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cmap_jax.cli import config_files, flags
from cmap_jax.cli.arguments import path
from cmap_jax.cli.devices import FoundDevices, find_devices
from cmap_jax.files import check_can_write, is_remote, write_bytes, write_json, write_text
from cmap_jax.progress import LiveLine, format_seconds
from cmap_jax.sweeps import plan as plan_lib
from cmap_jax.sweeps.hyper import Hyper, read_vary
from cmap_jax.sweeps.plan import Plan, Run
from cmap_jax.sweeps.records import RunRecord

TABLE, FIGURES, PLOT = "table.md", "table.json", "plot.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=path,
        required=True,
        help="the config of all runs, with overrides --config.any.field=value. If its file has a "
        "get_hyper(hyper), that lists the settings; see cmap_jax/sweeps/hyper.py. In a value, "
        "{seed} stands for the run's seed and {row} for the folder of its row",
    )
    parser.add_argument(
        "--vary",
        metavar="config.FIELD=A,B",
        action="append",
        default=[],
        help="a field and its values; several --vary give all combinations. Commas inside "
        "brackets belong to a value: config.loss.margins=(0.6,0.4,0.3),(0.3,0.2,0.1)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each setting, from seed 0")
    parser.add_argument(
        "--workdir", metavar="DIR", type=path, help="default: runs/<config name>-sweep"
    )
    parser.add_argument(
        "--only", metavar="ROW", action="append", help="leave the runs of all other rows for later"
    )
    parser.add_argument(
        "--per-device",
        action="store_true",
        help="one run on each accelerator at once; default: one run at a time, on all of them",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do the runs that are not complete, and write the table after each of them."""
    plan = _plan(arguments)
    folder = _folder(arguments)
    plan_lib.check_continues(folder, plan)
    runs = _chosen(plan.runs(folder), arguments.only)
    _check_configs(plan.config, plan.runs(folder))
    devices = find_devices()
    slots = devices.slots() if arguments.per_device else [{}]
    check_can_write(folder)
    from cmap_jax.workdir.lock import WorkdirLock

    with WorkdirLock(folder):
        plan.write(folder)
        report = _Report(folder, devices, at_once=len(slots))
        left = [run for run in runs if not RunRecord(run.workdir).is_complete()]
        report.begin(plan, runs, left)
        _work_off(left, plan.config, slots, report)
        return report.end()


def _plan(arguments: argparse.Namespace) -> Plan:
    """Return the plan that the arguments ask for.

    Raises:
        ValueError: names the flag, or what get_hyper does wrong.
    """
    if arguments.seeds < 1:
        raise ValueError(f"--seeds must be 1 or more, not {arguments.seeds}")
    overridden = [flag.lstrip("-").partition("=")[0] for flag in arguments.overrides]
    if plan_lib.SEED in overridden:
        raise ValueError(f"--seeds sets {plan_lib.SEED}: leave --{plan_lib.SEED} out")
    hyper = Hyper()
    get_hyper = config_files.read_hyper(arguments.config)
    parts = [get_hyper(hyper)] if get_hyper else []
    # Named before they are combined: a row's own name stands for the fields of its part alone.
    parts = map(plan_lib.named, [*parts, read_vary(arguments.vary)])
    settings = hyper.product(list(parts))
    varied = {name for row in settings for name in row}
    for field in overridden:
        if field in varied:
            raise ValueError(f"{field} is varied: leave --{field} out")
    file = pathlib.Path(arguments.config.partition(":")[0])
    name = file.parent.name if file.name == "config.json" else file.stem
    return Plan(
        config=arguments.config,
        overrides=tuple(arguments.overrides),
        rows=plan_lib.make_rows(settings, otherwise=name),
        seeds=tuple(range(arguments.seeds)),
    )


def _folder(arguments: argparse.Namespace) -> pathlib.Path:
    """Return the sweep's folder.

    Raises:
        ValueError: no sweep can be there; says why.
    """
    folder = arguments.workdir
    if folder is None:
        base = os.path.normpath(flags.default_workdir(arguments.config))
        folder = f"{base}-sweep"
    if is_remote(folder):
        raise ValueError(
            f"--workdir={folder}: a sweep's folder is on a disk of this machine, since it holds "
            "the logs of running processes; name a local one, and copy it when all is done"
        )
    from cmap_jax.workdir.description import absolute, read_config

    if read_config(folder) is not None:
        raise ValueError(f"--workdir={folder} holds a single run; name another folder")
    return pathlib.Path(os.fspath(absolute(folder)))


def _chosen(runs: Sequence[Run], only: Sequence[str] | None) -> list[Run]:
    """Return the runs of the named rows, or all runs.

    Raises:
        ValueError: no row has such a name; lists those that there are.
    """
    names = list(dict.fromkeys(run.row.name for run in runs))
    for name in only or ():
        if name not in names:
            raise ValueError(f"--only {name!r}: there is no such row, but {'; '.join(names)}")
    return [run for run in runs if not only or run.row.name in only]


def _check_configs(config_file: str, runs: Sequence[Run]) -> None:
    """Refuse an impossible config of any run, and a workdir that holds another run.

    Raises:
        ValueError: names the run and the field.
    """
    import jax

    # The runs' own processes get the accelerators, which this one must leave alone.
    jax.config.update("jax_platforms", "cpu")
    import input_pipeline
    from cmap_jax.training.check import check_config
    from cmap_jax.workdir.same_run import check_same_run

    for run in runs:
        try:
            config = flags.read_config(config_file, run.overrides)
            # Whether the devices can split a batch is for the runs to check, which have them.
            check_config(config, device_count=1)
            input_pipeline.check_fields(config)
            check_same_run(run.workdir, config)
        except (ValueError, OSError) as error:
            raise ValueError(f"{run}: {error}") from error


def _work_off(
    runs: Sequence[Run], config: str, slots: Sequence[Mapping[str, str]], report: "_Report"
) -> None:
    """Do the runs.

    Raises:
        Stopped: Ctrl-C or SIGTERM asked the sweep to stop; the runs' states are saved.
    """
    from cmap_jax.sweeps.scheduler import work_off
    from cmap_jax.training.stopping import Stopped, StopRequest

    with StopRequest() as stop:
        work_off(
            runs,
            config=config,
            slots=slots,
            finished=report.finished,
            stop=stop,
            line=report.line,
        )
        report.line.clear()
        if stop():
            raise Stopped("stopped; the same command continues the sweep", stop.exit_status)


class _Report:
    """Says how the runs end, and writes table and plot after each that is complete."""

    def __init__(self, folder: pathlib.Path, devices: FoundDevices, at_once: int):
        # JAX takes a second to load, hence the import in here.
        from cmap_jax.sweeps.results import SweepResults

        self.line = LiveLine()
        self._folder, self._results = folder, SweepResults(folder)
        self._machine = {**_machine(), "devices": str(devices), "runs_at_once": at_once}
        self._failed: list[str] = []

    def begin(self, plan: Plan, runs: Sequence[Run], left: Sequence[Run]) -> None:
        """Say what is to be done."""
        rows = "; ".join(row.name for row in plan.rows)
        self.line.say(
            f"{len(plan.rows)} rows, {len(plan.seeds)} seeds: {rows}\n"
            f"{len(runs) - len(left)} of {len(runs)} runs are complete; everything is in "
            f"{self._folder}"
        )
        self._results.read()

    def finished(self, process: Any, status: int) -> None:
        """Say how a run has ended; write the tables."""
        if status:
            self._failed.append(f"{process.run}: {process.last_line()} (all of it: {process.log})")
            self.line.say(f"failed with status {status}: {self._failed[-1]}")
            return
        seconds = RunRecord(process.run.workdir).seconds()
        taken = "" if seconds is None else f" in {format_seconds(seconds)}"
        self.line.say(f"complete{taken}: {process.run}")
        self._write()

    def end(self) -> int:
        """Print the tables, and return the exit status: 1 if a run has failed."""
        from cmap_jax.cli.results_table import sweep_tables

        self._write()
        if any(row.results.stored for row in self._results.rows):
            print(sweep_tables(self._results.rows))
            print(
                f"\n{TABLE}, {FIGURES} and {PLOT} are in {self._folder}; again: cmap compare "
                f"{shlex.quote(str(self._folder))}"
            )
        for line in self._failed:
            print(f"failed: {line}", file=sys.stderr)
        if self._failed:
            print("The same command takes failed runs up again.", file=sys.stderr)
        return 1 if self._failed else 0

    def _write(self) -> None:
        from cmap_jax.sweeps import plot, tables
        from cmap_jax.sweeps.results import summarize

        self._results.read()
        rows = summarize(self._results.rows)
        if not rows:
            return
        text = tables.markdown(tables.tables(rows), tables.notes(rows, self._missing()))
        command = shlex.join(["cmap", *sys.argv[1:]])
        figures = {"command": command, "machine": self._machine, "rows": tables.to_dict(rows)}
        write_text(self._folder / TABLE, text)
        write_json(self._folder / FIGURES, figures)
        write_bytes(self._folder / PLOT, plot.draw(rows, self._folder.name))

    def _missing(self) -> dict[str, list[int]]:
        return {row.row.name: row.missing for row in self._results.rows}


def _machine() -> dict[str, Any]:
    """Return the processor, its cores and the system."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "unknown")
    return {"processor": model, "cores": os.cpu_count(), "system": platform.system()}
