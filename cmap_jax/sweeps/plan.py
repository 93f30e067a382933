"""The plan of a sweep: which runs, with which flags, in which folders."""

import dataclasses
import os
import pathlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from cmap_jax.files import read_json, write_json
from cmap_jax.sweeps.hyper import NAME, Settings

PLAN = "sweep.json"
SEED = "config.seed"
# In a value they stand for the run's seed and for the name of its row's folder.
_SEED_MARK, _ROW_MARK = "{seed}", "{row}"
_UNSAFE = re.compile(r"[^\w.=+-]+")  # a folder's name has no such characters
_LONGEST = 80  # characters of a folder's name


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: one setting, run with every seed.

    Attributes:
        name: heads the row.
        folder: name of the folder of its runs; differs from that of any other row.
        overrides: flags such as "--config.model.variant=artemis".
    """

    name: str
    folder: str
    overrides: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        row: its setting.
        seed: value of ``config.seed``.
        workdir: its folder.
        overrides: all flags of the run that set a field, the seed's included.
    """

    row: Row
    seed: int
    workdir: pathlib.Path
    overrides: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.row.name}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep as it was asked for.

    Attributes:
        config: a --config value.
        overrides: flags that set fields in all runs.
        rows: the settings; the others are compared with the first.
        seeds: of every row.
    """

    config: str
    overrides: tuple[str, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]

    def runs(self, folder: str | os.PathLike) -> list[Run]:
        """Return the runs seed by seed, since an early table then has every row."""
        return [
            Run(
                row=row,
                seed=seed,
                workdir=pathlib.Path(folder) / row.folder / f"seed-{seed}",
                overrides=(
                    *(_filled(flag, row, seed) for flag in (*self.overrides, *row.overrides)),
                    f"--{SEED}={seed}",
                ),
            )
            for seed in self.seeds
            for row in self.rows
        ]

    def write(self, folder: str | os.PathLike) -> None:
        """Write the plan into the sweep's folder."""
        write_json(pathlib.Path(folder) / PLAN, dataclasses.asdict(self))


def is_sweep(folder: str | os.PathLike) -> bool:
    """Tell whether a folder holds a sweep."""
    return (pathlib.Path(folder) / PLAN).is_file()


def read_plan(folder: str | os.PathLike) -> Plan:
    """Read the plan of a sweep.

    Raises:
        FileNotFoundError: the folder holds no sweep.
        ValueError: a broken file; names it.
    """
    path = pathlib.Path(folder) / PLAN
    content = read_json(path)
    try:
        rows = [Row(r["name"], r["folder"], tuple(r["overrides"])) for r in content["rows"]]
        return Plan(
            config=content["config"],
            overrides=tuple(content["overrides"]),
            rows=tuple(rows),
            seeds=tuple(map(int, content["seeds"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is no plan of a sweep ({error}); restore it") from error


def make_rows(settings: Settings, otherwise: str) -> tuple[Row, ...]:
    """Return the rows of settings, with names and folders that differ.

    Args:
        settings: see `cmap_jax.sweeps.hyper`.
        otherwise: name of a row that sets no field and has no name of its own.

    Raises:
        ValueError: no rows, two rows alike, a field without ``config.`` or the seed; names it.
    """
    if not settings:
        raise ValueError("get_hyper returns no rows; return a list with a dict of fields for each")
    for row in settings:
        if not all(isinstance(name, str) for name in row):
            raise ValueError(f"{row}: the names of fields are texts")
        if not (isinstance(row.get(NAME, "_"), str) and row.get(NAME, "_")):
            raise ValueError(f"{row}: a row's {NAME!r} is a text of one letter or more")
    for name in (name for row in settings for name in row if name != NAME):
        if not name.startswith("config."):
            raise ValueError(f"{name}: the name of a field begins with config., or is {NAME!r}")
        if name == SEED:
            raise ValueError(f"{SEED} is set by --seeds; leave it out of the settings")
    names = [row.get(NAME, otherwise) for row in named(settings)]
    overrides = [tuple(f"--{k}={v}" for k, v in row.items() if k != NAME) for row in settings]
    for kind, values in (("name", names), ("settings", overrides)):
        value, count = Counter(values).most_common(1)[0]
        if count > 1:
            shown = value if isinstance(value, str) else " ".join(value) or "none"
            raise ValueError(f"{count} rows have the same {kind}: {shown}; make them differ")
    folders = _folders(names)
    return tuple(map(Row, names, folders, overrides))


def named(settings: Settings) -> Settings:
    """Return settings whose rows have names: their own, or else their fields with the values.

    A row that sets no field and has no name of its own stays without one.
    """
    labels = _short_names(settings)
    return [
        {NAME: ", ".join(f"{labels[k]}={v}" for k, v in row.items()), **row} if row else row
        for row in settings
    ]


def check_continues(folder: str | os.PathLike, plan: Plan) -> None:
    """Refuse a plan that changes or drops what the folder's sweep has; rows and seeds may be added.

    Raises:
        ValueError: names the first difference.
    """
    if not is_sweep(folder):
        return
    old = read_plan(folder)
    changes = [
        ("--config", old.config, plan.config),
        ("overrides", " ".join(old.overrides), " ".join(plan.overrides)),
        *((f"row {row.name!r}", _settings(old, row.name), _settings(plan, row.name))
          for row in old.rows),
        ("first row", old.rows[0].name, plan.rows[0].name),
        *(("seed", str(s), str(s) if s in plan.seeds else "no such seed") for s in old.seeds),
    ]  # fmt: skip
    for part, before, now in changes:
        if before != now:
            raise ValueError(
                f"{os.fspath(folder)} holds another sweep: {part} is {before!r} there and {now!r} "
                "now. Add rows and seeds only, or name another folder with --workdir"
            )


def _settings(plan: Plan, name: str) -> str:
    """Return a row's folder and flags as a text."""
    row = next((row for row in plan.rows if row.name == name), None)
    return f"{row.folder}: {' '.join(row.overrides)}" if row else "no such row"


def _filled(flag: str, row: Row, seed: int) -> str:
    return flag.replace(_SEED_MARK, str(seed)).replace(_ROW_MARK, row.folder)


def _short_names(settings: Settings) -> Mapping[str, str]:
    """Return the last part of each field's name, or all of it where two fields end alike."""
    fields = dict.fromkeys(name for row in settings for name in row)
    ends = Counter(name.rpartition(".")[2] for name in fields)
    return {f: e if ends[e := f.rpartition(".")[2]] == 1 else f for f in fields}


def _folders(names: Sequence[str]) -> list[str]:
    """Return a name of a folder for each row, in the letters that any file system takes."""
    folders: list[str] = []
    for name in names:
        plain = _UNSAFE.sub("_", name).strip("_.")[:_LONGEST] or "row"
        taken = {folder.lower() for folder in folders}  # some file systems know no letter case
        numbered = (plain if i == 1 else f"{plain}-{i}" for i in range(1, len(names) + 1))
        folders.append(next(f for f in numbered if f.lower() not in taken))
    return folders
