"""Ranks of 2,000 queries in galleries of 5,000 and 60,000 images, as a share of the GEMM peak.

python benchmarks/ranking.py --out=benchmarks/results/ranking.json

CMAP's score takes twelve dot products of 512 numbers for each pair: three levels, two branches,
numerator and norm. The peak is the best rate of NumPy's, PyTorch's and XLA's square float32
products of several sizes, each library in its own process, in the same run.
"""

import json
import os
from typing import Any

import harness
import numpy as np

QUERIES, WIDTH, LEVELS = 2000, 512, 3
GALLERIES = (5_000, 60_000)
SIDES = ("numpy", "torch", "jax")
SIZES = (1024, 2048, 4096)


def gemm_peak(side: str) -> float:
    """Return the best float32 GFLOP/s of a library's square products."""
    best = 0.0
    for size in SIZES:
        a = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
        if side == "numpy":
            run = lambda a=a: a @ a  # noqa: E731
        elif side == "torch":
            import torch

            b = torch.from_numpy(a)
            run = lambda b=b: b @ b  # noqa: E731
        else:
            import jax

            c = jax.device_put(a)
            product = jax.jit(lambda c: c @ c)
            run = lambda c=c, p=product: p(c).block_until_ready()  # noqa: E731
        best = max(best, 2 * size**3 / min(harness.seconds(run, 8)) / 1e9)
    return best


def l2(x: np.ndarray) -> np.ndarray:
    """Return unit vectors."""
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def random_query(rng: np.random.Generator, queries: int) -> Any:
    """Return random queries of CMAP's two branches."""
    from cmap_jax import scoring

    a, p = (np.exp(rng.normal(size=(1, queries, WIDTH))).astype(np.float32) for _ in range(2))
    modified = scoring.Branch(l2(rng.normal(size=(1, queries, WIDTH))) * a, a)
    preserved = scoring.Branch(l2(rng.normal(size=(LEVELS, queries, WIDTH))) * p, p)
    names = ("modified", "preserved"), ("high", "mid", "low")
    return scoring.ComposedQuery((modified, preserved), None, *names)


def rank(images: int) -> dict:
    """Return the seconds, the speed and the memory of the evaluator's search."""
    from cmap_jax import sharding
    from cmap_jax.retrieval.exact import ExactIndex

    rng = np.random.default_rng(0)
    gallery = l2(rng.standard_normal((LEVELS, images, WIDTH), np.float32))
    index = ExactIndex(gallery, sharding.make_mesh())
    block = 1000  # queries at once, about as many as in an evaluation
    queries = [random_query(rng, block) for _ in range(QUERIES // block)]
    targets = rng.integers(0, images, (QUERIES // block, block))

    def run() -> list[np.ndarray]:
        return [
            index.search(query, 0, targets=right, exclude=right - 1).ranks
            for query, right in zip(queries, targets, strict=True)
        ]

    # Measured in the first run, compiling included: later runs reuse its memory.
    memory = harness.peak_bytes(run)
    taken = harness.seconds(run, 5 if images < 10_000 else 3, warm_up=1)
    flop = 12 * 2 * QUERIES * images * WIDTH
    return {"seconds": taken, "gflops": flop / np.median(taken) / 1e9, "bytes": memory}


def main() -> None:
    arguments = harness.parser(__doc__).parse_args()
    if arguments.side:
        results = {"peak": gemm_peak(arguments.side)}
        if arguments.side == "jax":
            results |= {str(images): rank(images) for images in GALLERIES}
        print(json.dumps(results))
        return
    # These settings for old OpenBLAS builds halve the speed of a current NumPy.
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(name, None)
    results = harness.take_turns(SIDES, arguments.turns)
    peaks = {side: max(f["peak"] for f in turns) for side, turns in results.items()}
    peak = max(peaks.values())
    print("GEMM peak, GFLOP/s: " + ", ".join(f"{s} {p:.0f}" for s, p in peaks.items()))
    rows = []
    for images in map(str, GALLERIES):
        taken = [t for f in results["jax"] for t in f[images]["seconds"]]
        speed = 12 * 2 * QUERIES * int(images) * WIDTH / np.median(taken) / 1e9
        memory = max(f[images]["bytes"] for f in results["jax"]) / 2**20
        cells = [f"{int(images):,}", harness.spread(taken), f"{QUERIES / np.median(taken):,.0f}"]
        rows.append([*cells, f"{speed:.0f}", f"{100 * speed / peak:.0f}%", f"{memory:.0f} MiB"])
    head = [
        "images",
        "seconds",
        "queries/s",
        "GFLOP/s",
        "share of the peak",
        "memory beside the gallery",
    ]
    print(harness.table(head, rows))
    harness.write(arguments.out, {"peaks": peaks, "jax": results["jax"]})


if __name__ == "__main__":
    main()
