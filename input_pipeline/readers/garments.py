"""The rendered garments -> records, by the reader of FashionIQ's layout."""

import inspect

from cmap_jax.protocols import PROTOCOLS
from input_pipeline import storage
from input_pipeline.garments.folder import STAMP, prepare
from input_pipeline.readers.annotations import check_keys
from input_pipeline.readers.data_set import DataSet, Rendering
from input_pipeline.readers.fashion_iq import Layout, both_orders
from input_pipeline.records import Evaluation, Records

_CATEGORY = "garments"


def read(directory: str, image_directory: str | None = None) -> Records:
    """Read the garments in a folder; they are not rendered here.

    Validation chooses hyper-parameters and the best checkpoint; test is reported once, on the
    gallery of the test combinations and on that of all combinations.

    Args:
        directory: the folder that `prepare` wrote.
        image_directory: None, as garments keep their images with them.

    Raises:
        FileNotFoundError: there are no garments.
        ValueError: they are broken, or in another format.
    """
    # The garments are complete, so nothing is drawn, but their format is checked.
    folder = prepare(directory, **read_settings(directory))
    layout = Layout(str(folder))

    def evaluation(split: str, gallery: str) -> Evaluation:
        return Evaluation(
            PROTOCOLS[f"garments/{gallery}"],
            {_CATEGORY: layout.split(_CATEGORY, gallery)},
            tuple(both_orders(layout.annotations(_CATEGORY, split), _CATEGORY)),
        )

    evaluations = {
        "val": (evaluation("val", "val"),),
        "test": (evaluation("test", "test"), evaluation("test", "all")),
    }
    facts = {"oracles": storage.read_json(str(folder / STAMP))["oracles"]}
    return layout.records("garments", evaluations, facts)


def read_settings(directory: str) -> dict[str, int | float]:
    """Return the arguments of `prepare` that the garments in a folder were rendered with.

    Raises:
        FileNotFoundError: there are no garments.
        DataError: their description is broken.
    """
    file = storage.join(directory, STAMP)
    if not storage.exists(file):
        raise FileNotFoundError(
            f"{file}: no such file, so no garments are rendered there; python main.py "
            "--config=configs/garments.py renders them"
        )
    keys = {"seed": int, "image_size": int, "train_triplets": int}
    stamp = storage.read_json(file)
    check_keys(stamp, {"settings": dict, "oracles": dict}, file)
    check_keys(stamp["settings"], keys, f"{file}: settings")
    known = inspect.signature(prepare).parameters
    return {key: value for key, value in stamp["settings"].items() if key in known}


DATA_SET = DataSet(
    name="garments",
    read=read,
    published=False,
    rendering=Rendering(
        render=prepare,
        settings={"seed": 0, "image_size": 72, "train_triplets": 20_000},
        read_settings=read_settings,
        side=72,
    ),
    description=(
        "Composed image retrieval on rendered garments, one image a combination of attributes: "
        "two captions say what changes from the reference to the target."
    ),
)
