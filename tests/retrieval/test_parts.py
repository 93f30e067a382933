"""Galleries in several parts and in eight bits, masks of images, and few queries at once."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from cmap_jax import scoring, sharding
from cmap_jax.retrieval import blocks, device_memory
from cmap_jax.retrieval.exact import ExactIndex
from cmap_jax.retrieval.index_files.quantization import Quantized, quantize
from cmap_jax.retrieval.parts import Parts
from cmap_jax.retrieval.plan import make_plan

LEVELS, WIDTH = 2, 32
SIZES = (64, 64, 1, 35)
IMAGES = sum(SIZES)
_CUTS = np.cumsum(SIZES)[:-1]


def _mesh(devices: int) -> jax.sharding.Mesh:
    return sharding.make_mesh(jax.devices()[:devices])


def _query(queries: int) -> scoring.ComposedQuery:
    n, w, plain = np.random.default_rng(0).normal(size=(3, LEVELS, queries, WIDTH))
    branches = scoring.Branch(n[:1].astype(np.float32), np.exp(w[:1]).astype(np.float32))
    plain = scoring.Branch(plain.astype(np.float32))
    return scoring.ComposedQuery((branches, plain), None, ("a", "b"), ("high", "low"))


def _gallery() -> np.ndarray:
    """Random images; the first four stand again at the end, and the last one in the middle."""
    gallery = np.random.default_rng(1).normal(size=(LEVELS, IMAGES, WIDTH)).astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=-1, keepdims=True)
    gallery[:, -4:] = gallery[:, :4]
    gallery[:, 70] = gallery[:, -1]
    return gallery


def _scores(query: scoring.ComposedQuery, gallery: np.ndarray) -> np.ndarray:
    """docs/method.md, section 1, in float64; copies score exactly the same: [B, N]."""
    weighted, plain = query.branches
    n, w, p = (x.astype(np.float64) for x in (weighted.numerator, weighted.weight, plain.numerator))
    t = gallery.astype(np.float64)
    dots = (n[0, :, None] * t[:, None]).sum(-1)  # [L, 1, N] by [B, 1, D]: [L, B, N]
    norms = np.sqrt(((w[0, :, None] * t[:, None]) ** 2).sum(-1))
    return (dots / norms + (p[:, :, None] * t[:, None]).sum(-1)).sum(0)


def _kept_as(dtype: str, gallery: np.ndarray):
    """Return a gallery's parts as they are stored, and the numbers that they stand for."""
    if dtype == "int8":
        whole = quantize(gallery)
        cut = [np.split(x, _CUTS, axis=1) for x in (whole.codes, whole.scales)]
        return [Quantized(*leaves) for leaves in zip(*cut, strict=True)], whole.rows(slice(None))
    values = gallery.astype(dtype)
    return np.split(values, _CUTS, axis=1), values.astype(np.float32)


