"""The retriever: named hits that are those of one matrix of scores, filters, references, errors."""

import dataclasses
import pathlib
import shutil

import compilations
import numpy as np
import pytest
from PIL import Image
from small import EMBED, one_device, small_trained, write_workdir

import cmap_jax
from cmap_jax import scoring
from cmap_jax.models.encoders.clip import WORDS_END
from cmap_jax.retrieval.catalogue import Item
from cmap_jax.retrieval.index_files.writing import write_index
from cmap_jax.retrieval.queries import MOST_TOKENS, Query, average
from cmap_jax.retrieval.retriever import Retriever

_COUNT = 40
_COLORS = ("red", "blue", "green", None)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    """Paths of noisy pictures of random colours."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = []
    for number in range(_COUNT):
        noise = rng.integers(0, 60, (30, 40, 3)) + rng.integers(0, 196, 3)
        paths.append(str(folder / f"{number:02}.png"))
        Image.fromarray(noise.astype(np.uint8)).save(paths[-1])
    return paths


def _items(pictures: list[str]) -> list[Item]:
    return [
        Item(f"shop/{i}", path, {"color": _COLORS[i % 4], "price": float(i)})
        for i, path in enumerate(pictures)
    ]


def _open(trained, pictures, folder: pathlib.Path, dtype: str = "float32") -> Retriever:
    write_index(
        folder,
        _items(pictures),
        trained.encode_images(pictures),
        fingerprint=trained.fingerprint,
        variant=trained.config.model.variant,
        dtype=dtype,
    )
    return Retriever.load(folder, model=trained, mesh=one_device())


@pytest.fixture(scope="module")
def retriever(pictures, tmp_path_factory) -> Retriever:
    trained = small_trained(image_name="cells")
    return _open(trained, pictures, tmp_path_factory.mktemp("cmap") / "index")


@pytest.fixture(scope="module")
def sums(pictures, tmp_path_factory) -> Retriever:
    """The method "sum" composes features of any norm, and either half alone."""
    trained = small_trained("sum", image_name="vectors")
    return _open(trained, pictures, tmp_path_factory.mktemp("sum") / "index")


def _ranked(query, pyramid, allowed=None) -> tuple[list[int], list[float]]:
    """Positions and scores by NumPy's sort of one matrix of scores."""
    scores = np.array(scoring.score(query, pyramid))[0]
    allowed = np.arange(len(scores)) if allowed is None else np.asarray(allowed)
    order = allowed[np.argsort(-scores[allowed], kind="stable")]
    return order.tolist(), scores[order].tolist()


def _same(hits, others) -> None:
    assert [hit.id for hit in hits] == [hit.id for hit in others]
    np.testing.assert_allclose(
        [hit.score for hit in hits], [hit.score for hit in others], atol=2e-6
    )


def test_hits_are_the_best_of_one_matrix_of_scores(retriever, pictures):
    trained = retriever.trained
    positions, scores = _ranked(
        trained.compose([pictures[3]], ["is red"]), trained.encode_images(pictures)
    )
    hits = retriever.search(pictures[3], "is red", k=7)
    assert [hit.position for hit in hits] == positions[:7]
    assert [hit.id for hit in hits] == [f"shop/{i}" for i in positions[:7]]
    np.testing.assert_allclose([hit.score for hit in hits], scores[:7], atol=2e-6)
    best = hits[0].position
    assert hits[0].image == pictures[best]
    assert hits[0].metadata == {"color": _COLORS[best % 4], "price": best}


def test_parts_are_the_branches_and_levels_of_the_score(retriever, pictures):
    trained = retriever.trained
    expected = np.asarray(
        scoring.score_branches(
            trained.compose([pictures[1]], [("is longer", "has no")]),
            trained.encode_images(pictures),
        )
    )
    levels = ("high", "mid", "low")
    for hit in retriever.search(pictures[1], ("is longer", "has no"), k=3):
        assert list(hit.parts) == [f"{b}/{v}" for b in ("modified", "preserved") for v in levels]
        np.testing.assert_allclose(
            list(hit.parts.values()), expected[:, :, 0, hit.position].ravel(), atol=1e-6
        )
        assert sum(hit.parts.values()) == pytest.approx(hit.score, abs=2e-6)


