"""Parsing of the command line: help, the config that is used, and one line for each mistake."""

import subprocess
import sys
import types
from unittest import mock

import pytest
from command_line import ROOT
from small import write_workdir

from cmap_jax.cli import command, config_files, flags
from cmap_jax.training.stopping import Stopped
from configs import default

GARMENTS = str(ROOT / "configs" / "garments.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_workdir(tmp_path_factory.mktemp("runs") / "small", "cirr", "cirr/val", "resnet")


def _refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        flags.parse(["/bin/main.py", *arguments])
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert printed.err.startswith("main.py: ")
    assert printed.err.count("\n") == 1
    return printed.err


def _meant(*arguments):
    """The values of --config and --workdir that a command line leads to, and its other flags."""
    program, config, workdir, *others = flags._with_config(["main.py", *arguments])
    assert program == "main.py"
    return config.removeprefix("--config="), workdir.removeprefix("--workdir="), others


@pytest.mark.parametrize("flag", ["--help", "-h", "-help", "--helpfull"])
def test_help_lists_the_flags(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        flags.parse(["main.py", flag])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for name in ("config", "workdir", "mode=train|evaluate|describe", "compilation_cache=..."):
        assert f"\n--{name}" in printed
    for name in ("coordinator", "process_count", "process_index", "cluster"):
        assert f"\n--{name}" in printed
    assert "configs/garments.py," in printed
    assert "verbosity" not in printed  # absl's
    assert max(map(len, printed.splitlines()[:40])) <= 100


def test_help_with_a_config_lists_its_fields(capsys):
    with pytest.raises(SystemExit) as ended:
        flags.parse(["main.py", f"--config={GARMENTS}:debug", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "\n--config.data.garments.train_triplets=640\n" in printed
    assert "no config file" in _refusal(capsys, "--config=none.py", "--help")


@pytest.mark.parametrize(
    ("old", "answer"),
    [
        ("model.image.depth=18", "model.image.depth is now config.model.image.resnet.depth"),
        ("model.text.encoder=lstm", "model.text.encoder is now config.model.text.name"),
        (
            "model.text.word_dim=8",
            "word_dim is now config.model.text.gru.word_dim and config.model.text.lstm.word_dim",
        ),
    ],
)
def test_an_old_name_is_answered_with_the_new_one(old, answer, capsys):
    assert answer in _refusal(capsys, f"--config={GARMENTS}", f"--config.{old}")


@pytest.mark.parametrize("start", ["main.py", "cmap train"])
def test_help_is_quick(start):
    """Neither JAX nor TensorFlow is loaded for it."""
    begin = {
        "main.py": "from cmap_jax.cli import train; run = lambda: train.main(['main.py', '-h'])",
        "cmap train": "from cmap_jax.cli import command; "
        "run = lambda: command.main(['train', '--help'])",
    }[start]
    code = f"""
import sys
{begin}
try:
    run()
except SystemExit as ended:
    assert not ended.code
loaded = {{"jax", "tensorflow", "orbax"}} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{start} --config=configs/garments.py" in done.stdout


def test_a_missing_workdir_is_named(capsys, tmp_path):
    override = "--config.eval.rankings=true"
    for mode in ("evaluate", "describe", "train"):
        for more in ((), (override,)):
            line = _refusal(capsys, f"--mode={mode}", "--workdir=/nowhere", *more)
            assert "/nowhere is not a workdir" in line
            assert "overrides" not in line
    assert "overrides need a config" in _refusal(capsys, override)
    assert "which config? For example" in _refusal(capsys)
    assert "evaluate which run? Give --workdir" in _refusal(capsys, "--mode=evaluate", override)
    empty = _refusal(capsys, "--mode=evaluate", f"--config={GARMENTS}", f"--workdir={tmp_path}")
    assert f"{tmp_path} is not a workdir: it has no config.json" in empty


def test_the_config_that_is_meant(trained, tmp_path, monkeypatch):
    own, stored = config_files.from_workdir(str(trained)), str(trained / "config.json")
    assert _meant(f"--config={GARMENTS}:debug") == (f"{GARMENTS}:debug", "runs/garments-debug", [])
    assert _meant("--config", GARMENTS, "--workdir", "w", "--cluster") == (
        GARMENTS,
        "w",
        ["--cluster"],
    )
    # The last of several values counts, as in absl.
    assert _meant("--config=x.py", f"--config={GARMENTS}", "--workdir=a", "-workdir=b")[:2] == (
        GARMENTS,
        "b",
    )
    # Without a config the workdir's is used; a stored config is read wherever its run continues.
    for mode in ("train", "describe", "evaluate"):
        assert _meant(f"--mode={mode}", f"--workdir={trained}")[:2] == (own, str(trained))
    assert _meant(f"--config={stored}")[:2] == (f"{own}/config.json", str(trained))
    assert _meant(f"--config={stored}", "--workdir=w")[:2] == (f"{own}/config.json", "w")
    assert _meant("--mode=evaluate", f"--config={stored}")[:2] == (own, str(trained))
    (tmp_path / "mine.json").write_text((trained / "config.json").read_text())
    mine = str(tmp_path / "mine.json")
    assert _meant(f"--config={mine}")[:2] == (config_files.from_workdir(mine), "runs/mine")
    # An installed package has no folder of configs in the current folder.
    monkeypatch.chdir(tmp_path)
    assert _meant("--config=configs/garments.py:debug")[:2] == (
        f"{GARMENTS}:debug",
        "runs/garments-debug",
    )


def test_a_stored_config_is_read_whole(trained):
    read = config_files.read(_meant(f"--config={trained / 'config.json'}")[0])
    assert read.model.embed_dim == 8
    assert read.data.name == "cirr"
    assert read.loss.margins == default.get_config().loss.margins
    assert read.get_type("init_from") is str  # a field that is None takes an override of its type


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"seed": 0, ', "not JSON at line 1"),
        ("[1, 2]", "a config is a JSON object, not [1, 2]"),
        ('{"optimizer": {"learning_rat": 1.0}}', "nearest: config.optimizer.learning_rate"),
        ('{"train": {"epochs": "many"}}', "Could not override field 'epochs'"),
    ],
)
def test_broken_stored_configs(content, message, tmp_path, capsys):
    (tmp_path / "x.json").write_text(content)
    line = _refusal(capsys, f"--config={tmp_path / 'x.json'}")
    assert message in line
    assert f"{tmp_path}/x.json" in line
    assert "from_workdir" not in line


_WHOLE = "from configs import default\ndef get_config():\n    config = default.get_config()\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:", "x.py raises SyntaxError in line 1"),
        ("import nothing_like_it", "x.py raises ModuleNotFoundError in line 1: No module named"),
        ("def get_config():\n    return {}['a']", "x.py raises KeyError in line 2: 'a'"),
        ("def get_config():\n    raise ValueError('no')", "x.py raises ValueError in line 2: no"),
        ("config = 3", "x.py is not a config file: it has no get_config"),
        ("def get_config():\n    return 3", "its get_config must return a ConfigDict, not 3"),
        (
            f"{_WHOLE}    config.optimizer.learning_rat = 1\n    return config",
            "there is no field config.optimizer.learning_rat; nearest: config.optimizer.learning",
        ),
        (
            f"{_WHOLE}    del config.eval.rankings, config.eval.shortcuts\n    return config",
            "x.py lacks config.eval.rankings and 1 other fields: begin with configs/default.py",
        ),
    ],
)
def test_broken_config_files(content, message, tmp_path, capsys):
    (tmp_path / "x.py").write_text(content)
    assert message in _refusal(capsys, f"--config={tmp_path / 'x.py'}")


def test_config_files_that_are_not_there(trained, capsys):
    def line(config):
        return _refusal(capsys, f"--config={config}")

    assert "no config file configs/garmnts.py; did you mean configs/garments.py?" in line(
        "configs/garmnts.py"
    )
    assert "did you mean configs/cirr.py?" in line("cirr")
    assert "there are configs/circo.py, configs/cirr.py" in line("x/nothing.json")
    assert f"its config is --config={trained}/config.json" in line(trained)
    assert "takes no argument after a colon" in line(f"{trained}/config.json:debug")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["evalute", "x"], "did you mean evaluate?"),
        (["evaluate", "x", "--skip-unusuable"], "did you mean --skip-unusable?"),
        (["show", "shoes", "x", "--outt=a.png", "--out=a.png"], "did you mean --out?"),
        (["report"], "required: workdir\n"),
    ],
)
def test_mistyped_words_of_cmap(arguments, hint, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert hint in capsys.readouterr().err


def test_cmap_train_is_main(capsys):
    assert "cmap train: which config?" in _ended(capsys, "train")
    assert "cmap train: no config file x.py" in _ended(capsys, "train", "--config=x.py")
    # The other modes work too.
    line = _ended(capsys, "train", "--mode=evaluate", "--workdir=/nowhere")
    assert "cmap train: /nowhere is not a workdir" in line


def _ended(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("mode", ["train", "evaluate"])
@pytest.mark.parametrize("status", [130, 143])
def test_a_stopped_run_ends_the_program_with_its_status(mode, status, monkeypatch, capsys):
    """A shell's `&&` then does not start the next command."""
    from cmap_jax.cli import compilation_cache, run, train

    def stop(config, workdir, *, evaluate_only, command):
        assert (config, workdir, evaluate_only) == ("config", "w", mode == "evaluate")
        assert command == "cmap train"
        raise Stopped("stopped at step 3 of 6; run again to continue", status)

    values = dict.fromkeys(("COORDINATOR", "PROCESS_COUNT", "PROCESS_INDEX", "COMPILATION_CACHE"))
    values |= {"CONFIG": "config", "WORKDIR": "w", "MODE": mode, "CLUSTER": False, "VERBOSE": False}
    for name, value in values.items():
        monkeypatch.setattr(flags, name, types.SimpleNamespace(value=value))
    monkeypatch.setattr(train, "logging", mock.MagicMock())  # keeps the settings of the test run
    monkeypatch.setattr(compilation_cache, "use_compilation_cache", lambda _: None)
    monkeypatch.setattr(run, "run", stop)
    with pytest.raises(SystemExit) as ended:
        train._main(["cmap train"])
    assert ended.value.code == status
    assert capsys.readouterr().err == (
        "cmap train: stopped at step 3 of 6; run again to continue\n"
    )


def test_pretrained_fills_the_config_around_typed_fields(tmp_path):
    """In processes of their own, since absl parses flags once."""
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    code = """if True:
        import sys
        from cmap_jax.cli import flags
        flags.parse(["main.py", *sys.argv[1:]])
        model, data = flags.CONFIG.value.model, flags.CONFIG.value.data
        print(model.pretrained, model.image.name, model.embed_dim, model.text.init_from)
        print(data.fit, data.resampling, data.resize, data.crop)
    """

    def parse(source):
        typed = [f"--config={GARMENTS}", "--config.data.fit=pad"]
        command = [sys.executable, "-c", code, *typed, f"--config.model.pretrained={source}"]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    lines = parse(tmp_path).stdout.splitlines()
    assert lines == [f"None siglip 768 {tmp_path}", "pad bicubic 224 224"]
    refused = parse(tmp_path / "absent")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "absent: no such folder, and not an id" in refused.stderr.splitlines()[-1]
