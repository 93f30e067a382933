"""The process: slow and too many connections, signals, and packages that it does without."""

import contextlib
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from fake_retriever import COLORS, FakeRetriever, encoded, write_gallery
from optional import require

require("fastapi")
require("uvicorn")

from running_service import get, running, wait_until_ready  # noqa: E402

from cmap_jax.serving import server  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]

# The service runs in a process of its own, without the packages that only training needs. The first
# search of each generation waits until the file `go` is there.
PROGRAM = """
import sys, pathlib, threading, time, types

HIDDEN = ("tensorflow", "clu", "torch", "tensorboard", "tensorflow_datasets")

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Hide())
sys.path.insert(0, "tests")
import fake_retriever
from cmap_jax.serving import logs, server
from cmap_jax.serving.settings import Settings
import cmap_jax.cli.serve, cmap_jax.serving.opening

folder = pathlib.Path(sys.argv[1])
items = fake_retriever.write_gallery(folder)
generation = 0

def opener(previous):
    global generation
    generation += 1
    retriever = fake_retriever.FakeRetriever(items, f"generation-{generation:06}")
    compose = retriever.compose
    def waiting(queries):
        while not (folder / "go").exists():
            time.sleep(0.01)
        return compose(queries)
    retriever.compose = waiting
    return retriever

opener.manifest = str(folder / "manifest.json")
listener = server.bind("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
logs.log_as_json()
server.serve(opener, listener, Settings(reload_seconds=0))
"""


def post_search(port: int, text: str = "red") -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    fields = {"text": text, "k": "1"}
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    connection.request("POST", "/search", "".join([*parts, "--x--\r\n"]), headers)
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    return response.status, content


