"""Files of results of methods over seeds, without any model."""

import numpy as np

from cmap_jax.evaluation.outcomes import Outcomes, summarize
from cmap_jax.evaluation.results import EvaluationFacts, ProtocolResult, Result
from cmap_jax.evaluation.results_file import StoredResults, with_intervals
from cmap_jax.facts import DataFacts
from cmap_jax.protocols import PROTOCOLS

COUNT = 60  # queries


def fake_results(ranks, name="shoes", gallery="abc", oracles=None) -> StoredResults:
    """Results whose queries have these ranks, two queries an annotation."""
    protocol = PROTOCOLS[name]
    outcomes = Outcomes({"all": len(ranks)}, np.arange(len(ranks)) // 2, np.asarray(ranks, float))
    result = ProtocolResult(
        protocol=protocol,
        numbers=summarize(protocol, outcomes) | {"gallery_images": 50},
        outcomes=outcomes,
        conditions={"version": protocol.version, "gallery": gallery, "queries": "def"},
    )
    facts = EvaluationFacts(data_set=DataFacts(oracles=oracles))
    return StoredResults(7, with_intervals(Result({name: result})), facts)


def random_ranks(seed: int, most: int) -> np.ndarray:
    """Ranks below ``most``: the smaller, the better the method."""
    return np.random.default_rng(seed).integers(0, most, COUNT)
