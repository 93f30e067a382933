"""Results of the sizes of published data sets, for tests of what may stand beside them."""

import numpy as np

from cmap_jax.evaluation.outcomes import Outcomes
from cmap_jax.evaluation.results import EvaluationFacts, ProtocolResult, Result
from cmap_jax.evaluation.results_file import StoredResults
from cmap_jax.facts import DataFacts
from cmap_jax.protocols import PROTOCOLS
from cmap_jax.reporting.published import PUBLISHED


def stored_results(name: str, facts: DataFacts, **numbers: float) -> StoredResults:
    """Results under one protocol with the published sizes, but for the named numbers."""
    published = PUBLISHED[name]
    protocol = PROTOCOLS[name]
    names = (*protocol.metrics, protocol.headline_name, "median_rank", "mean_rank")
    counts = {"gallery_images": published.gallery_images, "queries": published.queries}
    values = dict.fromkeys(names, 12.0) | counts | {"skipped": 0} | numbers
    result = ProtocolResult(
        protocol=protocol,
        numbers=values,
        outcomes=Outcomes(groups={"all": 1}, annotation=np.zeros(1, int), rank=np.zeros(1)),
        conditions={},
        intervals={number: (value - 1, value + 1) for number, value in values.items()},
    )
    return StoredResults(7, Result({name: result}), EvaluationFacts(data_set=facts))
