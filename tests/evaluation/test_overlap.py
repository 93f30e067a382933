"""The overlap of the modified and the preserved part, against NumPy and in an evaluation."""

import json

import fake_data
import numpy as np
import pytest
from small import init, one_device, small_config, small_trained, write_workdir

from cmap_jax.cli import command
from cmap_jax.evaluation.evaluator import Evaluator
from cmap_jax.evaluation.overlap import check_parts, compare_heat, map_correlation, map_iou
from cmap_jax.evaluation.results_file import read_results
from cmap_jax.models.cmap import CMAP
from cmap_jax.training import curves
from cmap_jax.training.check import check_config
from cmap_jax.visualization.heatmaps import explain
from input_pipeline.batching import EvaluationData
from input_pipeline.images.decoding import open_loader
from input_pipeline.images.loading import FailedImages
from input_pipeline.readers import cirr


def test_numbers_of_two_maps():
    first = np.array([[0, 1, 1], [0, 0, 0]], np.float32)
    second = np.array([[0, 0, 3], [3, 0, 0]], np.float32)
    assert map_iou(first, first * 5) == pytest.approx(1)
    assert map_iou(first, second) == pytest.approx(0.5 / 1.5)
    assert map_iou(first, second[::-1, ::-1]) == pytest.approx(0.5 / 1.5)
    assert map_iou(first, 1 - first) == pytest.approx(0)
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 4, 5, 6))
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(map_correlation(a, b), expected, atol=1e-12)
    assert np.isnan(map_iou(first, 0 * first))
    assert np.isnan(map_correlation(first, 0 * first))
    assert np.isnan(map_correlation(first, 0 * first + 1))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.slow
def test_an_evaluation_measures_spread_queries(tmp_path):
    trained = small_trained(image_name="cells")
    records = cirr.DATA_SET.read(str(fake_data.cirr(tmp_path)))
    loader = open_loader(records, trained.preprocessing, FailedImages("fail"))
    data = EvaluationData(
        records.evaluations["val"], trained.tokenizer, trained.preprocessing, loader, batch_size=4
    )
    evaluator = Evaluator(trained.model, one_device(), overlap=5)
    result = evaluator(trained.variables, data)
    (name, own), *_ = result.protocols.items()
    queries = data.evaluations[0].queries
    rows = np.linspace(0, len(queries) - 1, min(5, len(queries))).round().astype(int)
    chosen = [queries[row] for row in rows]
    assert own.overlap["queries"] == len(chosen) > 4  # more than a batch
    targets = [data.read_image(query.targets[0]) for query in chosen]
    maps = explain(
        trained,
        [data.read_image(query.reference) for query in chosen],
        [query.captions for query in chosen],
        targets,
    )
    ious = compare_heat(maps.target, maps.branches)
    for level, values in ious.items():
        assert own.overlap[f"target_iou/{level}"] == pytest.approx(
            np.nanmean(values["iou"]), abs=1e-4
        )
    pooled = np.concatenate([values["correlation"] for values in ious.values()])
    assert own.overlap["target_correlation"] == pytest.approx(np.nanmean(pooled), abs=1e-4)

    text = trained.encode_text([query.captions for query in chosen]).astype(np.float64)
    pyramid = trained.encode_images(targets)
    attentions = {}
    for part, module in (("modified", "modification"), ("preserved", "preservation")):
        layers = trained.variables["params"]["composer"][f"{module}_attention"]
        hidden = np.maximum(text @ layers["hidden"]["kernel"] + layers["hidden"]["bias"], 0)
        attention = _softmax(hidden @ layers["out"]["kernel"] + layers["out"]["bias"])
        attentions[part] = attention
        entropy = -(attention * np.log(attention)).sum(1).mean()
        assert own.overlap[f"{part}_entropy"] == pytest.approx(entropy, abs=1e-5)
        weighted = attention * pyramid
        cosines = (weighted * text).sum(-1) / np.linalg.norm(weighted, axis=-1)
        distance = own.overlap[f"{part}_text_distance"]
        assert distance == pytest.approx((1 - cosines).mean(), abs=1e-5)
    overlap = np.minimum(*attentions.values()).sum(1).mean()
    assert own.overlap["attention_overlap"] == pytest.approx(overlap, abs=1e-5)
    tags = curves.tags(result, "best/")
    assert tags[f"best/overlap/{name}/target_iou"] == own.overlap["target_iou"]


def test_a_method_without_the_parts_is_refused():
    for variant in ("cmap", "artemis"):
        check_parts(CMAP.from_config(small_config(variant, image_name="cells")))
    config = small_config("tirg", image_name="cells")
    config.eval.overlap = 4
    with pytest.raises(ValueError, match=r"config.model.variant=tirg lacks them: set it to 0"):
        check_config(config)
    with pytest.raises(ValueError, match=r"config.eval.overlap compares the attentions"):
        Evaluator(init(config)[0], one_device(), overlap=1)


@pytest.mark.slow
def test_the_command_stores_the_numbers_and_keeps_them(tmp_path, capsys):
    run = write_workdir(tmp_path / "run", "cirr", "cirr/val")
    data = fake_data.cirr(tmp_path / "data")
    arguments = ["evaluate", str(run), "--dir", str(data)]
    assert command.main([*arguments, "--overlap", "3"]) == 0
    assert "on 3 queries: heat maps on the target" in capsys.readouterr().out
    stored = json.loads((run / "evaluation.json").read_text())["overlap"]["cirr/val"]
    assert stored["queries"] == 3
    assert command.main(arguments) == 0
    assert read_results(run / "evaluation.json").result.protocols["cirr/val"].overlap == stored
    assert command.main([*arguments, "--overlap", "-1"]) == 1
    assert "--overlap must be 0 or more" in capsys.readouterr().err
