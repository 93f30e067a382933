"""The pieces of an exact search on an accelerator, for choosing its constants."""

import sys
import time
import traceback

import harness
import jax
import jax.numpy as jnp
import numpy as np
import search
from ranking import WIDTH, random_query

from cmap_jax import sharding
from cmap_jax.retrieval import fast, plan, scan, scores
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


def chain(index, batch: int, label: str, times: int = 20) -> None:
    """The time of a program among many, and what the host does meanwhile."""
    query = random_query(np.random.default_rng(1), batch)
    index.search(query, search.K)
    kept, calls = scan.scan, []

    def recorded(*args, **kwargs):
        calls.append((args, kwargs))
        return kept(*args, **kwargs)

    scan.scan = recorded
    index.search(query, search.K)
    scan.scan = kept
    args, kwargs = calls[-1]
    for count in (1, times):
        started = time.perf_counter()
        for _ in range(count):
            out = kept(*args, **kwargs)
        sent = time.perf_counter() - started
        jax.block_until_ready(out)
        whole = time.perf_counter() - started
        note(
            f"{label}, {batch}: {count} programs: sent {1e3 * sent / count:.2f} ms, "
            f"done {1e3 * whole / count:.2f} ms each"
        )
    started = time.perf_counter()
    for _ in range(times):
        index.search(query, search.K)
    note(f"{label}, {batch}: search {1e3 * (time.perf_counter() - started) / times:.2f} ms")


def profile(index, batch: int) -> None:
    import cProfile
    import pstats

    query = random_query(np.random.default_rng(1), batch)
    index.search(query, search.K)
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(20):
        index.search(query, search.K)
    profiler.disable()
    pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(14)


def micro() -> None:
    rng = np.random.default_rng(0)
    t = jnp.asarray(rng.standard_normal((65536, WIDTH), np.float32))
    q = jnp.asarray(rng.standard_normal((2, 1024, WIDTH), np.float32))
    left = jnp.zeros((2, 1024, 3 * WIDTH), jnp.bfloat16)
    right = jnp.zeros((65536, 3 * WIDTH), jnp.bfloat16)

    def product(left, right):
        return jnp.einsum("kbd,nd->kbn", left, right, preferred_element_type=jnp.float32)

    def pieces(t):
        a, b = scores.split(t, 2)
        return jnp.concatenate([a, b, a], axis=1)

    def split3(q, t):
        return scores._split_products([tuple(scores.split(x, 2)) for x in q], scores.split(t, 2))

    note(f"product alone: {ms(lambda f=jax.jit(product): f(left, right), 10):.3f} ms of 65,536")
    note(f"pieces alone: {ms(lambda f=jax.jit(pieces): f(t), 10):.3f} ms")
    note(f"both: {ms(lambda f=jax.jit(split3): f(q, t), 10):.3f} ms")
    for shape, k in (((1024, 2048), 128), ((1024, 4224), 128), ((1, 7813), 64), ((1, 8256), 64)):
        x = jnp.asarray(rng.standard_normal(shape, np.float32))
        f = jax.jit(lambda x, k=k: jax.lax.top_k(x, k))
        note(f"top_k {shape} {k}: {ms(lambda: f(x), 10):.3f} ms")


def sizes(gallery) -> None:
    """Time of the fast scores of 1,024 queries and a million images, by the size of a product."""
    levels = tuple(gallery[i] for i in range(3))
    for batch, rows in ((1024, 65536), (1024, 8192), (256, 8192), (256, 16384), (512, 4096)):
        query = jax.tree.map(
            jnp.asarray, random_query(np.random.default_rng(1), batch).replace(preservation=None)
        )
        count = max(2**25 // (batch * rows) * 4, 8)

        @jax.jit
        def run(query, levels, rows=rows, count=count):
            pieces = scores.split_query(query, 3, 2)

            def step(i, total):
                begin = i % (2**19 // rows) * rows
                part = scores.rows_at(levels, begin, rows)
                return jnp.maximum(total, scores.split_score(pieces, part, 1e-30).max(axis=1))

            return jax.lax.fori_loop(0, count, step, jnp.zeros(len(query)))

        taken = ms(lambda r=run, q=query: r(q, levels), 2) / count
        note(
            f"fast scores {batch} x {rows}: {taken:.3f} ms; "
            f"of all {taken * 1024 * 1e6 / (batch * rows):.1f} ms"
        )


def eight_bits(gallery):
    import types

    scales = jnp.abs(gallery).max(axis=2) / 127
    codes = jnp.round(gallery / scales[:, :, None]).astype(jnp.int8)
    return types.SimpleNamespace(codes=codes, scales=scales)


def explore(images: int) -> None:
    gallery = search.make_gallery(images)
    mesh = sharding.make_mesh()
    index = ExactIndex(gallery, mesh, device_gb=1e3)
    attempt("chain 1", lambda: chain(index, 1, "default"))
    attempt("profile 1", lambda: profile(index, 1))
    attempt("programs 1024", lambda: programs(index, 1024, "default"))
    attempt("profile 1024", lambda: profile(index, 1024))
    attempt("sizes", lambda: sizes(gallery))
    attempt("micro", micro)
    plan._FUSED_TILE_ELSEWHERE = 2**17
    attempt("tile 2^17", lambda: chain(index, 1, "tile 2^17"))
    plan._FUSED_TILE_ELSEWHERE = 2**20
    attempt("tile 2^20", lambda: chain(index, 1, "tile 2^20"))
    plan._FUSED_TILE_ELSEWHERE = 2**15
    for batch in (4, 8):
        attempt(f"chain {batch}", lambda b=batch: chain(index, b, "default", 5))
    both = ExactIndex(gallery, mesh, device_gb=1e3, fast=True)
    for batch in (64, 16):
        attempt(f"fast {batch}", lambda b=batch: programs(both, b, "fast"))
    attempt("128", lambda: programs(index, 128, "default"))
    attempt("16", lambda: programs(index, 16, "default"))
    attempt("int8", lambda: chain(ExactIndex(eight_bits(gallery), mesh, device_gb=1e3), 1, "int8"))
    plan._SCORES_ELSEWHERE = 2**25
    attempt("chunk 32768", lambda: programs(index, 1024, "chunk 32768"))


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--limit", type=float, default=110.0)
    arguments = parser.parse_args()
    LIMIT = arguments.limit
    attempt("resident", lambda: search.resident(arguments.images, 45.0))
    attempt("explore", lambda: explore(arguments.images))
