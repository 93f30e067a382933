"""The benchmarks over methods and seeds are sweeps whose configs are possible."""

import pytest
from command_line import ROOT

from cmap_jax.cli import config_files, flags
from cmap_jax.sweeps.hyper import Hyper
from cmap_jax.sweeps.plan import Plan, make_rows
from cmap_jax.training.check import check_config


@pytest.mark.parametrize(
    ("name", "frozen", "more"),
    [
        ("garments.py", False, set()),
        ("photographs.py", True, {"late_fusion"}),
        ("photographs.py:pretrained,finetune", False, {"late_fusion"}),
    ],
)
def test_benchmarks_are_sweeps(name, frozen, more, tmp_path):
    file = str(ROOT / "benchmarks" / name)
    rows = make_rows(config_files.read_hyper(file)(Hyper()), "x")
    plan = Plan(file, ("--config.init_from=first/{row}/seed-{seed}",), rows, (0, 1))
    configs = {
        (run.row.name, run.seed): flags.read_config(file, run.overrides)
        for run in plan.runs(tmp_path)
    }
    for config in configs.values():
        check_config(config, device_count=1)
        assert config.model.image.frozen == frozen
    variants = {name: configs[name, 0].model.variant for name, _ in configs}
    same = {"artemis", "text_only", "image_only"} | more
    without = "cmap, no preservation loss"
    assert variants == {"cmap": "cmap", without: "cmap"} | {name: name for name in same}
    weights = {name: configs[name, 1].loss.preservation_weights for name in variants}
    assert weights.pop(without) == (0, 0, 0)
    assert all(any(w) for w in weights.values())
    assert configs[without, 1].init_from == "first/cmap_no_preservation_loss/seed-1"
    assert configs[without, 1].seed == 1
