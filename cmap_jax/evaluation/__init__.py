"""Evaluation by named protocols (docs/method.md, section 6)."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.evaluation import (
        compare,
        evaluator,
        metrics,
        outcomes,
        over_seeds,
        overlap,
        pictures,
        ranking,
        results,
        results_file,
        results_rows,
        submission,
        workdir,
    )

__all__ = [
    "compare",
    "evaluator",
    "metrics",
    "outcomes",
    "over_seeds",
    "overlap",
    "pictures",
    "ranking",
    "results",
    "results_file",
    "results_rows",
    "submission",
    "workdir",
]
