"""Every path that a person types or writes into a config is expanded, and none is forgotten."""

import argparse
import importlib

import pytest
from command_line import run
from fake_data import shoes as write_shoes

from cmap_jax.cli import arguments, command, flags
from cmap_jax.config_fields import FIELDS, flatten
from configs import default

# String arguments of subcommands and main.py that are not paths.
NO_PATHS = {"dataset", "data", "split", "protocol", "coordinator"}
NO_PATHS |= {"item", "text", "where", "backend", "set", "runner", "beam"}
NO_PATHS |= {"host", "title", "note", "allow_host", "trust_proxy", "change", "keep", "product"}
NO_PATHS |= {"license", "vary", "only"}


def _actions():
    """Yield every argument of every subcommand that takes a string from the user."""
    for name in command._SUBCOMMANDS:
        if name == command._TRAIN:  # its flags are main.py's
            continue
        module = importlib.import_module(f"cmap_jax.cli.{name}")
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        for action in parser._actions:
            is_number = action.type in (int, float)
            takes_text = action.nargs != 0 and not action.choices and not is_number
            if takes_text and not isinstance(action, argparse._HelpAction):
                yield module.__name__, action


def test_every_path_argument_is_expanded():
    actions = list(_actions())
    assert len(actions) > 15
    wrong = [
        f"{module}: {action.dest}"
        for module, action in actions
        if (action.type is arguments.path) == (action.dest in NO_PATHS)
    ]
    assert not wrong, f"give these type=path, or list them in NO_PATHS: {wrong}"


def test_every_path_flag_of_main_is_expanded():
    ours = flags.flags.FLAGS.flags_by_module_dict()[flags.__name__]
    texts = {f.name for f in ours if f.flag_type() in ("string", "config object")} - NO_PATHS
    assert texts == set(arguments.PATH_FLAGS)


def test_every_path_field_is_expanded():
    words = (
        "directory",
        "folder",
        "file",
        "path",
        "init_from",
        "vectors",
        "features",
        "pretrained",
    )
    paths = {name for name in flatten(default.get_config()) if name.endswith(words)}
    assert paths == {name for name, field in FIELDS.items() if field.is_path}


def test_fields(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("CMAP_TEST_DATA", "/data")
    config = default.get_config()
    config.data.directory = "~/fashion-iq"
    config.data.image_directory = "$CMAP_TEST_DATA/images"
    config.init_from = "~/runs/x"
    config.model.image.init_from = "${CMAP_TEST_DATA}/resnet50.pth"
    before = config.copy_and_resolve_references()
    arguments.expand_fields(config)
    assert config.data.directory == "/home/someone/fashion-iq"
    assert config.data.image_directory == "/data/images"
    assert config.init_from == "/home/someone/runs/x"
    assert config.model.image.init_from == "/data/resnet50.pth"
    assert config.model.text.init_from is None
    before.data.directory = "$CMAP_TEST_UNSET/x"
    with pytest.raises(ValueError, match=r"^config\.data\.directory: \$CMAP_TEST_UNSET/x: the var"):
        arguments.expand_fields(before)


def test_flags(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    given = ["main.py", "--config=~/mine.py:debug", "--workdir", "~/runs", "-compilation_cache=off"]
    given += ["--config.data.name=~", "--mode=train", "--workdir=~/x=y"]
    assert arguments.expand_flags(given) == [
        *("main.py", "--config=/home/someone/mine.py:debug", "--workdir", "/home/someone/runs"),
        *("--compilation_cache=off", "--config.data.name=~", "--mode=train"),
        "--workdir=/home/someone/x=y",
    ]
    with pytest.raises(ValueError, match=r"^--workdir: ~nobody-of-that-name/x: there is no user"):
        arguments.expand_flags(["main.py", "--workdir=~nobody-of-that-name/x"])


def test_a_subcommand(tmp_path, monkeypatch, capsys):
    write_shoes(tmp_path / "shoes")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CMAP_TEST_DATA", str(tmp_path))
    for typed in ("~/shoes", "$CMAP_TEST_DATA/shoes"):
        assert command.main(["doctor", "shoes", typed]) == 0
        assert f"shoes in {tmp_path}/shoes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["doctor", "shoes", "$CMAP_TEST_UNSET/shoes"])
    assert "the variable CMAP_TEST_UNSET is not set" in capsys.readouterr().err


def test_main_makes_no_folder_called_tilde(tmp_path, monkeypatch):
    """The shell leaves ``--workdir=~/runs`` alone; the error shows where main.py looked."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    done = run("--mode=evaluate", "--workdir=~/runs/x", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}/home/runs/x is not a workdir" in done.stderr
    done = run("--mode=evaluate", "--workdir=$CMAP_TEST_UNSET/x", cwd=tmp_path)
    assert done.returncode == 2
    assert "--workdir: $CMAP_TEST_UNSET/x: the variable CMAP_TEST_UNSET is not set" in done.stderr
    assert not list(tmp_path.iterdir())