def _assert_best(result, scores: np.ndarray, allowed: np.ndarray, k: int) -> None:
    """Compare a search's lists with a stable sort of the images that take part."""
    masked = np.where(allowed, scores, -np.inf)
    order = np.argsort(-masked, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(masked, order, axis=1)
    np.testing.assert_array_equal(result.positions, np.where(best > -np.inf, order, -1))
    np.testing.assert_allclose(result.scores, best, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", ml_dtypes.bfloat16, "int8"])
@pytest.mark.parametrize(("devices", "rows"), [(1, None), (2, None), (1, 70)])
def test_parts_are_one_gallery(dtype, devices, rows):
    """Resident, sharded and streamed; the numbers are those that the parts stand for."""
    query, k = _query(6), 20
    parts, values = _kept_as(dtype, _gallery())
    bytes_of_row = LEVELS * WIDTH * Parts(parts).dtype.itemsize
    device_gb = 1.0 if rows is None else rows * bytes_of_row / 1e9
    index = ExactIndex(parts, _mesh(devices), device_gb=device_gb, chunk=32)
    targets = np.array([0, 3, 70, 100, IMAGES - 1, 5])
    result = index.search(query, k, targets=targets)
    scores = _scores(query, values)
    _assert_best(result, scores, np.ones(IMAGES, bool), k)
    own = scores[np.arange(6), targets][:, None]
    np.testing.assert_array_equal(result.placements.higher[:, 0], (scores > own).sum(1))
    np.testing.assert_array_equal(result.placements.tied[:, 0], (scores == own).sum(1) - 1)
    whole = ExactIndex(values, _mesh(devices), device_gb=device_gb, chunk=32).search(query, k)
    np.testing.assert_array_equal(result.positions, whole.positions)
    np.testing.assert_array_equal(result.scores, whole.scores)


def test_a_read_within_a_part_copies_nothing():
    parts = np.split(_gallery(), _CUTS, axis=1)
    whole = Parts(parts)
    (inside,) = whole.read(1, 64, 128, np.dtype(np.float32))
    assert np.shares_memory(inside, parts[1])
    (across,) = whole.read(1, 60, 131, np.dtype(np.float32))
    np.testing.assert_array_equal(across, _gallery()[1, 60:131])
    positions = np.array([0, 63, 64, 128, 129, IMAGES - 1])
    (some,) = whole.take(0, positions, np.dtype(np.float32))
    np.testing.assert_array_equal(some, _gallery()[0, positions])
    assert whole.read(0, IMAGES, IMAGES + 5, whole.dtype)[0].shape == (0, WIDTH)


def _aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros that begin at a multiple of 64 bytes, as embeddings in a mapped file do."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


@pytest.mark.parametrize("form", [np.float32, np.int8])
@pytest.mark.parametrize(
    "sizes", [(1023, 1024, 1024, 1000), (90, 96, 64, 93), (2050, 3, 2049), (1024, 2048, 1100)]
)
def test_a_cpu_computes_on_parts_where_they_lie(sizes, form):
    """Whatever their sizes: parts that lack an image, as of a picture that cannot be read."""
    width = 64
    parts = [_aligned((LEVELS, n, width), form) for n in sizes]
    gallery = parts
    if form is np.int8:
        gallery = [Quantized(part, np.ones(part.shape[:2], np.float32)) for part in parts]
    resident = ExactIndex(gallery, _mesh(1))._blocks.resident
    short, copied = sum(n for n in sizes if 2 * n <= max(sizes)), 0
    for levels in resident:
        values = np.asarray(levels[1][0] if form is np.int8 else levels[1])
        copied += not any(np.shares_memory(values, part) for part in parts)
    assert copied == bool(short)


@pytest.mark.parametrize(
    ("sizes", "blocks"),
    [
        ((2048,) * 40 + (1700,), 41),  # the last part alone is shorter
        ((2046, 2047, 2048, 2000) * 10, 80),  # two halves of each part
    ],
)
def test_few_rows_are_scored_twice(sizes, blocks):
    """Parts of one size are a block each, whatever the size of the last one."""
    parts = [_aligned((1, n, 16), np.float32) for n in sizes]
    index = ExactIndex(parts, _mesh(1))
    assert len(index._blocks.resident) == blocks
    assert blocks * index._blocks.shard_rows < 1.05 * sum(sizes)


def test_codes_may_be_kept_as_floating_point():
    parts, values = _kept_as("int8", _gallery())
    query = _query(2)
    result = ExactIndex(parts, _mesh(1), dtype=np.float32, chunk=32).search(query, 9)
    expected = ExactIndex(values, _mesh(1), chunk=32).search(query, 9)
    np.testing.assert_array_equal(result.scores, expected.scores)


@pytest.mark.parametrize(("devices", "rows"), [(1, None), (8, None), (1, 70)])
@pytest.mark.parametrize("queries", [1, 6])
def test_only_allowed_images_take_part(devices, rows, queries):
    """The result is that of a gallery of these images alone."""
    query, gallery = _query(queries), _gallery()
    allowed = np.random.default_rng(2).random(IMAGES) < 0.1
    allowed[[0, 70]], allowed[[1, 71]] = True, False
    kept = np.flatnonzero(allowed)
    device_gb = 1.0 if rows is None else rows * LEVELS * WIDTH * 4 / 1e9
    index = ExactIndex(gallery, _mesh(devices), device_gb=device_gb, chunk=32)
    targets, exclude = [[0, 1]] * queries, [[70, 71]] * queries
    result = index.search(query, 40, targets=targets, exclude=exclude, allowed=allowed)
    scores = _scores(query, gallery)
    scores[:, 70] = -np.inf
    order = kept[np.argsort(-scores[:, kept], axis=1, kind="stable")]
    np.testing.assert_array_equal(result.positions[:, : len(kept)], order)
    assert (result.positions[:, len(kept) :] == -1).all()
    assert (result.scores[:, len(kept) - 1 :] == -np.inf).all()
    alone = ExactIndex(gallery[:, kept], _mesh(1)).search(
        query, 1, targets=[[0]] * queries, exclude=[[int(np.searchsorted(kept, 70))]] * queries
    )
    np.testing.assert_array_equal(result.ranks, alone.ranks)
    nothing = index.search(query, 3, targets=targets, allowed=np.zeros(IMAGES, bool))
    assert (nothing.positions == -1).all()
    assert (nothing.ranks == -1).all()


@pytest.mark.parametrize("rows", [None, 70])
@pytest.mark.parametrize("queries", [1, 3])
def test_few_queries(queries, rows):
    """Copies tie wherever they stand, and a few images score as in the search."""
    query, gallery = _query(queries), _gallery()
    device_gb = 1.0 if rows is None else rows * LEVELS * WIDTH * 4 / 1e9
    index = ExactIndex(gallery, _mesh(1), device_gb=device_gb)
    targets = np.array([IMAGES - 1, 1, 30])[:queries]
    result = index.search(query, 30, targets=targets)
    scores = _scores(query, gallery)
    _assert_best(result, scores, np.ones(IMAGES, bool), 30)
    copies = np.array([2, 1, 0])[:queries]
    np.testing.assert_array_equal(result.placements.tied[:, 0], copies)
    own = scores[np.arange(queries), targets][:, None]
    np.testing.assert_array_equal(result.ranks, (scores > own).sum(1) + copies / 2)
    np.testing.assert_array_equal(index.scores_at(query, result.positions), result.scores)


def test_the_memory_that_a_gallery_may_take(monkeypatch, caplog):
    """Three fifths of what is free on the fullest device, 4 GB where that is not known."""
    some = [{"bytes_limit": 10e9, "bytes_in_use": 5e9}, {"bytes_limit": 10e9, "bytes_in_use": 1e9}]
    assert [device_memory._bytes_of(s) for s in some] == [3e9, pytest.approx(5.4e9)]
    assert device_memory.bytes_for_gallery(_mesh(2)) == 4e9

    mapped = _aligned((LEVELS, 4096, WIDTH), np.float32)
    room = LEVELS * WIDTH * 4 * 100.0
    monkeypatch.setattr(blocks, "bytes_for_gallery", lambda mesh: room)
    caplog.set_level("INFO", "cmap_jax.retrieval.blocks")

    def is_streamed(gallery, **options) -> bool:
        caplog.clear()
        streamed = not ExactIndex(gallery, _mesh(1), **options)._blocks.resident
        assert streamed == ("every search streams the gallery" in caplog.text)
        return streamed

    assert not is_streamed(mapped)  # read where it lies
    assert is_streamed(mapped, dtype="bfloat16")  # copied
    assert is_streamed(mapped[:, ::2])
    assert is_streamed(mapped, device_gb=room / 1e9)
    assert not is_streamed(mapped[:, ::2], device_gb=1.0)
    monkeypatch.setattr(blocks, "_is_on_cpu", lambda mesh: False)
    assert is_streamed(mapped)


@pytest.mark.parametrize("sizes", [(64, 64, 1, 35), (63, 64, 37), (1, 2, 97, 30, 34), (100, 64)])
def test_every_image_counts_once(sizes):
    """Blocks that overlap within their parts; and those without an allowed image are left out."""
    query, gallery = _query(2), _gallery()
    parts = np.split(gallery, np.cumsum(sizes)[:-1], axis=1)
    index, one = ExactIndex(parts, _mesh(1), chunk=32), ExactIndex(gallery, _mesh(1), chunk=32)
    mask = np.zeros(IMAGES, bool)
    mask[[70, 100, -1]] = True
    for allowed in (None, mask):
        found, expected = (
            x.search(query, 9, targets=[70, 3], allowed=allowed) for x in (index, one)
        )
        np.testing.assert_array_equal(found.positions, expected.positions)
        for field in ("higher", "tied", "correct"):
            placements = (getattr(x.placements, field) for x in (found, expected))
            np.testing.assert_array_equal(*placements)
    assert len(list(index._blocks.among(mask))) < len(index._blocks.resident)
    assert len(list(index._blocks.among(~mask & mask))) == 1


def test_a_gallery_on_the_device():
    query, gallery = _query(5), _gallery()
    ours = ExactIndex(jnp.asarray(gallery), _mesh(1)).search(query, 9, targets=[0] * 5)
    theirs = ExactIndex(gallery, _mesh(1)).search(query, 9, targets=[0] * 5)
    np.testing.assert_array_equal(ours.positions, theirs.positions)
    np.testing.assert_array_equal(ours.ranks, theirs.ranks)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "no part"),
        ([_gallery(), _gallery()[:1]], "same levels, width and dtype"),
        ([_gallery(), quantize(_gallery())], "same levels, width and dtype"),
        ([_gallery().astype(np.int8)], "float32 or bfloat16, or int8 with a float32 scale"),
        ([Quantized(np.zeros((2, 5, 4), np.int8), np.ones((2, 4), np.float32))], "a float32 scale"),
    ],
)
def test_parts_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ExactIndex(wrong, _mesh(1))


