"""Opening an index: what is served at the start is the newest generation."""

import types

import pytest

from cmap_jax.serving import opening


@pytest.fixture
def index(monkeypatch):
    """An index without files: its manifest, and the models that it was loaded with."""
    index = types.SimpleNamespace(manifest=None, loaded=[])

    def load(folder, model=None):
        index.loaded.append(model)
        trained = f"model of {index.manifest.fingerprint}"
        described = types.SimpleNamespace(manifest=index.manifest)
        return types.SimpleNamespace(index=described, trained=trained)

    def publish(generation, fingerprint="a"):
        index.manifest = types.SimpleNamespace(generation=generation, fingerprint=fingerprint)

    monkeypatch.setattr(opening.Retriever, "load", load)
    monkeypatch.setattr(opening, "read_manifest", lambda folder: index.manifest)
    index.publish = publish
    publish(1)
    return index


def test_the_first_call_returns_what_is_open(index):
    opener = opening.Opener("INDEX", "runs/shop")
    first = opener.first
    assert opener(None) is first
    assert opener.first is None
    assert index.loaded == ["runs/shop"]


def test_an_update_while_the_model_loads_is_served(index):
    opener = opening.Opener("INDEX", "runs/shop")
    index.publish(2)
    assert opener(None).index.manifest.generation == 2
    assert index.loaded == ["runs/shop", "model of a"]


def test_the_model_is_loaded_again_only_if_it_is_another(index):
    opener = opening.Opener("INDEX", "runs/shop")
    first = opener(None)
    index.publish(2)
    second = opener(first)
    index.publish(3, "b")
    opener(second)
    assert index.loaded == ["runs/shop", "model of a", "runs/shop"]
