"""main.py as a user meets it: the debug run end to end, and one clear line for each mistake."""

import json

import pytest
from command_line import ROOT, call, run
from fake_data import fashion_iq as write_fashion_iq


def _config(name: str) -> str:
    return f"--config={ROOT / 'configs' / name}"


@pytest.mark.slow
def test_debug_run_and_evaluation(tmp_path):
    """Render, train, evaluate, evaluate again from the workdir alone, and use the model."""
    done = run(_config("garments.py:debug"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    workdir = tmp_path / "runs" / "garments-debug"
    assert "garments/test" in done.stdout
    assert "(text oracle)" in done.stdout
    assert "runs/garments-debug" in done.stdout
    assert "--mode=evaluate" in done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) <= 20, done.stderr
    for begin in ("data      garments: 1,280", "model     cmap, 1,299,793 parameters", "devices"):
        assert any(line.startswith(begin) for line in lines), done.stderr
    assert "compiled the training step in" in done.stderr
    for step in (10, 20):
        assert sum(line.startswith(f"step {step}, epoch") for line in lines) == 1, done.stderr
    assert "composer/modification_attention" in (workdir / "parameters.txt").read_text()
    first = json.loads((workdir / "evaluation.json").read_text())
    assert set(first["protocols"]) == {"garments/val", "garments/test", "garments/all"}

    again = run(
        "--mode=evaluate",
        "--workdir=runs/garments-debug",
        "--config.eval.rankings=true",
        "--config.eval.batch_size=100",
        cwd=tmp_path,
    )
    assert again.returncode == 0, again.stderr[-3000:]
    second = json.loads((workdir / "evaluation.json").read_text())
    for protocol, numbers in first["protocols"].items():
        others = second["protocols"][protocol]
        for found in (numbers, others):
            found.pop("tied_queries", None)  # scores of other batches are rounded in other ways
        assert numbers == pytest.approx(others, abs=0.2)
    assert len((workdir / "rankings" / "garments-test.jsonl").read_text().splitlines()) == 4000

    import cmap_jax

    trained = cmap_jax.load(workdir)
    image = next((tmp_path / "data" / "garments_debug" / "images").iterdir())
    assert trained.encode_images([image]).shape == (3, 1, 256)
    assert trained.encode_text(["is red"]).shape == (1, 256)


@pytest.mark.endurance
def test_garments_run(tmp_path):
    """Half of the main job reaches three times what an oracle of one half of a query can."""
    flags = (_config("garments.py"), "--config.train.epochs=1")
    done = run(*flags, cwd=tmp_path, timeout=1800, xla_flags="")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "runs" / "garments" / "evaluation.json").read_text())
    test, everything = (found["protocols"][f"garments/{g}"] for g in ("test", "all"))
    assert test["R@10"] >= 60
    assert test["R@1"] >= 10
    assert everything["R@10"] >= 25


@pytest.mark.slow
def test_describe_allocates_nothing():
    done = call("--mode=describe", _config("garments.py"), "--config.model.text.vocabulary_size=80")
    assert done.returncode == 0, done.stderr
    assert "1,299,793 parameters, 1,299,793 of them trained" in done.stdout
    assert "FLOP" in done.stdout
    assert "scratch" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which config?"),
        (("--config=configs/none.py",), "no config file configs/none.py"),
        ((_config("garments.py:fast"),), "takes no argument or \"debug\", not 'fast'"),
        (
            (_config("garments.py"), "--config.optimizer.learning_rat=1"),
            "there is no field config.optimizer.learning_rat; nearest: "
            "config.optimizer.learning_rate",
        ),
        (
            (_config("garments.py"), "--config.batch_size=1"),
            "there is no field config.batch_size; nearest: config.eval.batch_size, "
            "config.train.batch_size",
        ),
        (
            (_config("garments.py"), "--config.train.batch_size=many"),
            "config.train.batch_size takes a whole number, not 'many'",
        ),
        (
            (_config("garments.py"), "--config.optimizer.clip_norm=x"),
            "config.optimizer.clip_norm takes a number, not 'x'",
        ),
        ((_config("garments.py"), "--config.eval.rankings=maybe"), "takes true or false"),
        ((_config("garments.py"), "--wrkdir=x"), "Unknown command line flag 'wrkdir'"),
        ((_config("garments.py"), "x"), "unexpected argument 'x'"),
        ((_config("garments.py"), "--mode=test"), "should be one of <train|evaluate|describe>"),
        (("--mode=evaluate",), "evaluate which run? Give --workdir"),
        (("--mode=evaluate", "--workdir=/nowhere"), "/nowhere is not a workdir"),
        (("--mode", "evaluate", "--workdir", "/nowhere"), "/nowhere is not a workdir"),
        (("--config.train.epochs=1",), "overrides need a config"),
    ],
)
def test_wrong_flags_get_one_line(arguments, message):
    done = call(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("main.py: ")


def test_a_wrong_flag_ends_the_program(tmp_path):
    """The same from a shell; another folder is no hindrance."""
    done = run(_config("garments.py"), "--config.batch_size=1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("main.py: there is no field config.batch_size; nearest: ")
    assert done.stderr.count("\n") == 1


def test_impossible_runs_get_a_clear_message(tmp_path):
    config = _config("fashioniq.py:debug")
    for arguments, message in (
        ((config,), "config.data.directory is not set"),
        ((config, "--config.data.directory=/nowhere"), "/nowhere: no such folder"),
        (
            (config, f"--config.data.directory={write_fashion_iq(tmp_path)}"),
            "config.train.batch_size is 128, but there are only 24 training items",
        ),
        ((config, "--config.model.variant=cnap"), "config.model.variant must be one of cmap"),
    ):
        done = call(*arguments, "--workdir=" + str(tmp_path / "run"))
        assert done.returncode == 1, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.variant=camp", "config.model.variant must be one of cmap"),
        ("data.crop=60", "multiple of 32"),
        ("optimizer.schedule=linear", "config.optimizer.schedule must be"),
    ],
)
def test_describe_refuses_the_impossible(override, message):
    done = call("--mode=describe", _config("fashioniq.py"), f"--config.{override}")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashioniq", "fashion200k"])
def test_debug_on_data_that_are_moved(name, tmp_path, shallow):
    """A reader behind main.py, with another place for the images at evaluation."""
    from fake_data import fashion200k as write_fashion200k

    write = {"fashioniq": write_fashion_iq, "fashion200k": write_fashion200k}[name]
    data = write(tmp_path / name)
    workdir = tmp_path / f"run-{name}"
    done = call(
        _config(f"{name}.py:debug"),
        f"--config.data.directory={data}",
        f"--workdir={workdir}",
        "--config.train.batch_size=8",
        "--config.train.epochs=1",
        "--config.eval.batch_size=16",
        "--config.data.resize=32",
        "--config.data.crop=32",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    moved = tmp_path / f"moved-{name}"
    data.rename(moved)
    done = call("--mode=evaluate", f"--workdir={workdir}", f"--config.data.directory={moved}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "mR" in done.stdout
