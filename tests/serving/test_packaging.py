"""Installation without TensorFlow, and the container's command."""

import argparse
import json
import pathlib
import re
import runpy
import unittest.mock

from cmap_jax.cli import serve

ROOT = pathlib.Path(__file__).parents[2]
HEAVY = {"tensorflow", "tensorflow-cpu", "tensorflow-datasets", "tensorboard", "clu", "torch"}


def arguments_of_setup() -> dict:
    with unittest.mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    return setup.call_args.kwargs


def packages(requirements) -> set[str]:
    return {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in requirements}


def test_requirements_without_tensorflow(monkeypatch):
    monkeypatch.delenv("CMAP_JAX_WITHOUT_TENSORFLOW", raising=False)
    everything = packages(arguments_of_setup()["install_requires"])
    assert everything >= HEAVY - {"torch"}
    monkeypatch.setenv("CMAP_JAX_WITHOUT_TENSORFLOW", "1")
    light = arguments_of_setup()
    needed = packages([*light["install_requires"], *light["extras_require"]["serve"]])
    assert not needed & HEAVY
    assert needed >= {"jax", "flax", "orbax-checkpoint", "pillow", "fastapi", "uvicorn"}
    assert packages(light["install_requires"]) < everything


def test_the_container_starts_the_command():
    text = (ROOT / "Dockerfile").read_text()
    words = [
        json.loads(re.search(rf"^{key} (\[.*\])$", text, re.M)[1]) for key in ("ENTRYPOINT", "CMD")
    ]
    program, *rest = [word for part in words for word in part]
    assert (program, rest.pop(0)) == ("cmap", "serve")
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    arguments = parser.parse_args(rest)
    assert (arguments.host, arguments.port) == ("0.0.0.0", 8000)
    assert re.search(r"^USER \d+$", text, re.M)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for source in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M):
        for name in source.split():
            assert {f"!{name}", f"!{name}/"} & set(ignored), name
