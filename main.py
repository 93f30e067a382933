"""Train, evaluate or describe a model.

python main.py --config=configs/garments.py
python main.py --mode=evaluate --workdir=runs/garments
python main.py --mode=describe --config=configs/fashioniq.py
"""

import os

# Before TensorFlow and JAX load: their chatter is not ours to show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from absl import app, logging

from cmap_jax.cli import compilation_cache, flags, processes


def _is_ours_or_serious(record: "logging.LogRecord") -> bool:
    """Drop the dozens of lines that Orbax logs a checkpoint, and JAX's about absent back ends."""
    serious = record.levelno >= logging.converter.STANDARD_WARNING
    return serious or not any(name in record.pathname for name in ("orbax", "xla_bridge"))


def main(_: list[str]) -> None:
    """Do what --mode says."""
    logging.set_verbosity(logging.INFO if flags.VERBOSE.value else logging.WARNING)
    logging.get_absl_handler().addFilter(_is_ours_or_serious)
    config, workdir = flags.CONFIG.value, flags.workdir()
    compilation_cache.use_compilation_cache(flags.COMPILATION_CACHE.value)
    with flags.expected_errors():
        if flags.MODE.value == "describe":
            from cmap_jax.cli.describe import describe

            print(describe(config))
            return
        processes.join(
            config,
            coordinator=flags.COORDINATOR.value,
            process_count=flags.PROCESS_COUNT.value,
            process_index=flags.PROCESS_INDEX.value,
            cluster=flags.CLUSTER.value,
        )
        # Only now: TensorFlow takes seconds to load.
        from cmap_jax.cli import run

        with processes.ending_together():
            run.run(config, workdir, evaluate_only=flags.MODE.value == "evaluate")


if __name__ == "__main__":
    app.run(main, flags_parser=flags.parse)
