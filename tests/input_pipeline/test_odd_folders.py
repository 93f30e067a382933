"""Data that are odd and right: one image to search, black pictures, rows twice, no words."""

import fake_data
import numpy as np
import pytest
from PIL import Image
from small import init, one_device, small_config

from cmap_jax.evaluation.evaluator import Evaluator
from input_pipeline import create_datasets


def _append(file, rows):
    file.write_text(file.read_text() + "\n".join(rows) + "\n")


@pytest.fixture
def config(tmp_path):
    root = fake_data.folder(tmp_path, gallery=False)
    Image.new("RGB", (30, 40)).save(root / "val" / "1.jpg")
    for split in ("train", "val"):
        reference, _, target = (root / f"{split}.csv").read_text().splitlines()[1].split(",")
        _append(root / f"{split}.csv", [f"{reference},,{target}"])
    row = (root / "val.csv").read_text().splitlines()[2]
    _append(root / "val.csv", [row, row])
    (root / "gallery.txt").write_text("val/1.jpg\n")
    config = small_config(image_name="cells")
    config.data.update(name="folder", directory=str(root))
    config.train.batch_size, config.eval.batch_size = 2, 4
    config.model.text.vocabulary_size = None
    return config


def test_odd_data_are_read(config, caplog):
    datasets = create_datasets(config)
    assert "2 rows repeat others; each counts again" in caplog.text
    whole, one = datasets.evaluations["val"].evaluations
    assert len({query.id for query in whole.queries}) == len(whole.queries)
    assert one.galleries == {"all": ("val/1.jpg",)}
    for batch in datasets.train.batches(0, datasets.train.steps_per_epoch):
        assert (batch["text_lengths"] > 0).all()


@pytest.mark.slow  # compiles an evaluation
def test_odd_data_are_evaluated(config):
    datasets = create_datasets(config)
    config.model.text.vocabulary_size = len(datasets.tokenizer)
    model, variables = init(config)
    evaluator = Evaluator(model, one_device(), gallery_chunk=config.eval.gallery_chunk)
    whole, one = evaluator(variables, datasets.evaluations["val"]).protocols.values()
    assert np.isfinite([*whole.numbers.values(), *one.numbers.values()]).all()
    assert one.numbers["R@1"] == 100.0
    assert one.numbers["gallery_images"] == 1
    assert one.numbers["skipped"] == whole.numbers["queries"] - one.numbers["queries"]
