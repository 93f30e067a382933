"""Submissions: what is right passes, and each single fault is refused by its name."""

import copy
import json
import random
import re

import numpy as np
import pytest

from cmap_jax.evaluation import submission
from cmap_jax.protocols import PROTOCOLS
from input_pipeline.readers import circo, cirr
from input_pipeline.records import Evaluation, Query

CIRR, CIRCO = cirr.DATA_SET.submission, circo.DATA_SET.submission


def _cirr_evaluation(queries: int = 7, images: int = 60, name: str = "{}-img0") -> Evaluation:
    ids = tuple(name.format(i) for i in range(images))
    return Evaluation(
        PROTOCOLS["cirr/test1"],
        {"all": ids},
        tuple(
            Query(str(100 + i), ids[i], ("is red",), (), "all", str(i), subset=ids[i : i + 6])
            for i in range(queries)
        ),
    )


def _circo_evaluation(queries: int = 7, images: int = 60) -> Evaluation:
    ids = tuple(f"{i:012d}" for i in range(100, 100 + images))
    return Evaluation(
        PROTOCOLS["circo/test"],
        {"all": ids},
        tuple(Query(str(i), ids[i], ("is red",), (), "all", str(i)) for i in range(queries)),
    )


def _records(evaluation: Evaluation, seed: int = 0, count: int = 50) -> list[dict]:
    """Rankings as the evaluator gives them: as the protocol says, with or without the reference."""
    rng = np.random.default_rng(seed)
    records = []
    for query in evaluation.queries:
        excluded = {query.reference} if evaluation.protocol.reference == "excluded" else set()
        top = [
            i for i in rng.permutation(evaluation.galleries["all"]).tolist() if i not in excluded
        ]
        record = {"query": query.id, "reference": query.reference, "rank": None, "top": top[:count]}
        if query.subset:
            subset = [i for i in rng.permutation(query.subset).tolist() if i not in excluded]
            record["subset_top"] = subset
        records.append(record)
    return records


def _through_json(content):
    return json.loads(json.dumps(content))


def _answers(content: dict) -> dict:
    return {k: v for k, v in content.items() if k not in ("version", "metric")}


def _single_faults(content: dict, evaluation: Evaluation, rng: random.Random):
    """Yield every fault that a file of either server can have, and what its message says."""
    key = rng.choice(sorted(_answers(content)))
    place = rng.randrange(len(content[key]))
    is_circo = evaluation.protocol.name.startswith("circo")
    what = "query" if is_circo else "pair"
    stranger = -7 if is_circo else "stranger-img0"

    def with_item(value) -> dict:
        changed = copy.deepcopy(content)
        changed[key][place] = value
        return changed

    def with_list(value) -> dict:
        return {**content, key: value}

    answer = content[key]
    yield {k: v for k, v in content.items() if k != key}, f"{what} {key}: missing"
    yield {**content, "98765": answer}, f"{what} '98765': not one of the split's"
    yield with_list(answer[:-1]), f"{what} {key}: must have {len(answer)} images, not"
    yield with_list([]), f"{what} {key}: must have {len(answer)} images, not 0"
    yield with_list([*answer, stranger]), f"must have {len(answer)} images, not {len(answer) + 1}"
    yield with_list(dict.fromkeys(map(str, answer))), f"{what} {key}: must be a list"
    yield with_list(None), f"{what} {key}: must be a list of images, not None"
    yield with_item(answer[place - 1]), f"{what} {key}: has {answer[place - 1]!r} 2 times"
    yield with_item(stranger), f"{what} {key}: has {stranger!r}, which is not among"
    kind = "a whole number" if is_circo else "a name"
    for wrong in (None, True, 1.0, [answer[place]], "1x" if is_circo else 1):
        yield with_item(wrong), f"{what} {key}: {wrong!r} is not {kind}"
    if is_circo:
        for text in ("-1", "1.0", "1e3", "", " 1", "\u0661", "1" * 13):
            yield with_item(text), f"query {key}: {text!a} is not a whole number"
        twice = [f"{answer[0]:012d}", *answer[:-1]]
        yield with_list(twice), f"query {key}: has {answer[0]} 2 times"
        yield with_list(list(map(float, answer))), f"query {key}: {answer[0]}.0 is not"
        yield {"version": "rc2", **content}, "query 'version': not one of the split's"
        return
    (query,) = (q for q in evaluation.queries if q.id == key)
    yield with_item(query.reference), f"pair {key}: has its own reference {query.reference!r}"
    for name in ("version", "metric"):
        for wrong in ("rc1", "Recall", 2, None, ["recall"]):
            yield {**content, name: wrong}, f"{name}: must be"
        yield {k: v for k, v in content.items() if k != name}, f"{name}: must be"
    if content["metric"] == "recall_subset":
        outside = next(i for i in evaluation.galleries["all"] if i not in query.subset)
        yield with_item(outside), f"{outside!r}, which is not among the 6 members of its set"
        wanted = min(50, len(evaluation.galleries["all"]) - 1)
        yield {**content, "metric": "recall"}, f"must have {wanted} images"
    else:
        yield {**content, "metric": "recall_subset"}, "must have 3 images"