def test_filters_apply_before_the_ranking(retriever, pictures):
    trained = retriever.trained
    query, pyramid = trained.compose([pictures[0]], ["red"]), trained.encode_images(pictures)
    cheap = [i for i in range(_COUNT) if _COLORS[i % 4] in ("red", "green") and 10 <= i <= 21]
    where = {"color": ["red", "green"], "price": {"min": 10, "max": 21}}
    hits = retriever.search(pictures[0], "red", k=30, where=where)
    assert [hit.position for hit in hits] == _ranked(query, pyramid, cheap)[0]
    assert retriever.search(pictures[0], "red", where={"color": "purple"}) == []
    assert len(retriever.search(pictures[0], "red", k=1000)) == _COUNT
    with pytest.raises(ValueError, match=r"no field 'size'; the fields are color .*, price"):
        retriever.search(pictures[0], "red", where={"size": "s"})


def test_one_image_of_the_gallery_alone(retriever, pictures):
    (hit,) = retriever.search(pictures[0], "red", where={"price": 17})
    assert hit.position == 17


def test_an_item_is_the_same_query_as_its_file(retriever, pictures, tmp_path):
    whole = retriever.search(pictures[5], "longer")
    _same(retriever.search(item="shop/5", text="longer"), whole)
    for dtype in ("int8", "bfloat16"):
        rounded = _open(retriever.trained, pictures, tmp_path / dtype, dtype)
        _same(rounded.search(item="shop/5", text="longer"), rounded.search(pictures[5], "longer"))


def test_an_item_of_a_method_whose_references_differ(sums, pictures):
    _same(sums.search(item="shop/5", text="red"), sums.search(pictures[5], "red"))


def test_magiclens(pictures, tmp_path):
    trained = small_trained("magiclens", image_name="vectors")
    magiclens = _open(trained, pictures[:6], tmp_path / "index")
    both, alone = magiclens.search(pictures[5], "red"), magiclens.search(pictures[5])
    _same(magiclens.search(item="shop/5", text="red"), both)
    assert alone[0].position == 5
    with pytest.raises(ValueError, match="a query without images cannot be composed"):
        magiclens.search(text="red")


def test_several_references_are_averaged(retriever, pictures):
    trained = retriever.trained
    pyramid = trained.encode_images(pictures)
    mean = pyramid[:, :3].astype(np.float64).mean(axis=1, keepdims=True)
    mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
    text = trained.encode_text(["red"])
    query = trained.model.apply(trained.variables, mean.astype(np.float32), text, method="compose")
    expected = _ranked(query, pyramid)[0][:10]
    hits = retriever.search(pictures[:3], "red")
    assert [hit.position for hit in hits] == expected
    _same(retriever.search(pictures[0], "red", item=["shop/1", "shop/2"]), hits)
    _same(retriever.search((pictures[7],), "red"), retriever.search(pictures[7], "red"))


def test_an_average_has_the_mean_direction_and_norm():
    features = np.array([[[3.0, 0.0], [0.0, 1.0]]], np.float32)  # norms 3 and 1
    np.testing.assert_allclose(average(features), [[np.sqrt(2), np.sqrt(2)]], rtol=1e-6)
    np.testing.assert_array_equal(average(features[:, :1]), features[:, 0])
    opposite = np.array([[[1.0, 0.0], [-1.0, 0.0]]], np.float32)
    assert np.isfinite(average(opposite)).all()


def test_a_batch_of_mixed_queries_is_each_of_them_alone(sums, pictures):
    queries = [
        Query(text="red"),
        Query(image=pictures[2]),
        Query(image=Image.open(pictures[3]), text="longer"),
        Query(item="shop/9", text="  "),  # a blank text is none
        Query(text=("red", "")),
        Query(image=pathlib.Path(pictures[4]).read_bytes(), text=("has a", "no")),
    ]
    together = sums.search_batch(queries, k=5)
    for query, hits in zip(queries, together, strict=True):
        _same(hits, sums.search_batch([query], k=5)[0])
    _same(together[0], together[4])
    assert together[1][0].position == 2
    assert together[3][0].position == 9
    composed = sums.compose(queries)
    assert len(composed) == len(queries)
    _same(sums.search_composed(composed, 5)[2], together[2])


