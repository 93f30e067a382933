"""Draws the README's picture: queries of a run on rendered garments, and their best images.

python main.py --mode=evaluate --workdir=runs/garments --config.eval.rankings=true
python docs/draw_query.py runs/garments garments/test docs/images/query.jpg
"""

import json
import pathlib
import sys

from cmap_jax.visualization.grids import ResultRow, check_destination, results_grid, save
from cmap_jax.workdir import description as workdir_lib

QUERIES, RESULTS = 3, 5


def main(workdir: str, protocol: str, out: str) -> None:
    """Draw queries whose right image is first, second and third."""
    check_destination(out)
    images = pathlib.Path(workdir_lib.read_config(workdir).data.directory) / "images"
    rankings = pathlib.Path(workdir) / "rankings" / f"{protocol.replace('/', '-')}.jsonl"
    records = [json.loads(line) for line in rankings.read_text().splitlines()]
    rows = []
    for rank in range(QUERIES):
        record = next(r for r in records[40 * rank :] if r["rank"] == rank)
        results = [(images / f"{i}.jpg", i in record["targets"]) for i in record["top"][:RESULTS]]
        reference = images / f"{record['reference']}.jpg"
        rows.append(ResultRow(reference, record["text"], results, rank))
    save(results_grid(rows, protocol), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
