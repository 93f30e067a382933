"""Errors that end a command with one line and a remedy, and those that keep their traceback."""

import errno

import pytest

from cmap_jax.cli import devices
from cmap_jax.cli.errors import expected_errors, explain
from cmap_jax.training.stopping import Stopped


def _ended(capsys, error, **options):
    """The exit status and the line that an error leads to."""
    with pytest.raises(SystemExit) as ended, expected_errors("main.py", **options):
        raise error
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("config.seed must be 0"), 1, "config.seed must be 0"),
        (FloatingPointError("not finite"), 1, "not finite"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stopped("stopped at step 3 of 6", 143), 143, "stopped at step 3 of 6"),
        (Stopped("stopped at step 3 of 6", 130), 130, "stopped at step 3 of 6"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            1,
            "/x: Permission denied. Ask its owner for the permission, or name a path that you may "
            "use",
        ),
        (
            ValueError("config.x: [Errno 24] Too many open files: '/a b'"),
            1,
            "config.x: /a b: Too many open files. Raise the limit of this shell, ulimit -n 4096, "
            "and start again",
        ),
        # Libraries in C++ raise the system's errors as classes of their own.
        (
            RuntimeError("write of /x: No space left on device"),
            1,
            "write of /x: No space left on device. Free some of the disk, or name a folder on "
            "another one",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/x"),
            1,
            "/x: Read-only file system. Name a folder on a disk that can be written",
        ),
        (OSError("[Errno 2] No such file or directory: '/y'"), 1, "/y: No such file or directory"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            1,
            "this needs the package torch, which is not installed: pip install 'cmap_jax[torch]'",
        ),
        (
            ModuleNotFoundError("No module named 'apache_beam.io'", name="apache_beam.io"),
            1,
            "this needs the package apache_beam, which is not installed: "
            "pip install 'cmap_jax[prepare]'",
        ),
        (ModuleNotFoundError("x.pth: needs PyTorch: do this"), 1, "x.pth: needs PyTorch: do this"),
        (
            OSError(errno.EIO, "Could not resolve host", "gs://b/x"),
            1,
            "gs://b/x cannot be reached: Could not resolve host. Check its name, the network and "
            "your permission (gcloud auth application-default login), or name a folder of this "
            "machine",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file", "gs://b/x"), 1, "gs://b/x: No such file"),
    ],
)
def test_one_line_and_a_status(error, status, line, capsys):
    assert _ended(capsys, error) == (status, f"main.py: {line}\n")


def test_buckets_that_tensorflow_cannot_reach(capsys):
    import tensorflow as tf

    error = tf.errors.FailedPreconditionError(None, None, "no host when reading gs://b/x/config")
    status, line = _ended(capsys, error)
    assert status == 1
    assert line.startswith("main.py: gs://b/x/config cannot be reached: no host. Check its name")
    error = tf.errors.UnimplementedError(None, None, "scheme 's3' not implemented (file: 's3://b')")
    assert "s3://b: no installed package can read s3://. Use gs://" in _ended(capsys, error)[1]
    assert explain(tf.errors.InternalError(None, None, "of another kind")) is None


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a fault"), KeyError("a"), ModuleNotFoundError("x", name="cmap_jax.nothing")],
)
def test_faults_of_the_program_keep_their_traceback(error):
    with pytest.raises(type(error)), expected_errors("main.py"):
        raise error


def test_the_traceback_on_request(monkeypatch):
    monkeypatch.setenv("CMAP_TRACEBACK", "1")
    with pytest.raises(ValueError, match="bad"), expected_errors("main.py"):
        raise ValueError("bad")


def test_the_words_and_the_status_of_a_command(capsys):
    error = ValueError("set --config.data.directory")
    spelling = {"data.directory": "--dir"}
    assert _ended(capsys, error, spelling=spelling, status=2) == (2, "main.py: set --dir\n")
    assert _ended(capsys, KeyboardInterrupt(), status=2) == (130, "main.py: interrupted\n")


@pytest.mark.parametrize(
    ("platform", "raised", "message"),
    [
        ("cuda", AssertionError(), r"JAX_PLATFORMS=cuda: .* here\. .*'cmap_jax\[cuda\]'.*=cpu"),
        ("tpu,cpu", RuntimeError("no libtpu"), r"\(no libtpu\).*'cmap_jax\[tpu\]'"),
        ("quantum", RuntimeError("unknown"), r"JAX_PLATFORMS=quantum.*that exist, or set"),
    ],
)
def test_a_platform_that_is_not_there(platform, raised, message, monkeypatch):
    def fail():
        raise raised

    monkeypatch.setattr(devices, "jax", type("Jax", (), {"devices": fail}))
    devices.jax.config = type("Config", (), {"jax_platforms": platform})
    with pytest.raises(ValueError, match=message):
        devices.check_devices()
    devices.jax.config.jax_platforms = None  # without a request, the error is unexpected
    with pytest.raises(type(raised)):
        devices.check_devices()