def _check_faults(rules, content: dict, evaluation: Evaluation, seed: int) -> None:
    before = json.dumps(content)
    faults = 0
    for wrong, message in _single_faults(content, evaluation, random.Random(seed)):
        with pytest.raises(ValueError, match=re.escape(message)):
            submission.check_submission(rules, wrong, evaluation)
        faults += 1
    assert faults > 15
    assert json.dumps(content) == before


@pytest.mark.parametrize("images", [20, 51, 60])
@pytest.mark.parametrize("seed", range(5))
def test_cirr(seed, images):
    evaluation = _cirr_evaluation(images=images)
    records = _records(evaluation, seed)
    files = submission.make_submission(CIRR, records)
    assert set(files) == {"recall.json", "recall_subset.json"}
    for record in records:
        assert files["recall.json"][record["query"]] == record["top"]
        assert files["recall_subset.json"][record["query"]] == record["subset_top"][:3]
    for metric, count in (("recall", min(50, images - 1)), ("recall_subset", 3)):
        content = files[f"{metric}.json"]
        assert list(content)[:2] == ["version", "metric"]
        assert (content["version"], content["metric"]) == ("rc2", metric)
        assert {len(answer) for answer in _answers(content).values()} == {count}
        submission.check_submission(CIRR, content, evaluation)
        submission.check_submission(CIRR, _through_json(content), evaluation)
        _check_faults(CIRR, content, evaluation, seed)


@pytest.mark.parametrize("images", [20, 50, 60])
@pytest.mark.parametrize("seed", range(5))
def test_circo(seed, images):
    evaluation = _circo_evaluation(images=images)
    records = _records(evaluation, seed)
    ((name, content),) = submission.make_submission(CIRCO, records).items()
    assert name == "submission.json"
    assert content == {r["query"]: [int(i) for i in r["top"]] for r in records}
    # With at most 50 images every list has the reference, which the rules allow.
    assert images > 50 or all(int(r["reference"]) in content[r["query"]] for r in records)
    submission.check_submission(CIRCO, content, evaluation)
    assert submission.check_submission(CIRCO, _through_json(content), evaluation) == ()
    _check_faults(CIRCO, content, evaluation, seed)