def test_a_text_does_not_depend_on_its_neighbours(pictures, tmp_path):
    """The released LSTM reads the padding, which another text of the batch would bring."""
    trained = small_trained(image_name="cells", text_name="lstm", text_pool_padding=True)
    retriever = _open(trained, pictures[:5], tmp_path / "index")
    queries = [Query(pictures[0], text="red"), Query(pictures[1], text="is longer has a no " * 3)]
    for query, hits in zip(queries, retriever.search_batch(queries), strict=True):
        expected = scoring.score(
            trained.compose([query.image], [query.text]), trained.encode_images(pictures[:5])
        )
        scores = np.array([hit.score for hit in hits])
        np.testing.assert_allclose(scores, np.sort(np.asarray(expected)[0])[::-1], atol=2e-6)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query(), "a query needs an image or a text"),
        (Query(text="red"), "composes an image with a text: a query without images cannot be com"),
        (Query(item="shop/1"), "a query without texts cannot be composed"),
        (Query(item="shop/1", text=" "), "a query without texts cannot be composed"),
        (Query(item="shop/99", text="red"), "no image of the gallery has the id 'shop/99'"),
        (Query(item="shop/1", text=("a", "b", "c")), "one or two captions"),
        (Query(item="shop/1", text="red " * MOST_TOKENS), "shorten it"),
        (Query(image="/nowhere.jpg", text="red"), "/nowhere.jpg: missing"),
    ],
)
def test_queries_that_are_refused(retriever, query, message):
    with pytest.raises(ValueError, match=message):
        retriever.search_batch([query])


@pytest.mark.parametrize("query", [Query(item=3, text="red"), Query(item="shop/1", text=5)])
def test_queries_of_other_types(retriever, query):
    with pytest.raises(TypeError):
        retriever.search_batch([query])


@pytest.mark.parametrize("k", [0, -1, True, 2.5])
def test_numbers_of_images_that_are_refused(retriever, k):
    with pytest.raises(ValueError, match="k, the number of images, must be 1 or more"):
        retriever.search(item="shop/1", text="red", k=k)


@pytest.mark.parametrize(
    ("variant", "takes", "message"),
    [
        ("image_only", (True, False, False), "does not read texts: give an image alone"),
        ("text_only", (False, True, False), "does not read images: give a text alone"),
    ],
)
def test_a_half_that_a_method_ignores_is_refused(variant, takes, message, pictures, tmp_path):
    trained = small_trained(variant, image_name="cells")
    assert trained.takes == takes
    retriever = _open(trained, pictures[:3], tmp_path / "index")
    with pytest.raises(ValueError, match=message):
        retriever.search(pictures[0], "red")
    half = {"image": pictures[0]} if takes[0] else {"text": "red"}
    assert len(retriever.search(**half)) == 3


def test_no_search_compiles_after_the_warm_up(sums, pictures):
    sums.warm_up([1, 4], k=20)
    rng = np.random.default_rng(0)
    with compilations.counted() as seconds:
        for count in (1, 2, 3, 4, 5, 9):
            queries = [Query(pictures[i], text="is red " * i) for i in range(count)]
            assert len(sums.search_batch(queries, k=int(rng.integers(1, 21)))) == count
        for price in range(_COUNT):
            sums.search(item=["shop/1", "shop/2"], where={"price": {"max": price}})
        sums.search(text=("longer " * 60, "red " * 60))
        sums.search(pictures[:7], k=64, where={"color": ["red", "blue"]})
    assert not seconds
    with pytest.raises(ValueError, match="batch sizes are 1 or more"):
        sums.warm_up([0])


