"""kill -9 at random moments of one run of main.py, resumed each time, beside one left alone.

python tests/endurance.py --kills=30

A third of the moments lie in writing a checkpoint, a third in an evaluation, a third anywhere. All
are printed. The two runs must end with the same final state, best variables, results and curves.
"""

import argparse
import functools
import multiprocessing
import os
import pathlib
import random
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# A small model, so that starting is most of the time that a start takes.
ARGUMENTS = (
    f"--config={ROOT / 'configs' / 'garments.py'}:debug",
    "--config.data.garments.train_triplets=160",
    "--config.data.garments.image_size=36",
    "--config.data.resize=36",
    "--config.data.crop=32",
    "--config.model.image.resnet.width=4",
    "--config.model.embed_dim=16",
    "--config.model.text.gru.word_dim=8",
    "--config.train.batch_size=32",
    "--config.train.log_every_steps=7",
    "--config.optimizer.warmup_steps=5",
)
STEPS = 10  # an epoch of that
_PHASES = ("save", "evaluation", "any")


def _child(arguments: list[str], folder: str, log: str) -> None:
    """Run main.py in this process, with a line in the log for each step, evaluation and save."""
    os.chdir(folder)
    os.environ["XLA_FLAGS"] = ""
    sys.argv = ["main.py", *arguments]  # where the overrides of a config are looked for
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import jax

    from cmap_jax.cli import train
    from cmap_jax.evaluation.evaluator import Evaluator
    from cmap_jax.training.checkpointing import Checkpoints
    from cmap_jax.training.watch import LossWatch

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # starts are what is slow

    def marked(owner: type, method: str, what: str) -> None:
        original = getattr(owner, method)

        @functools.wraps(original)
        def call(self, *args, **kwargs):
            detail = args[0] if what == "step" else ""
            os.write(output, f"\n@{what} {detail}\n".encode())
            result = original(self, *args, **kwargs)
            os.write(output, f"\n@after-{what} {time.time()}\n".encode())
            return result

        setattr(owner, method, call)

    marked(LossWatch, "__call__", "step")
    marked(Evaluator, "__call__", "evaluation")
    marked(Checkpoints, "save", "save")
    train.main(sys.argv)


def _context() -> multiprocessing.context.BaseContext:
    """Processes forked from one that has imported everything, and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["main", "cmap_jax.cli.run", "clu.metric_writers"])
    return context


def _marks(log: pathlib.Path, start: int) -> list[str]:
    """The marks that a start has left in the log."""
    text = log.read_bytes()[start:].decode(errors="replace") if log.exists() else ""
    return [line for line in text.splitlines() if line.startswith("@")]


def _wait(
    process, log: pathlib.Path, start: int, mark: str, times: int, timeout: float = 300
) -> bool:
    """Wait until a mark was left so many times; False where the run ended before."""
    deadline = time.monotonic() + timeout
    while sum(line.startswith(mark) for line in _marks(log, start)) < times:
        if not process.is_alive():
            return False
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {mark} in {timeout} s: {log}")
        time.sleep(0.01)
    return True


def endure(folder: pathlib.Path, kills: int, seed: int) -> list[str]:
    """Make both runs and compare them; return the moments."""
    from stored_runs import assert_same

    context, rng = _context(), random.Random(seed)
    # Long enough not to end before the last kill: no start gets further than two epochs.
    length = f"--config.train.epochs={2 * kills + 1}"
    arguments = [*ARGUMENTS, length, f"--compilation_cache={folder / 'cache'}"]

    def start(name: str):
        log = folder / f"{name}.log"
        seen = log.stat().st_size if log.exists() else 0
        own = [*arguments, f"--workdir={folder / name}"]
        process = context.Process(target=_child, args=(own, str(folder), str(log)))
        process.start()
        return process, log, seen

    process, log, _ = start("alone")
    process.join()
    assert process.exitcode == 0, log.read_text()[-3000:]
    moments: list[str] = []
    started = time.monotonic()
    while len(moments) < kills:
        phase = _PHASES[len(moments) % len(_PHASES)]
        process, log, seen = start("killed")
        mark, most = ("@step", 2 * STEPS) if phase == "any" else (f"@{phase}", 2)
        times = rng.randint(1, most)
        if not _wait(process, log, seen, mark, times):
            raise AssertionError(
                f"the run ended after {len(moments)} kills: {log.read_text()[-2000:]}"
            )
        # About as long as one takes here.
        time.sleep(rng.uniform(0, {"save": 0.12, "evaluation": 0.6, "any": 0.1}[phase]))
        process.kill()
        process.join()
        marks = _marks(log, seen)
        steps = [line.split()[1] for line in marks if line.startswith("@step")]
        writing = [
            f"{p.parent.name}/{p.name.partition('.')[0]}"
            for p in (folder / "killed").glob("*/*tmp*")
        ]
        last = marks[-1].split()[0].strip("@")
        moments.append(
            f"{time.monotonic() - started:6.1f} s, step {steps[-1] if steps else '-':>3}, "
            f"{last}{', writing ' + ', '.join(writing) if writing else ''}"
        )
        print(f"kill {len(moments):2d}: {moments[-1]}", flush=True)
    process, log, _ = start("killed")
    process.join()
    assert process.exitcode == 0, log.read_text()[-3000:]
    assert_same(folder / "alone", folder / "killed")
    return moments


def main() -> None:
    """Parse the arguments and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        endure(pathlib.Path(folder), arguments.kills, arguments.seed)
    print(f"{arguments.kills} kills; the run ended as the one left alone")


if __name__ == "__main__":
    main()
