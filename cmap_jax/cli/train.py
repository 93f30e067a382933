"""Train, evaluate or describe a model, with main.py's flags.

cmap train --config=configs/garments.py
cmap train --help
"""

import functools
import logging
import os
from collections.abc import Sequence

from absl import app
from absl import logging as absl_logging

from cmap_jax.cli import flags
from cmap_jax.cli.errors import expected_errors
from cmap_jax.cli.resumed import for_resumed_run
from cmap_jax.cli.termination import ending_on_sigterm


def main(argv: Sequence[str]) -> None:
    """Parse the command line, do what --mode says, and end the program with its exit status.

    Args:
        argv: the program's name, then the flags.
    """
    with ending_on_sigterm():
        app.run(_main, argv=list(argv), flags_parser=flags.parse)


def _main(argv: list[str]) -> None:
    # The project logs through the standard library; `app.run` has made absl's handler the root's.
    absl_logging.set_verbosity(absl_logging.INFO if flags.VERBOSE.value else absl_logging.WARNING)
    absl_logging.get_absl_handler().addFilter(_is_ours_or_serious)
    program = os.path.basename(argv[0])
    config, workdir = flags.CONFIG.value, flags.WORKDIR.value
    evaluates = flags.MODE.value == "evaluate"
    amended = str if evaluates else functools.partial(for_resumed_run, workdir=workdir)
    with expected_errors(program, amended=amended):
        # The import stands here because --help and a wrong flag need not wait for JAX.
        from cmap_jax.cli import compilation_cache, devices, processes

        compilation_cache.use_compilation_cache(flags.COMPILATION_CACHE.value)
        if flags.MODE.value == "describe":
            from cmap_jax.cli.describe import describe

            devices.check_devices()
            print(describe(config))
            return
        processes.join(
            config,
            coordinator=flags.COORDINATOR.value,
            process_count=flags.PROCESS_COUNT.value,
            process_index=flags.PROCESS_INDEX.value,
            cluster=flags.CLUSTER.value,
        )
        with processes.ending_together(program, amended):
            processes.check_same_config(config)
            # The import stands here because TensorFlow takes seconds to load.
            from cmap_jax.cli import run

            run.run(config, workdir, evaluate_only=evaluates, command=flags.command(program))


def _is_ours_or_serious(record: logging.LogRecord) -> bool:
    """Drop Orbax's dozens of lines for each checkpoint, and JAX's about missing back ends."""
    serious = record.levelno >= logging.WARNING
    return serious or not any(name in record.pathname for name in ("orbax", "xla_bridge"))
