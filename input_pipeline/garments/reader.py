"""The rendered garments -> records, by the reader of FashionIQ's layout."""

from typing import Any

from cmap_jax.files import read_json
from cmap_jax.protocols import PROTOCOLS
from input_pipeline.garments import STAMP, prepare
from input_pipeline.readers.fashion_iq import Layout, both_orders
from input_pipeline.records import Evaluation, Records

_CATEGORY = "garments"


def read(directory: str, **settings: Any) -> Records:
    """Read the garments in a folder; render them first if they are not there.

    Validation chooses hyper-parameters and the best checkpoint; test is reported once, on the
    gallery of the test combinations and on that of all combinations.

    Args:
        directory: where they are, or are to be.
        **settings: of `prepare`.

    Raises:
        ValueError: the folder holds something else, or garments with other settings.
    """
    folder = prepare(directory, **settings)
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
    facts = {"oracles": read_json(folder / STAMP)["oracles"]}
    return layout.records("garments", evaluations, facts)