def test_circo_takes_ids_that_are_texts():
    """The server's script makes whole numbers of them, padded or not."""
    evaluation = _circo_evaluation(images=60)
    (content,) = submission.make_submission(CIRCO, _records(evaluation, 0)).values()
    for as_text in (str, "{:012d}".format):
        texts = {query: list(map(as_text, answer)) for query, answer in content.items()}
        (remark,) = submission.check_submission(CIRCO, texts, evaluation)
        assert "texts" in remark
    (query, answer), *_ = content.items()
    mixed = {**content, query: [str(answer[0]), *answer[1:]]}
    assert len(submission.check_submission(CIRCO, mixed, evaluation)) == 1
    with pytest.raises(ValueError, match="which is not among the 60 images of the gallery"):
        submission.check_submission(CIRCO, {**content, query: ["61", *answer[1:]]}, evaluation)


def test_circo_without_the_gallery_judges_all_but_the_ids():
    evaluation = _circo_evaluation(images=60)
    (content,) = submission.make_submission(CIRCO, _records(evaluation, 0)).values()
    (query, answer), *_ = content.items()
    stranger = {**content, query: [999_999, *answer[1:]]}
    submission.check_submission(CIRCO, stranger, evaluation, gallery_is_known=False)
    for wrong, message in (
        (answer[:49], f"query {query}: must have 50 images, not 49"),
        ([answer[1], *answer[1:]], f"query {query}: has {answer[1]} 2 times"),
        ([None, *answer[1:]], f"query {query}: None is not a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            submission.check_submission(
                CIRCO, {**content, query: wrong}, evaluation, gallery_is_known=False
            )


def test_longer_rankings_are_cut():
    evaluation = _cirr_evaluation(images=70)
    for content in submission.make_submission(CIRR, _records(evaluation, count=60)).values():
        submission.check_submission(CIRR, content, evaluation)
    evaluation = _circo_evaluation(images=70)
    for content in submission.make_submission(CIRCO, _records(evaluation, count=60)).values():
        submission.check_submission(CIRCO, content, evaluation)


def test_a_set_that_names_the_reference_or_a_member_twice():
    """The set's other members are counted, each once."""
    evaluation = _cirr_evaluation(queries=1)
    (query,) = evaluation.queries
    pair = (query.subset[0], query.subset[1], query.subset[1], query.subset[2])
    few = Evaluation(
        evaluation.protocol,
        evaluation.galleries,
        (Query(query.id, query.reference, query.captions, (), "all", "0", subset=pair),),
    )
    content = {"version": "rc2", "metric": "recall_subset", query.id: list(pair[2:])}
    submission.check_submission(CIRR, content, few)
    content[query.id].append(query.subset[3])
    with pytest.raises(ValueError, match="must have 2 images, not 3"):
        submission.check_submission(CIRR, content, few)


@pytest.mark.parametrize("content", [[], None, "rc2", [["version", "rc2"]]])
def test_not_an_object(content):
    for rules in (CIRR, CIRCO):
        with pytest.raises(ValueError, match="must be an object of queries"):
            submission.check_submission(rules, content, _circo_evaluation())


def test_first_problems_are_listed():
    evaluation = _circo_evaluation(queries=9)
    (content,) = submission.make_submission(CIRCO, _records(evaluation)).values()
    with pytest.raises(ValueError, match=r"9 problems\n") as refused:
        submission.check_submission(CIRCO, {key: [] for key in content}, evaluation)
    lines = str(refused.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == [f"query {i}" for i in range(5)]
    assert lines[-1].strip() == "..."
    absurd = {**content, "0": ["\ud800" * 1000]}
    with pytest.raises(ValueError, match="query 0: ") as refused:
        submission.check_submission(CIRCO, absurd, evaluation)
    assert str(refused.value).isascii()
    assert len(str(refused.value)) < 200


def test_too_large():
    """All right in itself, but the names are as long as no data set's."""
    evaluation = _cirr_evaluation(queries=450, images=500, name="{:0>240}")
    content = submission.make_submission(CIRR, _records(evaluation))["recall.json"]
    with pytest.raises(ValueError, match=r"[\d,]+ bytes are more than the 5,000,000"):
        submission.check_submission(CIRR, content, evaluation)


def test_read(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError, match=r"a\.json"):
        submission.read_submission(path, CIRR.max_bytes)
    path.write_text('{"0": [1], "1": [2]}')
    assert submission.read_submission(path, CIRR.max_bytes) == {"0": [1], "1": [2]}
    path.write_text('{"0": [1], "1": [2], "0": [1]}')
    with pytest.raises(ValueError, match=r"a\.json: the key '0' is there twice"):
        submission.read_submission(path, CIRR.max_bytes)
    path.write_text('{"0": [1], "1"')
    with pytest.raises(ValueError, match=r"a\.json: not JSON at line 1"):
        submission.read_submission(path, CIRR.max_bytes)
    path.write_text("[" + "1," * 2_500_000 + "1]")
    with pytest.raises(ValueError, match=r"a\.json: 5,000,003 bytes are more than"):
        submission.read_submission(path, CIRR.max_bytes)


def test_written_at_once_or_not_at_all(tmp_path):
    evaluation = _cirr_evaluation()
    files = submission.make_submission(CIRR, _records(evaluation))
    folder = tmp_path / "new" / "folder"
    submission.write_submissions(folder, files)
    assert {path.name for path in folder.iterdir()} == set(files)
    for name, content in files.items():
        # Not indented: CIRR's real file would be larger than its server takes.
        assert (folder / name).read_text() == json.dumps(content)
        found = submission.read_submission(folder / name, CIRR.max_bytes)
        assert found == content
        submission.check_submission(CIRR, found, evaluation)
    with pytest.raises(OSError, match="folder"):
        submission.write_submissions(folder, {"other.json": {}})
    with pytest.raises(TypeError):
        submission.write_submissions(tmp_path / "broken", {"a.json": {}, "b.json": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    assert {path.name for path in folder.iterdir()} == set(files)


@pytest.mark.real_data
@pytest.mark.parametrize("metric", ["recall", "recall_subset"])
def test_cirr_example(real_data, tmp_path, metric):
    evaluation = cirr.read(str(real_data / "cirr")).unlabelled["test1"]
    path = real_data / "cirr" / "submission_examples" / f"test1_pred_ranks_{metric}.json"
    content = submission.read_submission(path, CIRR.max_bytes)
    assert len(_answers(content)) == 4148
    submission.check_submission(CIRR, content, evaluation)
    for seed in range(3):
        _check_faults(CIRR, content, evaluation, seed)
    # The file is what the authors wrote, to the byte.
    submission.write_submissions(tmp_path / "again", {"a.json": content})
    assert (tmp_path / "again" / "a.json").read_bytes() == path.read_bytes()


@pytest.mark.real_data
@pytest.mark.parametrize(("split", "queries"), [("val", 220), ("test", 800)])
def test_circo_example(real_data, split, queries):
    evaluation = _circo_split(real_data, split)
    assert len(evaluation.queries) == queries
    path = real_data / "circo" / "submission_examples" / f"submission_{split}.json"
    content = submission.read_submission(path, CIRR.max_bytes)
    submission.check_submission(CIRCO, content, evaluation)
    for seed in range(3):
        _check_faults(CIRCO, content, evaluation, seed)


def _circo_split(real_data, split: str) -> Evaluation:
    """CIRCO's queries; without the images, the examples must tell the rest of the gallery."""
    records = circo.read(str(real_data / "circo"))
    evaluation = records.unlabelled.get(split) or records.evaluations[split][0]
    numbers = {int(i) for i in evaluation.galleries["all"]}
    for path in (real_data / "circo" / "submission_examples").iterdir():
        numbers |= {i for answer in json.loads(path.read_text()).values() for i in answer}
    assert len(numbers) < circo.GALLERY_IMAGES
    gallery = tuple(f"{i:012d}" for i in sorted(numbers))
    return Evaluation(evaluation.protocol, {"all": gallery}, evaluation.queries)
