"""Score and loss of a batch, forward and backward, beside two forms in PyTorch.

python benchmarks/score_and_loss.py --out=benchmarks/results/score_and_loss.json

Three levels, D = 512, CMAP's two branches, matching and preservation loss; gradients of both
pyramids, the transformed text and both attentions. "torch direct" builds the B x B x D tensor of
the definition; "torch factorised" factorises the score as cmap_jax does. The losses must agree to
1e-4.
"""

import json

import harness
import numpy as np

LEVELS, WIDTH = 3, 512
DIRECT = (128, 256)  # sizes of the direct form, which takes tens of GB at 512
SIZES = (128, 256, 512, 1024)
LARGE = 8192
SIDES = ("jax", "torch_factorised", "torch_direct")


def inputs(batch: int) -> dict[str, np.ndarray]:
    """Return random inputs, float32."""
    rng = np.random.default_rng(batch)

    def l2(x: np.ndarray) -> np.ndarray:
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    def attention() -> np.ndarray:
        x = np.exp(rng.normal(size=(batch, WIDTH)))
        return (x / x.sum(axis=-1, keepdims=True)).astype(np.float32)

    return {
        "reference": l2(rng.normal(size=(LEVELS, batch, WIDTH))),
        "target": l2(rng.normal(size=(LEVELS, batch, WIDTH))),
        "text": l2(rng.normal(size=(batch, WIDTH))),
        "transform": l2(rng.normal(size=(batch, WIDTH))),
        "modification": attention(),
        "preservation": attention(),
    }


def jax_side(batch: int):
    """Return a function that computes loss and gradients, and returns the loss."""
    import jax
    import jax.numpy as jnp

    from cmap_jax.models.cmap import TrainingOutputs
    from cmap_jax.models.composers import modified_branch, preserved_branch
    from cmap_jax.scoring import ComposedQuery, PreservationInputs
    from cmap_jax.sharding import make_mesh
    from cmap_jax.training.objective import objective
    from configs import default

    settings, mesh = default.get_config().loss, make_mesh(jax.devices()[:1])

    def loss(x):
        branches = (
            modified_branch(x["transform"], x["modification"]),
            preserved_branch(x["reference"], x["preservation"]),
        )
        preservation = PreservationInputs(x["text"], x["transform"], x["preservation"])
        names = ("modified", "preserved"), ("high", "mid", "low")
        query = ComposedQuery(branches, preservation, *names)
        outputs = TrainingOutputs(query, x["target"], jnp.float32(2.65926))
        return objective(outputs, settings, mesh)[0]

    arrays = jax.tree.map(jnp.asarray, inputs(batch))
    step = jax.jit(jax.value_and_grad(loss)).lower(arrays).compile()
    return lambda: jax.block_until_ready(step(arrays))[0]


def torch_side(batch: int, direct: bool):
    """Return PyTorch's function that computes loss and gradients, and returns the loss."""
    import torch
    import torch_training as tt
    from torch_reference import l2, modified_scores, preserved_scores

    x = {k: torch.from_numpy(v).requires_grad_() for k, v in inputs(batch).items()}
    objective = tt.Objective()

    def factorised() -> torch.Tensor:
        a, p, t = x["modification"], x["preservation"], x["target"]
        numerators = torch.cat([(x["transform"] * a).expand_as(t), l2(p * x["reference"]) * p], 1)
        squares = torch.cat([a * a, p * p]).expand(LEVELS, -1, -1)
        dots = numerators @ t.transpose(1, 2)
        norms = (squares @ (t * t).transpose(1, 2)).clamp_min(1e-24).rsqrt()
        scores = dots * norms
        return scores[:, :batch] + scores[:, batch:]

    def definition() -> torch.Tensor:
        a, p = x["modification"], x["preservation"]
        return torch.stack(
            [
                modified_scores(x["transform"], a, t) + preserved_scores(p, r, t)
                for r, t in zip(x["reference"], x["target"], strict=True)
            ]
        )

    def run() -> float:
        for leaf in x.values():
            leaf.grad = None
        scores = (definition if direct else factorised)()
        temperature = torch.tensor(2.65926)
        total = sum(
            w * tt.matching_loss(s, temperature)
            for w, s in zip(objective.matching_weights, scores, strict=True)
        )
        for i, target in enumerate(x["target"]):
            total = total + objective.preservation_weights[i] * tt.preservation_loss(
                x["text"], None, x["preservation"], target, margin=objective.margins[i]
            )
        total.backward()
        return total.item()

    return run


def measure(side: str) -> dict:
    """Return the seconds, the memory and the loss of one side, for each of its sizes."""
    results = {}
    sizes = DIRECT if side == "torch_direct" else (*SIZES, LARGE) if side == "jax" else SIZES
    for batch in sizes:
        run = jax_side(batch) if side == "jax" else torch_side(batch, side == "torch_direct")
        memory = harness.peak_bytes(run)
        repeats = 3 if side == "torch_direct" or batch == LARGE else 15
        loss = float(run())
        taken = harness.seconds(run, repeats)
        results[batch] = {"seconds": taken, "bytes": memory, "loss": loss}
    return results


def main() -> None:
    arguments = harness.parser(__doc__).parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side)))
        return
    results = harness.take_turns(SIDES, arguments.turns)
    rows, figures = [], {}
    for batch in map(str, (*SIZES, LARGE)):
        runs = {side: [f[batch] for f in turns if batch in f] for side, turns in results.items()}
        losses = [run["loss"] for turns in runs.values() for run in turns]
        np.testing.assert_allclose(losses, losses[0], rtol=1e-4)
        times = {s: [t for run in turns for t in run["seconds"]] for s, turns in runs.items()}
        memory = {s: float(np.median([run["bytes"] for run in t])) for s, t in runs.items() if t}
        figures[batch] = {"seconds": times, "bytes": memory}
        cells = [batch, *(harness.spread(times[s], 1e3, 1) if times[s] else "" for s in SIDES)]
        for side in SIDES[1:]:
            ratio = np.median(times[side]) / np.median(times["jax"]) if times[side] else None
            cells.append("" if ratio is None else f"{ratio:.1f}")
        direct = memory.get("torch_direct")
        cells.append(f"{memory['jax'] / 2**20:.0f} MiB")
        cells.append("" if direct is None else f"{100 * memory['jax'] / direct:.1f}%")
        rows.append(cells)
    head = ["B", *(f"{s.replace('_', ' ')}, ms" for s in SIDES)]
    head += ["factorised / jax", "direct / jax", "memory of jax", "/ torch direct's"]
    print(harness.table(head, rows))
    harness.write(arguments.out, {"sizes": figures})


if __name__ == "__main__":
    main()