def test_a_warm_up_for_many_images_serves_fewer(sums, tmp_path):
    """Programs have lists of 64, 128, 256 and so on; a gallery of fewer images has one program."""
    trained, count = sums.trained, 300
    pyramid = np.random.default_rng(0).normal(size=(1, count, EMBED)).astype(np.float32)
    pyramid /= np.linalg.norm(pyramid, axis=-1, keepdims=True)
    about = {"fingerprint": trained.fingerprint, "variant": "sum"}
    items = [Item(f"{i}", f"{i}.png") for i in range(count)]
    write_index(tmp_path / "index", items, pyramid, **about)
    many = Retriever.load(tmp_path / "index", model=trained, mesh=one_device())
    before = many.search(text="red", k=70)
    many.warm_up([1], k=200)
    with compilations.counted() as seconds:
        searched = {k: many.search(text="red", k=k) for k in (1, 64, 65, np.int64(70), 129, 200)}
    assert not seconds
    assert [len(hits) for hits in searched.values()] == [1, 64, 65, 70, 129, 200]
    _same(searched[70], before)
    assert searched[70][-1].parts == pytest.approx(before[-1].parts)


def test_texts_fit_the_positions_of_a_tower_that_reads_words(tmp_path, pictures):
    """CLIP's text tower has 77 positions, and words have no limit; widths are powers of two."""
    words = {"text_tokenizer": "words", "text_end_token": WORDS_END}
    trained = small_trained("text_only", image_name="clip", **words)
    retriever = _open(trained, pictures[:3], tmp_path / "index")
    retriever.warm_up([1])
    with compilations.counted() as seconds:
        assert len(retriever.search(text="red " * 70)) == 3
    assert not seconds
    for read in (retriever.search, trained.encode_text):
        with pytest.raises(ValueError, match="82 tokens, more than the 77 that are read: shorten"):
            read(**{"text" if read == retriever.search else "texts": ("red " * 80,)})


def test_a_workdir_is_read_from_where_the_index_says(pictures, tmp_path):
    workdir = write_workdir(tmp_path / "run", "folder", "folder/val")
    trained = cmap_jax.load(workdir)
    folder = tmp_path / "index"
    about = {
        "fingerprint": trained.fingerprint,
        "variant": "cmap",
        "model": str(workdir),
    }
    write_index(folder, _items(pictures), trained.encode_images(pictures), **about)
    expected = cmap_jax.Retriever.load(folder).search(pictures[0], "red")
    moved = workdir.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"run, which cannot be read .*; name the folder"):
        Retriever.load(folder)
    _same(Retriever.load(folder, model=moved).search(pictures[0], "red"), expected)
    with pytest.raises(ValueError, match="holds embeddings of another model"):
        Retriever.load(folder, model=small_trained("tirg", image_name="cells"))
    with pytest.raises(ValueError, match="there is no backend 'fais', but exact"):
        Retriever.load(folder, backend="fais", model=moved)
    with pytest.raises(ValueError, match=r"backend exact has no setting 'device'.* mean device_gb"):
        Retriever.load(folder, settings={"device": 1}, model=moved)
    with pytest.raises(ValueError, match="backend exact: device_gb must be 0 or more"):
        Retriever.load(folder, settings={"device_gb": "-1"}, model=moved)
    with pytest.raises(ValueError, match="device_gb must be of type float, not 'much'"):
        Retriever.load(folder, settings={"device_gb": "much"}, model=moved)


def test_an_index_that_names_no_model(retriever):
    assert retriever.index.manifest.model is None
    with pytest.raises(ValueError, match="does not say where its model is"):
        Retriever.load(retriever.index)


def test_hits_are_plain_values(retriever, pictures):
    hit = retriever.search(pictures[0], "red", k=1)[0]
    kinds = {field.name: type(getattr(hit, field.name)) for field in dataclasses.fields(hit)}
    assert (kinds["id"], kinds["score"], kinds["position"]) == (str, float, int)
    assert {type(part) for part in hit.parts.values()} == {float}


def test_an_index_is_built_and_opened(sums, tmp_path, pictures):
    folder = tmp_path / "photographs"
    (folder / "new").mkdir(parents=True)
    for number in range(3):
        shutil.copy(pictures[number], folder / "new" / f"{number}.png")
    built = Retriever.build(sums.trained, folder, tmp_path / "index")
    hits = built.search(pictures[1], "red")
    expected = sums.search(pictures[1], "red", where={"price": {"max": 2}})
    assert [hit.id for hit in hits] == [f"new/{hit.position}.png" for hit in expected]
    shutil.copy(pictures[3], folder / "3.png")
    updated = Retriever.build(sums.trained, folder, tmp_path / "index", update=True)
    assert updated.search(pictures[3])[0].id == "3.png"
