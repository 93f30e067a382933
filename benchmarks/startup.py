"""Start-up: importing, and compiling the garments step with the compilation cache cold and warm.

python benchmarks/startup.py --out=benchmarks/results/startup.json
"""

import subprocess
import sys
import tempfile
import time

import harness
import numpy as np

IMPORTS = (
    "cmap_jax",
    "cmap_jax.models",
    "cmap_jax.workdir.description",
    "cmap_jax.training.train",
    "torch",
)
_COMPILE = """
import sys, time
from cmap_jax.cli import compilation_cache
compilation_cache.use_compilation_cache(sys.argv[1])
import train_step
config = train_step.make_config(sys.argv[2])
import jax
from cmap_jax.models.cmap import CMAP
from cmap_jax.sharding import make_mesh
from cmap_jax.training.optimizer import make_optimizer, make_schedule
from cmap_jax.training.train_state import create_train_state
from cmap_jax.training.train_step import make_train_step
model, schedule = CMAP.from_config(config), make_schedule(config, 100)
tx = make_optimizer(config, schedule)
state = jax.eval_shape(lambda: create_train_state(model, tx, 0, config.data.crop))
batch = jax.eval_shape(lambda: CMAP.example_inputs(config.data.crop, config.train.batch_size, 16))
started = time.perf_counter()
mesh = make_mesh(jax.devices()[:1])
step = jax.jit(make_train_step(model, tx, schedule, config, mesh), donate_argnums=0)
lowered = step.lower(state, batch)
traced = time.perf_counter()
lowered.compile()
print(traced - started, time.perf_counter() - traced)
"""


def _python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=harness.ROOT / "benchmarks",
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def main() -> None:
    arguments = harness.parser(__doc__).parse_args()
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    for _ in range(arguments.turns):
        for module in ("", *IMPORTS):
            started = time.perf_counter()
            _python("-c", f"import {module}" if module else "")
            note(f"import {module}" if module else "an empty Python", time.perf_counter() - started)
        for model in ("garments", "resnet50, fine-tuned"):
            with tempfile.TemporaryDirectory() as folder:
                for name in ("cold", "warm"):
                    traced, compiled = map(float, _python("-c", _COMPILE, folder, model).split())
                    note(f"{model}: trace", traced)
                    note(f"{model}: compile, cache {name}", compiled)
    rows = [[name, harness.spread(values, digits=2)] for name, values in figures.items()]
    for model in ("garments", "resnet50, fine-tuned"):
        cold, warm = (np.median(figures[f"{model}: compile, cache {n}"]) for n in ("cold", "warm"))
        rows.append([f"{model}: cold / warm", f"{cold / warm:.1f}"])
    print(harness.table(["what", "seconds"], rows))
    harness.write(arguments.out, {"seconds": figures})


if __name__ == "__main__":
    main()
