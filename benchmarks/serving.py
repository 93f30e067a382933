"""The service under sustained load, beside the same searches as direct calls in batches.

python benchmarks/serving.py --out=benchmarks/results/serving.json

Clients on the same machine search with a photograph and a text each, one search after the other,
over connections that stay open. The direct call is `Retriever.search_batch` with the same
photographs, encoded, in full batches. Both run in one process in turns, so that other work on the
machine affects both; the clients have a process of their own, whose work the service has to share
the cores with. The model has random weights, which takes the same time as any others.
"""

import concurrent.futures
import http.client
import io
import multiprocessing
import pathlib
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import harness
import numpy as np

BATCH, K = 32, 24
TEXT = "is red and has a longer sleeve"
BOUNDARY = "boundary"
_PATIENCE = 120  # seconds for the clients to start and to end
_SIDE = (480, 640)  # pixels of a photograph that a phone's page sends


def write_model(folder: pathlib.Path) -> Any:
    """Write a workdir with the model of configs/garments.py and random weights, and load it."""
    import jax

    import cmap_jax
    from cmap_jax.models.cmap import CMAP
    from cmap_jax.processing.images import ImagePreprocessing
    from cmap_jax.processing.tokenizer import Vocabulary
    from cmap_jax.protocols import PROTOCOLS
    from cmap_jax.trained import write_model
    from cmap_jax.workdir.description import Description
    from configs import garments

    config = garments.get_config()
    vocabulary = Vocabulary.build([TEXT])
    config.model.text.vocabulary_size = len(vocabulary)
    model = CMAP.from_config(config)
    inputs = CMAP.example_inputs(config.data.crop)
    variables = jax.jit(lambda: model.init(jax.random.key(0), **inputs))()
    preprocessing = ImagePreprocessing(resize=config.data.resize, crop=config.data.crop)
    protocols = (PROTOCOLS["garments/val"],)
    write_model(
        folder, Description(config, vocabulary, preprocessing, protocols, {}), model, variables
    )
    return cmap_jax.load(folder)


def photographs(count: int) -> list[bytes]:
    """Return JPEGs of smooth noise, of a photograph's size."""
    from PIL import Image

    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (24, 32, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(coarse).resize(_SIDE, Image.Resampling.BICUBIC).save(
            stream, "JPEG", quality=85
        )
        encoded.append(stream.getvalue())
    return encoded


def open_retriever(folder: pathlib.Path, images: int) -> Any:
    """Return a retriever over an index of photographs."""
    from cmap_jax.retrieval.retriever import Retriever

    trained = write_model(folder / "model")
    pictures = folder / "pictures"
    pictures.mkdir()
    for number, picture in enumerate(photographs(images)):
        (pictures / f"{number:05}.jpg").write_bytes(picture)
    return Retriever.build(trained, pictures, folder / "INDEX")


def multipart(picture: bytes) -> bytes:
    """Return the body of a search."""
    fields = {"text": TEXT, "k": str(K)}
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return b"".join([*parts, head.encode(), picture, f"\r\n--{BOUNDARY}--\r\n".encode()])


def load(port: int, clients: int, seconds: float, results: Any) -> None:
    """Search from ``clients`` threads; put the times, or an error, into a queue."""
    bodies = [multipart(picture) for picture in photographs(BATCH)]
    end = time.perf_counter() + seconds

    def search(client: int) -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        done = []
        while time.perf_counter() < end:
            started = time.perf_counter()
            body = bodies[(client + len(done)) % len(bodies)]
            headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
            connection.request("POST", "/search", body, headers)
            response = connection.getresponse()
            content = response.read()
            if response.status != 200:  # a refusal is faster than a search
                raise RuntimeError(f"a search was answered with {response.status}: {content!r}")
            done.append(time.perf_counter() - started)
        return done

    started = time.perf_counter()
    try:
        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            times = [entry for own in pool.map(search, range(clients)) for entry in own]
        results.put((times, time.perf_counter() - started))
    except Exception as error:
        results.put(error)


def direct(retriever: Any, pictures: Sequence[bytes], seconds: float) -> float:
    """Return the searches a second of direct calls in full batches."""
    from cmap_jax.retrieval.retriever import Query

    queries = [Query(image=picture, text=TEXT) for picture in pictures]
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        count += len(retriever.search_batch(queries, K))
    return count / (time.perf_counter() - started)


def served(port: int, clients: int, seconds: float) -> dict[str, Any]:
    """Return rate and percentiles of the times under load; a search that fails is an error."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=load, args=(port, clients, seconds, results))
    process.start()
    result = results.get(timeout=seconds + _PATIENCE)
    process.join()
    if isinstance(result, Exception):
        raise result
    times, taken = result
    return {
        "rate": len(times) / taken,
        "p50": float(np.percentile(times, 50)),
        "p95": float(np.percentile(times, 95)),
        "p99": float(np.percentile(times, 99)),
    }


def start(retriever: Any) -> int:
    """Serve in a thread of this process until it ends; return the port, once it is ready."""
    from cmap_jax.serving import server
    from cmap_jax.serving.settings import Settings

    settings = Settings(
        batch=BATCH,
        queue=1024,
        per_client=1024,
        connections=1024,
        client_connections=1024,
        request_seconds=300,
    )
    listener = server.bind("127.0.0.1", 0)

    def opener(_: Any) -> Any:
        return retriever

    opener.manifest = ""
    threading.Thread(target=server.serve, args=(opener, listener, settings), daemon=True).start()
    port = listener.getsockname()[1]
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/readyz")
        if connection.getresponse().status == 200:
            return port
        connection.close()
        time.sleep(0.1)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--images", type=int, default=200, help="photographs of the gallery")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        retriever = open_retriever(pathlib.Path(folder), arguments.images)
        port = start(retriever)
        pictures = photographs(BATCH)
        direct(retriever, pictures, 1.0)
        figures: dict[str, Any] = {"direct": [], "clients": {n: [] for n in arguments.clients}}
        for _ in range(arguments.turns):
            for clients in arguments.clients:
                figures["direct"].append(direct(retriever, pictures, arguments.seconds))
                figures["clients"][clients].append(served(port, clients, arguments.seconds))
    rates = figures["direct"]
    rows = []
    for number, (clients, runs) in enumerate(figures["clients"].items()):
        own = rates[number :: len(arguments.clients)]  # the direct calls just before
        ratios = [run["rate"] / rate for run, rate in zip(runs, own, strict=True)]
        times = [harness.spread([run[p] for run in runs], 1000, 0) for p in ("p50", "p95", "p99")]
        rows.append([str(clients), harness.spread(ratios, digits=2), *times])
    head = ["clients", "rate / direct", "p50, ms", "p95", "p99"]
    print(f"direct calls: {harness.spread(rates, digits=1)} searches a second")
    print(harness.table(head, rows))
    harness.write(arguments.out, figures)


if __name__ == "__main__":
    main()