def test_a_mask_that_does_not_fit_is_refused():
    index = ExactIndex(_gallery(), _mesh(1))
    for mask in (np.ones(3, bool), np.ones(IMAGES, np.int32), np.ones((1, IMAGES), bool)):
        with pytest.raises(ValueError, match=f"a bool for each of {IMAGES} images"):
            index.search(_query(1), 3, allowed=mask)
    with pytest.raises(ValueError, match="keep a gallery as float32 or bfloat16"):
        ExactIndex(_gallery(), _mesh(1), dtype=np.float16)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_plans_fit_every_shard(platform):
    """A chunk is within the shard, a tile within the chunk, and tiles are whole vectors."""
    rows = [32, 64, 96, 1024, 1025, 1056, 1057, 5000, 32769, 65537, 999_999, 10**6, 40_000_001]
    for shard in rows:
        for queries in (1, 2, 4, 5, 16, 64, 128, 1024, 5000):
            for chunk in (None, 16, 1024):
                plan = make_plan(platform, queries, shard, chunk=chunk)
                assert 32 <= plan.tile <= plan.chunk <= shard
                assert plan.tile % 32 == 0
                # The last chunk overlaps the one before by little.
                assert -(-shard // plan.chunk) * plan.chunk < 1.2 * shard + 64
                assert plan.is_fast <= (platform != "cpu" and queries >= 64)
            assert make_plan(platform, queries, shard, fast=True).is_fast
