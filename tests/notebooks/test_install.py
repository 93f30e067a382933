"""Installation in a runtime that brings JAX, TensorFlow and PyTorch."""

import runpy
import subprocess
import sys
import types
import unittest.mock

import pytest
from command_line import ROOT
from packaging.requirements import Requirement

install = types.SimpleNamespace(**runpy.run_path(str(ROOT / "notebooks" / "install.py")))

GPU = {
    "absl-py": "1.4.0",
    "flax": "0.10.6",
    "jax": "0.7.2",
    "jax-cuda12-pjrt": "0.7.2",
    "jax-cuda12-plugin": "0.7.2",
    "jaxlib": "0.7.2",
    "numpy": "2.0.2",
    "nvidia-cudnn-cu12": "9.10.2.21",
    "pillow": "11.3.0",
    "tensorboard": "2.19.0",
    "tensorflow": "2.19.0",
    "tensorflow-datasets": "4.9.9",
    "tensorflow-metadata": "1.17.2",
    "torch": "2.9.0+cu126",
    "torchvision": "0.24.0+cu126",
}
TPU = {
    "jax": "0.10.2",
    "jaxlib": "0.10.2",
    "libtpu": "0.0.40",
    "numpy": "2.4.6",
    "tensorboard": "2.21.0",
    "tensorflow-tpu": "2.21.0",
}


@pytest.fixture(scope="module")
def requirements() -> list[str]:
    """Return the package's requirements as its metadata have them."""
    without_tensorflow = unittest.mock.patch.dict("os.environ", install._ENVIRONMENT)
    with unittest.mock.patch("setuptools.setup") as setup, without_tensorflow:
        runpy.run_path(str(ROOT / "setup.py"))
    arguments = setup.call_args.kwargs
    lines = list(arguments["install_requires"])
    for extra, group in arguments["extras_require"].items():
        for line in group:
            requirement = Requirement(line)
            marker = f"({requirement.marker}) and " if requirement.marker else ""
            requirement.marker = None
            lines.append(f'{requirement}; {marker}extra == "{extra}"')
    return lines


def _names(lines) -> dict[str, Requirement]:
    return {r.name.lower().replace("_", "-"): r for r in map(Requirement, lines)}


@pytest.mark.parametrize("installed", [GPU, TPU], ids=["gpu", "tpu"])
def test_the_runtimes_builds_are_never_replaced(requirements, installed):
    plan = install.make_plan(requirements, installed)
    wanted = _names(plan.requirements)
    assert not {"tensorflow-cpu", "torch", "jax-cuda13-plugin", "faiss-cpu"} & wanted.keys()
    builds = {n for n in installed if n.partition("-")[0] in ("jax", "jaxlib", "libtpu", "nvidia")}
    builds |= {"numpy", "tensorboard", "torch", "torchvision", "tensorflow", "tensorflow-tpu"}
    for name in builds & installed.keys():
        assert f"{name}=={installed[name]}" in plan.pins
        if name in wanted:  # to make pip mind what the build itself requires
            assert str(wanted[name].specifier) == f"=={installed[name]}"
    assert {"jax", "numpy", "tensorboard"} < wanted.keys()
    assert [n for n in wanted if n in ("tensorflow", "tensorflow-tpu")] != []


def test_everything_else_is_installed_as_the_package_asks(requirements):
    wanted = _names(install.make_plan(requirements, GPU).requirements)
    asked = _names(r for r in requirements if "extra" not in r)
    for name in asked.keys() - {"jax", "numpy"}:
        assert wanted[name].specifier == asked[name].specifier
        assert wanted[name].extras == asked[name].extras
    assert {"array-record", "clu", "dill", "tensorflow-datasets"} <= wanted.keys()
    assert not {"pytest", "uvicorn", "apache-beam"} & wanted.keys()


def test_old_builds_are_named(requirements):
    notes = install.make_plan(requirements, GPU).notes
    assert [note.split()[0] for note in notes] == ["jax", "tensorboard", "tensorflow"]
    assert notes[0].startswith("jax 0.7.2 of this runtime is kept, though cmap_jax asks for >=")
    assert install.make_plan(requirements, TPU).notes == []


def test_a_runtime_without_tensorflow_gets_one(requirements):
    without = {name: version for name, version in GPU.items() if name != "tensorflow"}
    wanted = _names(install.make_plan(requirements, without).requirements)
    assert {"tensorflow-cpu", "tensorflow"} & wanted.keys()
    assert "tensorflow-datasets" in wanted


def test_the_package_comes_last_and_errors_are_shown(requirements, monkeypatch, capsys):
    """Where pip fails, nothing can be imported that lacks a requirement."""
    commands = []

    def pip(command, env, **options):
        commands.append(command[3:])
        assert env["CMAP_JAX_WITHOUT_TENSORFLOW"] == "1"
        if "wheel" in command:
            folder = command[command.index("--wheel-dir") + 1]
            open(f"{folder}/cmap_jax-0.1.0-py3-none-any.whl", "w").close()
        status = 1 if "--constraint" in command else 0
        return subprocess.CompletedProcess(command, status, "ERROR: no such version\n")

    names = install.main.__globals__
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setitem(names, "installed_versions", lambda: GPU)
    monkeypatch.setitem(names, "_requirements", lambda wheel: requirements)
    with pytest.raises(subprocess.CalledProcessError):
        install.main()
    assert [command[0] for command in commands] == ["wheel", "install"]
    assert "clu>=0.0.12" in commands[1]
    assert "ERROR: no such version" in capsys.readouterr().out


def test_a_loaded_module_that_changed_asks_for_a_restart():
    assert "pytest" in sys.modules
    assert install.loaded_modules(["pytest", "no-such-distribution"]) != []
    assert "numpy" not in install.loaded_modules(["pytest"])
