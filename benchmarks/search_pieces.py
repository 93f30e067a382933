"""The pieces of an exact search on an accelerator, for choosing its constants."""

import time
import traceback

import harness
import jax
import jax.numpy as jnp
import numpy as np
import search
from ranking import WIDTH, random_query

from cmap_jax import sharding
from cmap_jax.retrieval import carry, fast, plan, scan, scores
from cmap_jax.retrieval.exact import ExactIndex

STARTED = time.perf_counter()


def note(text: str) -> None:
    print(f"[{time.perf_counter() - STARTED:6.1f} s] {text}", flush=True)


def ms(run, repeats: int = 5) -> float:
    return 1e3 * min(harness.seconds(lambda: jax.block_until_ready(run()), repeats, 1))


def watch(module, name: str, taken: dict) -> None:
    """Replace a program by one that is timed alone."""
    program = getattr(module, name)

    def timed(*args, **kwargs):
        started = time.perf_counter()
        result = jax.block_until_ready(program(*args, **kwargs))
        taken.setdefault(name, []).append(1e3 * (time.perf_counter() - started))
        return result

    setattr(module, name, timed)


def programs(index, batch: int, label: str) -> None:
    query = random_query(np.random.default_rng(1), batch)
    index.search(query, search.K)
    kept = scan.scan, fast.choose
    taken: dict = {}
    watch(scan, "scan", taken)
    watch(fast, "choose", taken)
    choose = fast.choose
    chosen = []

    def look(*args, **kwargs):
        result = choose(*args, **kwargs)
        chosen.append(result[2])
        return result

    fast.choose = look
    started = time.perf_counter()
    for _ in range(3):
        index.search(query, search.K)
    whole = (time.perf_counter() - started) / 3 * 1e3
    scan.scan, fast.choose = kept
    left = (
        f", left {np.asarray(chosen[-1].count)} all {np.asarray(chosen[-1].is_all)}"
        if chosen
        else ""
    )
    note(
        f"{label}, {batch}: search {whole:.2f} ms; "
        + "; ".join(f"{k} {min(v):.2f}" for k, v in taken.items())
        + left
    )


def attempt(label: str, run) -> None:
    if time.perf_counter() - STARTED > LIMIT:
        return note(f"{label}: no time")
    try:
        return run()
    except Exception:
        note(f"{label} failed")
        return traceback.print_exc()


def micro() -> None:
    rng = np.random.default_rng(0)
    for shape, k in (((1024, 1016), 80), ((1024, 1360), 80), ((1, 7813), 64), ((1024, 16256), 64)):
        x = jnp.asarray(rng.standard_normal(shape, np.float32))
        note(
            f"top_k {shape} {k}: {ms(lambda x=x, f=jax.jit(lambda x, k=k: jax.lax.top_k(x, k)): f(x)):.3f} ms"
        )
    t = jnp.asarray(rng.standard_normal((16256, WIDTH), np.float32))
    q = jnp.asarray(rng.standard_normal((2, 1024, WIDTH), np.float32))

    def split3(q, t):
        return scores._split_products([tuple(scores.split(x, 2)) for x in q], scores.split(t, 2))

    def preset(q, t):
        algorithm = jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3
        return jnp.einsum("kbd,nd->kbn", q, t, precision=algorithm)

    def flat(q, t):
        a = scores.split(q.reshape(-1, WIDTH), 2)
        b = scores.split(t, 2)
        left = jnp.concatenate([a[1], a[0], a[0]], axis=1)
        right = jnp.concatenate([b[0], b[1], b[0]], axis=1)
        return jax.lax.dot_general(
            left, right, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )

    def full(q, t):
        return jnp.einsum("kbd,nd->kbn", q, t, precision="highest")

    for name, f in {"split3": split3, "preset": preset, "flat": flat, "full": full}.items():
        taken = ms(lambda f=jax.jit(f): f(q, t), 10)
        note(
            f"{name}: {taken:.3f} ms, {2 * 2048 * 16256 * WIDTH / taken / 1e9:.1f} TFLOP/s of one product"
        )
    wide = jnp.zeros((2**20, WIDTH), jnp.float32)
    query = jax.tree.map(
        jnp.asarray, random_query(np.random.default_rng(1), 1).replace(preservation=None)
    )
    for rows in (2**13, 2**15, 2**17, 2**20):
        level = wide[:rows]
        f = jax.jit(lambda x: scores.fused_score(query, (x, x, x), "gpu"))
        taken = ms(lambda f=f, level=level: f(level), 20)
        note(f"fused {rows}: {taken:.3f} ms, {3 * rows * WIDTH * 4 / taken / 1e6:.0f} GB/s")
    best = jax.jit(lambda x: carry._most_promising(x, 64))
    one = jnp.asarray(rng.standard_normal((1, 10**6), np.float32))
    note(f"most promising [1, 1M]: {ms(lambda: best(one)):.3f} ms")


def explore(images: int) -> None:
    gallery = search.make_gallery(images)
    mesh = sharding.make_mesh()
    index = ExactIndex(gallery, mesh, device_gb=1e3)
    for batch in (1, 4, 16, 64, 128, 256, 1024):
        attempt(f"programs {batch}", lambda b=batch: programs(index, b, "default"))
    attempt("micro", micro)
    for tile in (2**13, 2**17, 2**20):
        plan._FUSED_TILE_ELSEWHERE = tile
        attempt(f"tile {tile}", lambda t=tile: programs(index, 1, f"tile {t}"))
    for chunk in (8192, 32768, 65536):
        other = ExactIndex(gallery, mesh, device_gb=1e3, chunk=chunk)
        attempt(f"chunk {chunk}", lambda o=other, c=chunk: programs(o, 1024, f"chunk {c}"))
    attempt(
        "fast 64", lambda: programs(ExactIndex(gallery, mesh, device_gb=1e3, fast=True), 64, "fast")
    )
    attempt("16 fused", lambda: fused16(index))


def fused16(index) -> None:
    plan._FUSED_TILE_ELSEWHERE = 2**15
    plan._MOST_FUSED_ELSEWHERE = 16
    programs(index, 16, "fused")
    programs(index, 8, "fused")


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--limit", type=float, default=125.0)
    arguments = parser.parse_args()
    LIMIT = arguments.limit
    attempt("resident", lambda: search.resident(arguments.images, 70.0))
    attempt("explore", lambda: explore(arguments.images))