def read_all(connection: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.fixture
def retriever(tmp_path):
    return FakeRetriever(write_gallery(tmp_path))


def test_connections_that_get_nowhere_are_closed(retriever, monkeypatch):
    monkeypatch.setattr(server, "_KEEP_ALIVE", 1)
    with running(retriever, body_seconds=1.0, connections=4) as port:
        address = ("127.0.0.1", port)
        silent = socket.create_connection(address, timeout=10)
        slow = socket.create_connection(address, timeout=10)
        slow.sendall(b"GET /items HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        body = socket.create_connection(address, timeout=10)
        body.sendall(
            b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        )
        time.sleep(0.2)
        fourth, fifth = (socket.create_connection(address, timeout=10) for _ in range(2))
        time.sleep(0.2)
        assert b" 503 " in read_all(fifth)
        slow.sendall(b"a")  # a byte now and then does not help
        assert read_all(silent) == read_all(slow) == b""
        answer = read_all(body)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer.lower()
        for connection in (silent, slow, body, fourth, fifth):
            connection.close()
        assert post_search(port)[0] == 200


def test_clients_that_do_not_read_are_cut_off(retriever, monkeypatch):
    """They hold their connections, and the answers that wait in them, for a few seconds alone."""
    monkeypatch.setattr(server, "_KEEP_ALIVE", 1)
    limits = {"connections": 3, "body_seconds": 1.0, "request_seconds": 1.0}
    with running(retriever, **limits) as port, contextlib.ExitStack() as opened:
        for _ in range(3):
            connection = opened.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(0.3)
            connection.connect(("127.0.0.1", port))
            with contextlib.suppress(OSError):
                for _ in range(3000):
                    connection.sendall(b"GET /page/style.css HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until_ready(port, 10)


def test_one_client_cannot_take_all_connections(retriever):
    def open_three(trusted) -> bytes:
        with running(retriever, trusted, client_connections=2) as port:
            time.sleep(0.2)  # the connections of the start are gone
            opened = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(3)]
            opened[2].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = read_all(opened[2])
            for connection in opened:
                connection.close()
            return answer

    assert b" 503 " in open_three(())
    assert b" 200 " in open_three(("127.0.0.1",))  # a proxy has many clients


def test_what_outlives_the_stop_timeout_is_told_so(retriever, caplog):
    answers = []
    with running(retriever, shutdown_seconds=1) as port:
        retriever.gate.clear()
        thread = threading.Thread(target=lambda: answers.append(post_search(port)))
        thread.start()
        while b"cmap_searches_in_flight 1.0" not in get(port, "/metrics")[1]:
            time.sleep(0.02)
    retriever.gate.set()
    thread.join(10)
    ((status, answer),) = answers
    assert (status, answer["error"]) == (503, "the service is stopping; try again soon")
    assert not [record for record in caplog.records if record.exc_info]


def test_nonsense_on_the_wire(retriever):
    with running(retriever) as port:
        for sent in (
            b"\x16\x03\x01\x02\x00\x01",  # a TLS client
            b"GET\r\n\r\n",
            b"GET / HTTP/x\r\n\r\n",
            b"GET /items/%2e%2e%2f%2e%2e%2fetc%2fpasswd/image HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET ../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET http://127.0.0.1/../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
            b"POST /search HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        ):
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
            with contextlib.suppress(ConnectionError):
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
            answer = read_all(connection)
            connection.close()
            assert answer[:10] in (b"", b"HTTP/1.1 4"), answer
            assert b"root:" not in answer
        assert post_search(port)[0] == 200


def test_a_client_that_leaves_is_no_error(retriever, caplog):
    with running(retriever) as port:
        connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        connection.sendall(
            b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        )
        time.sleep(0.2)
        connection.close()
        time.sleep(0.2)
        assert post_search(port)[0] == 200
    assert not [record for record in caplog.records if record.exc_info]


def test_a_port_that_is_taken():
    listener = server.bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with pytest.raises(OSError, match=f"--port {port} cannot be listened to"):
        server.bind("127.0.0.1", port)
    listener.close()
    with pytest.raises(OSError, match=r"--host no\.such\.host\.invalid"):
        server.bind("no.such.host.invalid", 0)


def test_signals_in_a_process_without_tensorflow(tmp_path):
    """SIGHUP reloads; SIGTERM answers what is in flight, refuses what is new, and ends."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    try:
        port = int(process.stdout.readline())
        wait_until_ready(port)
        process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 30
        while b"generation-000002" not in get(port, "/metrics")[1]:
            assert time.monotonic() < end
            time.sleep(0.02)
        answers: list[tuple[int, dict]] = []
        searches = [
            threading.Thread(target=lambda: answers.append(post_search(port))) for _ in range(3)
        ]
        for search in searches:
            search.start()
        while b"cmap_searches_in_flight 3.0" not in get(port, "/metrics")[1]:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(OSError):  # noqa: PT011 - refused, or reset while it closes
            get(port, "/healthz")
        (tmp_path / "go").touch()
        for search in searches:
            search.join(20)
        assert [status for status, _ in answers] == [200] * 3
        _, log = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGTERM
    entries = [json.loads(line) for line in log.splitlines()]
    assert [e["status"] for e in entries if e.get("route") == "/search"] == [200] * 3
    # Another process may be writing the compilation cache at that moment.
    loud = [e for e in entries if e["level"] in ("warning", "error")]
    assert not [e for e in loud if "compilation cache" not in e["message"]]


def test_what_a_proxy_says_of_the_client_is_believed_from_trusted_ones_alone(retriever, caplog):
    def client_of(trusted) -> str:
        caplog.clear()
        with running(retriever, trusted) as port:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/about", headers={"X-Forwarded-For": "10.1.2.3"})
            connection.getresponse().read()
            connection.close()
        return next(r.client for r in caplog.records if getattr(r, "route", "") == "/about")

    caplog.set_level("INFO")
    assert client_of(()) == "127.0.0.1"
    assert client_of(("127.0.0.1",)) == "10.1.2.3"


def test_an_uploaded_picture_over_the_wire(retriever):
    with running(retriever) as port:
        body = (
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
            + encoded(COLORS["blue"])
            + b"\r\n--x--\r\n"
        )
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        connection.request("POST", "/search", body, headers)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        assert answer["hits"][0]["metadata"]["name"] == "blue"
