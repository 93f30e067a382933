"""The notebook: well formed, without outputs, and run from top to bottom as in Colab."""

import ast
import copy
import os
import pathlib
import re
import unittest.mock

import pytest
from command_line import QUICK_TO_COMPILE, ROOT
from optional import require

from cmap_jax.training.check import check_config

nbformat = require("nbformat")
NOTEBOOK = ROOT / "notebooks" / "garments.ipynb"
SKIPPED = "skip-execution"  # nbclient leaves cells of this tag out
# The size of the smallest run that goes through everything.
SMALL = "TRIPLETS, EPOCHS = 640, 1"


def _read():
    return nbformat.read(NOTEBOOK, as_version=4)


def _code_cells() -> list:
    return [cell for cell in _read().cells if cell.cell_type == "code"]


def test_it_is_well_formed_and_has_no_outputs():
    nbformat.validate(_read())
    assert all(not c.outputs and c.execution_count is None for c in _code_cells())
    text = NOTEBOOK.read_text()
    # Folders of a person's or a program's machine; those of Colab begin with /content.
    assert not re.findall(r"(?<![\w.])/(?:home|root|tmp|work|Users|opt|usr)/", text)


@pytest.mark.parametrize("cell", _code_cells(), ids=lambda cell: cell.id)
def test_each_cell_parses(cell):
    transform = require("IPython.core.inputtransformer2").TransformerManager().transform_cell
    ast.parse(transform(cell.source))


def test_its_address_is_known_in_one_cell_and_the_readme():
    (repository,) = re.findall(r"https://github\.com/(\w+/cmap_jax)\b", NOTEBOOK.read_text())
    page = (
        f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{NOTEBOOK.name}"
    )
    assert f"]({page})" in (ROOT / "README.md").read_text()


def test_cells_that_need_other_data_are_marked():
    skipped = {c.id for c in _code_cells() if SKIPPED in c.metadata.get("tags", ())}
    assert skipped == {"fashioniq", "clip", "clip-train"}


def test_cells_that_are_not_executed_train_possible_configs(monkeypatch):
    """With FashionIQ in place they start three trainings; the rest of their names are real too."""
    transform = require("IPython.core.inputtransformer2").TransformerManager().transform_cell
    monkeypatch.setattr("cmap_jax.convert.hugging_face.fill_pretrained", lambda config: config)
    runs, stand_in = [], unittest.mock.MagicMock()
    names = dict.fromkeys(("get_ipython", "load", "Retriever", "show", "reference"), stand_in)
    names |= {"RUNS": "runs", "DATA": "data", "pathlib": pathlib, "cmap": lambda line: 0}
    names["run"] = lambda config, workdir, evaluate_only: runs.append((config, workdir))
    for cell in _code_cells():
        if SKIPPED in cell.metadata.get("tags", ()):
            exec(transform(cell.source), names)
    for config, _ in runs:
        check_config(config, device_count=1)
        assert config.data.name == "fashion_iq"
        assert config.data.directory.startswith("/content/drive")
    (first, trained), (second, _), (clip, _) = runs
    assert first.model.image.frozen
    assert second.init_from == trained
    assert clip.model.pretrained == "openai/clip-vit-base-patch32"


def _small_notebook():
    """Return the notebook with small settings after its parameters, and its training once more."""
    notebook = _read()
    cells = notebook.cells
    (settings,) = (i for i, c in enumerate(cells) if "parameters" in c.metadata.get("tags", ()))
    given = nbformat.v4.new_code_cell(SMALL, id="small")
    (training,) = (copy.deepcopy(cell) for cell in cells if cell.id == "train")
    training.id = "again"
    notebook.cells = [*cells[: settings + 1], given, *cells[settings + 1 :], training]
    return notebook


def _client(notebook, folder: pathlib.Path):
    """Return a client that keeps the texts that widgets showed, by the id of the running cell."""
    nbclient = require("nbclient")
    require("ipywidgets")

    class Client(nbclient.NotebookClient):
        shown: dict[str, list[str]]

        def process_message(self, message, cell, cell_index):
            data = message["content"].get("data", {})
            state = data.get("state", {}) if message["msg_type"].startswith("comm") else {}
            text = state.get("value") or state.get("description")
            if isinstance(text, str):
                # Progress bars are written with figure spaces.
                self.shown.setdefault(cell.id, []).append(text.replace("\u2007", " "))
            return super().process_message(message, cell, cell_index)

    client = Client(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.shown = {}
    return client


def _text(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def _pictures(cell) -> list[str]:
    kinds = [kind for output in cell.outputs for kind in output.get("data", {})]
    return [kind for kind in kinds if kind in ("image/png", "image/jpeg")]


def _use_this_environment(tmp_path: pathlib.Path, monkeypatch) -> None:
    """Let the kernel run this interpreter, on one device, with programs that compile fast."""
    require("ipykernel.kernelspec").install(prefix=str(tmp_path), kernel_name="python3")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", QUICK_TO_COMPILE)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert os.environ["JAX_PLATFORMS"] == "cpu"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Jupyter's own, on transports and event loops
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """Progress is live, each step shows its pictures, and a finished run is not repeated."""
    _use_this_environment(tmp_path, monkeypatch)
    notebook = _small_notebook()
    client = _client(notebook, tmp_path)
    client.execute()
    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    steps = {int(n) for text in client.shown["train"] for n in re.findall(r"step (\d+)/10", text)}
    assert len(steps) > 1, client.shown["train"]
    assert any(re.search(r"step \d+/10, .*images/s", text) for text in client.shown["train"])
    assert "step 10, epoch 1: garments/val R@1 " in _text(cells["train"])
    assert re.search(r"garments/test +\d+\.\d\d ", _text(cells["train"]))
    assert "text alone" in _text(cells["evaluate"])
    assert "overlap of heat maps" in _text(cells["explain"])
    assert len(_text(cells["parts"]).splitlines()) == 6
    pictures = {id: _pictures(cell) for id, cell in cells.items()}
    assert {id for id, kinds in pictures.items() if kinds} == {
        *("data", "curves", "evaluate", "search", "explain")
    }
    assert len(pictures["curves"]) == 2
    assert "compiling the training step" in _text(cells["train"])
    assert "compiling the training step" not in _text(cells["again"])
    assert re.search(r"garments/test +\d+\.\d\d ", _text(cells["again"]))
    assert not any(cell.outputs for cell in cells.values() if cell.id in ("fashioniq", "clip"))
