"""Settings, rows and plans: from flags or get_hyper, and refusals of what does not go together."""

import dataclasses

import pytest

from cmap_jax.sweeps.hyper import Hyper, read_vary, split_values
from cmap_jax.sweeps.plan import Plan, check_continues, is_sweep, make_rows, read_plan

VARIANTS = "config.model.variant=cmap,artemis"


def _plan(settings, seeds=(0, 1), overrides=()):
    return Plan("configs/garments.py", overrides, make_rows(settings, "garments"), seeds)


def test_values_are_split_outside_brackets_and_quotes():
    assert split_values("cmap,artemis") == ["cmap", "artemis"]
    assert split_values("(0.6,0.4),[1,2], 'a,b',\"c,'d\"") == [
        *("(0.6,0.4)", "[1,2]", "a,b", "c,'d"),
    ]
    assert split_values("a='x,y',z") == ["a='x,y'", "z"]
    for text in ("it's,b", "(1,2"):
        with pytest.raises(ValueError, match="is not closed"):
            split_values(text)
    assert split_values("") == [""]


def test_combinations_and_their_names():
    rows = make_rows(read_vary([VARIANTS, "config.train.epochs=1,2"]), "garments")
    assert [row.name for row in rows] == [
        "variant=cmap, epochs=1",
        "variant=cmap, epochs=2",
        "variant=artemis, epochs=1",
        "variant=artemis, epochs=2",
    ]
    assert rows[1].overrides == ("--config.model.variant=cmap", "--config.train.epochs=2")
    assert rows[1].folder == "variant=cmap_epochs=2"
    # Two fields that end alike are told apart by their whole names.
    alike = read_vary(["config.data.resize=2", "config.model.resize=3"])
    assert make_rows(alike, "x")[0].name == "config.data.resize=2, config.model.resize=3"
    assert make_rows(read_vary([]), "garments")[0].name == "garments"


def test_folders_are_safe_and_differ():
    names = ["a/b [*]", "a_b__", "A b", "..", "x" * 300, "x" * 299]
    rows = make_rows([{"name": n, "config.a": i} for i, n in enumerate(names)], "x")
    assert [row.name for row in rows] == names
    folders = [row.folder for row in rows]
    assert folders == ["a_b", "a_b-2", "A_b-3", "row", "x" * 80, "x" * 80 + "-2"]


def test_hyper():
    h = Hyper()
    variants = h.sweep("config.model.variant", ["cmap", "artemis"])
    named = h.product([h.fixed("name", "both"), variants[:1], h.fixed("config.train.epochs", 3)])
    assert named == [{"name": "both", "config.model.variant": "cmap", "config.train.epochs": 3}]
    seeds = h.sweep("config.data.garments.seed", range(2))
    assert h.zipit([variants, seeds])[1] == {
        "config.model.variant": "artemis",
        "config.data.garments.seed": 1,
    }
    assert h.chainit([variants, seeds]) == variants + seeds
    assert h.product([]) == [{}]
    assert h.product([h.fixed("name", "a"), h.fixed("name", "b")]) == [{"name": "a, b"}]
    with pytest.raises(ValueError, match=r"config.model.variant is set twice"):
        h.product([variants, variants])
    with pytest.raises(ValueError, match="2, 3 rows"):
        h.zipit([variants, h.sweep("config.seed", range(3))])


@pytest.mark.parametrize("text", ["cmap", "model.variant=cmap", "config.model.variant=a,,b"])
def test_vary_needs_a_field_and_values(text):
    with pytest.raises(ValueError, match=f"--vary {text}: give a field and its values"):
        read_vary([text])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "no rows"),
        ([{"model.variant": "cmap"}], "model.variant: the name of a field begins with config."),
        ([{"config.seed": 1}], "config.seed is set by --seeds"),
        ([{"config.a": 1}, {"config.a": 1}], "2 rows have the same name: a=1"),
        ([{"name": "x"}, {"name": "y"}], "2 rows have the same settings: none"),
    ],
)
def test_rows_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        make_rows(settings, "garments")


def test_runs_come_seed_by_seed_with_marks_filled_in(tmp_path):
    plan = _plan(read_vary([VARIANTS]), overrides=("--config.init_from=x/{row}/seed-{seed}",))
    runs = plan.runs(tmp_path)
    assert [str(run) for run in runs] == [
        *("variant=cmap, seed 0", "variant=artemis, seed 0"),
        *("variant=cmap, seed 1", "variant=artemis, seed 1"),
    ]
    assert runs[3].workdir == tmp_path / "variant=artemis" / "seed-1"
    assert runs[3].overrides == (
        "--config.init_from=x/variant=artemis/seed-1",
        "--config.model.variant=artemis",
        "--config.seed=1",
    )


def test_a_sweep_grows_and_does_not_change(tmp_path):
    plan = _plan(read_vary([VARIANTS]))
    assert not is_sweep(tmp_path)
    check_continues(tmp_path, plan)
    plan.write(tmp_path)
    assert is_sweep(tmp_path)
    assert read_plan(tmp_path) == plan
    more = _plan(read_vary([f"{VARIANTS},text_only"]), seeds=(0, 1, 2))
    check_continues(tmp_path, more)
    less = _plan(read_vary(["config.model.variant=cmap,text_only"]))
    with pytest.raises(ValueError, match=r"row 'variant=artemis' is .* 'no such row' now"):
        check_continues(tmp_path, less)
    with pytest.raises(ValueError, match="seed is '1' there and 'no such seed' now"):
        check_continues(tmp_path, dataclasses.replace(plan, seeds=(0,)))
    with pytest.raises(ValueError, match="overrides is '' there"):
        check_continues(tmp_path, dataclasses.replace(plan, overrides=("--config.a=1",)))
    with pytest.raises(ValueError, match="first row is 'variant=cmap' there"):
        check_continues(tmp_path, dataclasses.replace(plan, rows=plan.rows[::-1]))
    (tmp_path / "sweep.json").write_text('{"rows": [{}]}')
    with pytest.raises(ValueError, match=r"sweep.json: is no plan of a sweep"):
        read_plan(tmp_path)
