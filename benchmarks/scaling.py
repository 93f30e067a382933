"""Work, memory and communication of a training step on 1 to 8 devices, from compiled programs.

python benchmarks/scaling.py --out=benchmarks/results/scaling.json

The devices are simulated by the CPU, so that times mean nothing and are not measured. Convolutions
are those of accelerators, since the CPU's form is not made for several devices. FLOP and scratch
are the compiler's figures for one device. The bytes that a device sends are summed over the
program's collectives, each by its ring algorithm. The second table is about batches that are
encoded in micro-batches, on one device.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import inspect
import re
import sys
from typing import Any

import harness
import jax
import numpy as np

from cmap_jax import sharding
from cmap_jax.models import layers
from cmap_jax.models.cmap import CMAP
from cmap_jax.training.optimizer import make_optimizer, make_schedule
from cmap_jax.training.train_state import create_train_state
from cmap_jax.training.train_step import make_train_step
from configs import fashioniq, garments

layers.convolve = inspect.unwrap(layers.convolve)  # the plain one, as accelerators get it

MESHES = ((1, 1), (2, 1), (4, 1), (8, 1), (8, 8))  # devices, and the length of the axis "fsdp"
TRIPLETS = 32  # on each device
PARTS = ((512, None), (2048, 512), (8192, 512))  # batch size, micro-batch size
VOCABULARY, TEXT_WIDTH = 3780, 32
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f64": 8, "pred": 1, "u8": 1}
_COLLECTIVE = re.compile(
    r"= (?P<type>\(.*?\)|\S+) "
    r"(?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


def compile_step(config: Any, devices: int, fsdp: int) -> Any:
    """Compile a config's training step for some devices."""
    config.model.text.vocabulary_size = VOCABULARY
    mesh = sharding.make_mesh(jax.devices()[:devices], fsdp=fsdp)
    model = CMAP.from_config(config)
    schedule = make_schedule(config, 100)
    tx = make_optimizer(config, schedule)
    state = jax.eval_shape(lambda: create_train_state(model, tx, 0, config.data.crop))
    where = sharding.by_size(state, mesh)
    state = jax.tree.map(
        lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), state, where
    )
    rows = sharding.split_over_devices(mesh)
    inputs = jax.eval_shape(
        lambda: CMAP.example_inputs(config.data.crop, config.train.batch_size, TEXT_WIDTH)
    )
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), inputs)
    step = jax.jit(
        make_train_step(model, tx, schedule, config=config, mesh=mesh),
        donate_argnums=0,
        out_shardings=(where, sharding.replicated(mesh)),
    )
    return step.lower(state, batch).compile()


def sent_bytes(program: str, devices: int) -> tuple[float, int]:
    """Return the bytes that a device sends in a step, and the number of collectives."""
    total, count = 0.0, 0
    for collective in _COLLECTIVE.finditer(program):
        size = sum(
            _BYTES[kind] * int(np.prod([int(n) for n in sides.split(",") if n]))
            for kind, sides in _ARRAY.findall(collective["type"])
        )
        fraction = (devices - 1) / devices
        # On a ring, an all-reduce is a reduce-scatter and an all-gather.
        passes = {"all-reduce": 2 * fraction, "reduce-scatter": devices - 1}
        total += size * passes.get(collective["kind"], fraction)
        count += 1
    return total, count


def figures(compiled: Any, devices: int) -> dict[str, float]:
    """Return the compiler's figures for one device's program."""
    memory = compiled.memory_analysis()
    sent, count = sent_bytes(compiled.as_text(), devices)
    return {
        "gflop": compiled.cost_analysis()["flops"] / 1e9,
        "state_and_batch": memory.argument_size_in_bytes,
        "scratch": memory.temp_size_in_bytes,
        "sent": sent,
        "collectives": count,
    }


def main() -> None:
    arguments = harness.parser(__doc__).parse_args()
    results: dict[str, dict] = {"step": {}, "parts": {}}
    rows = []
    for devices, fsdp in MESHES:
        config = fashioniq.get_config("finetune")
        config.train.batch_size = TRIPLETS * devices
        figure = figures(compile_step(config, devices, fsdp), devices)
        results["step"][f"{devices}/{fsdp}"] = figure
        rows.append(
            [
                f"{devices}",
                f"{fsdp}",
                f"{TRIPLETS * devices}",
                f"{figure['gflop']:,.0f}",
                *(f"{figure[k] / 2**20:,.0f}" for k in ("state_and_batch", "scratch", "sent")),
                f"{figure['collectives']:,.0f}",
            ]
        )
        sys.stderr.write(f"{rows[-1]}\n")
    head = ["devices", "fsdp", "batch", "GFLOP", "state and batch, MiB", "scratch, MiB"]
    print(harness.table([*head, "sent, MiB", "collectives"], rows))
    rows = []
    for batch, micro in PARTS:
        config = garments.get_config()
        config.train.batch_size, config.train.micro_batch_size = batch, micro
        figure = figures(compile_step(config, 1, 1), 1)
        results["parts"][f"{batch}/{micro}"] = figure
        scores = 4 * 3 * batch**2 / 2**20
        rows.append(
            [
                f"{batch:,}",
                f"{micro or batch}",
                f"{figure['state_and_batch'] / 2**20:,.0f}",
                f"{figure['scratch'] / 2**20:,.0f}",
                f"{scores:,.0f}",
            ]
        )
        sys.stderr.write(f"{rows[-1]}\n")
    head = ["batch", "encoded at once", "state and batch, MiB", "scratch, MiB"]
    print("\n" + harness.table([*head, "one set of score matrices, MiB"], rows))
    harness.write(arguments.out, results)


if __name__ == "__main__":
    main()
