"""Errors that the user can mend: one line with the remedy in place of a traceback.

With the environment variable CMAP_TRACEBACK=1 the traceback is shown all the same.
"""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

from cmap_jax.remedies import spelled

# Packages that an extra of setup.py installs, and the extra's name.
_EXTRAS = {
    "torch": "torch",
    "apache_beam": "prepare",
    "mlcroissant": "prepare",
    "faiss": "faiss",
    "pymilvus": "milvus",
    "milvus_lite": "milvus",
    "fastapi": "serve",
    "prometheus_client": "serve",
    "python_multipart": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
}
_BUCKET = re.compile(r"\b[a-z][a-z0-9]*://[^\s'\",)]+")
_PIPE_CLOSED = 141  # exit status of a program that SIGPIPE ends, as shells report it
# The system's errors that a person can mend, each with its remedy.
_REMEDIES = {
    errno.EACCES: "Ask its owner for the permission, or name a path that you may use",
    errno.EPERM: "Ask its owner for the permission, or name a path that you may use",
    errno.EROFS: "Name a folder on a disk that can be written",
    errno.ENOSPC: "Free some of the disk, or name a folder on another one",
    errno.EDQUOT: "Free some of your quota, or name a folder on another disk",
    errno.EMFILE: "Raise the limit of this shell, ulimit -n 4096, and start again",
    errno.ENFILE: "End other programs of this machine, and start again",
    errno.ENAMETOOLONG: "Give a shorter name",
    errno.EIO: "The disk or the connection to it is at fault: check it, or name another one",
}
# An error of the system inside another's text: its number, reason and, quoted, its path.
_NUMBERED = re.compile(r"\[Errno \d+\] ([^:'\"\n]+)(?:: (?:'([^']*)'|\"([^\"]*)\"))?")
_LONGEST = 300  # characters of a storage server's answer that a message shows


class UsageError(ValueError):
    """A mistake in the command line; the message is shown to the user."""


def end_with(program: str, message: str, status: int) -> NoReturn:
    """Write a message to standard error and end the program."""
    sys.stderr.write(f"{program}: {message}\n")
    sys.exit(status)


@contextlib.contextmanager
def expected_errors(
    program: str,
    spelling: Mapping[str, str] | None = None,
    status: int = 1,
    amended: Callable[[str], str] = str,
) -> Iterator[None]:
    """Turn errors in the block that the user can mend into one line and an exit status.

    Args:
        program: the command as it was typed; begins the line.
        spelling: the command's flags for config fields; see `remedies.spelled`.
        status: the exit status after an error that no signal caused; see `status_of`.
        amended: adds to a line what holds in the command at hand; see `resumed.for_resumed_run`.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_PIPE_CLOSED)
    except (Exception, KeyboardInterrupt) as error:
        line = explain(error)
        if line is None or (os.environ.get("CMAP_TRACEBACK") and isinstance(error, Exception)):
            raise
        end_with(program, spelled(amended(line), spelling or {}), status_of(error, status))


def status_of(error: BaseException, otherwise: int = 1) -> int:
    """Return the exit status of a program that an error ends.

    After Ctrl-C it is 130 and after SIGTERM 143, as shells expect.

    Args:
        error: the exception that ends the program.
        otherwise: the status where no signal caused it.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    interrupted = isinstance(error, KeyboardInterrupt)
    return getattr(error, "exit_status", 130 if interrupted else otherwise)  # `Stopped` has one


def explain(error: BaseException) -> str | None:
    """Return a line with the error and its remedy; None for an unexpected error."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, ModuleNotFoundError):
        return _explain_missing_package(error)
    if _is_storage_error(error) and (match := _BUCKET.search(_text(error))):
        return _explain_bucket(match[0].rstrip(".:"), _text(error))
    text = _text(error)
    if remedy := _system_remedy(text):
        return f"{text.rstrip('.')}. {remedy}"
    if isinstance(error, ValueError | OSError | FloatingPointError):
        return text
    # Imported here since it loads JAX, which takes seconds.
    from cmap_jax.training.stopping import Stopped

    return str(error) if isinstance(error, Stopped) else None


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return _NUMBERED.sub(_without_number, str(error))


def _without_number(match: re.Match) -> str:
    reason, *paths = match.groups()
    path = next(filter(None, paths), None)
    return f"{path}: {reason}" if path else reason


def _system_remedy(text: str) -> str | None:
    """Return the remedy of a system's error that a text states, in whatever exception it came."""
    return next((r for number, r in _REMEDIES.items() if os.strerror(number) in text), None)


def _is_storage_error(error: BaseException) -> bool:
    """Return whether a file system, Python's or TensorFlow's, could not be reached or read."""
    if isinstance(error, FileNotFoundError):  # the file system answered
        return False
    return isinstance(error, OSError) or type(error).__module__.startswith("tensorflow.")


def _explain_bucket(url: str, text: str) -> str:
    scheme = url.partition("://")[0]
    reason = re.sub(" when reading .*", "", " ".join(text.split())).replace(url, "")
    reason = " ".join(reason.split())[:_LONGEST].strip(" :")
    if "not implemented" in text:
        return (
            f"{url}: no installed package can read {scheme}://. Use gs://, or copy or mount the "
            "bucket and name the folder"
        )
    return (
        f"{url} cannot be reached: {reason}. Check its name, the network and your permission "
        "(gcloud auth application-default login), or name a folder of this machine"
    )


def _explain_missing_package(error: ModuleNotFoundError) -> str | None:
    package = (error.name or "").partition(".")[0]
    if not package:  # raised by our own code, with the remedy in its message
        return str(error)
    if package in ("cmap_jax", "configs", "input_pipeline"):
        return None
    source = f"cmap_jax[{_EXTRAS[package]}]" if package in _EXTRAS else package
    return f"this needs the package {package}, which is not installed: pip install '{source}'"
