"""The service over a real index of small pictures of noise."""

import contextlib
import io
import pathlib
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from cmap_jax.retrieval.catalogue import Item
from cmap_jax.retrieval.index_files.writing import write_index
from cmap_jax.serving.app import Service
from cmap_jax.serving.opening import Opener
from cmap_jax.serving.settings import Settings
from cmap_jax.trained import Trained


def picture(number: int) -> bytes:
    """Return a PNG of noise."""
    stream = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()


def write(folder: pathlib.Path, trained: Trained, count: int) -> None:
    """Publish a generation of so many pictures, "shop/0" and on, in files beside the folder."""
    items = []
    for number in range(count):
        path = folder.parent / f"{number}.png"
        path.write_bytes(picture(number))
        items.append(Item(f"shop/{number}", str(path), {"price": float(number)}))
    write_index(
        folder,
        items,
        trained.encode_images([item.image for item in items]),
        fingerprint=trained.fingerprint,
        variant=trained.config.model.variant,
        preprocessing=trained.preprocessing,
    )


@contextlib.contextmanager
def served(folder: pathlib.Path, trained: Trained, **settings) -> Iterator[TestClient]:
    """Serve an index; give a client with the ``service``, and the retriever as ``direct``."""
    opener = Opener(folder, trained)
    service = Service(opener, opener.manifest, Settings(reload_seconds=0, **settings))
    direct = opener.first
    with TestClient(service.app) as client:
        client.service, client.direct = service, direct
        while client.get("/readyz").status_code != 200:
            assert service.failure is None
            time.sleep(0.02)
        yield client
