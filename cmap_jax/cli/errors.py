"""What a person can mend ends a command with a line that says how, in place of a traceback.

Set CMAP_TRACEBACK=1 to see the traceback all the same.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import NoReturn

from cmap_jax.remedies import spelled

# The extra of setup.py that brings a package.
_EXTRAS = {"torch": "torch", "apache_beam": "prepare", "mlcroissant": "prepare"}
_BUCKET = re.compile(r"\b[a-z][a-z0-9]*://[^\s'\",)]+")
_PIPE_CLOSED = 141  # the exit status of a program that SIGPIPE ended
_LONGEST = 300  # characters of a server's answer


class UsageError(ValueError):
    """The command line is wrong; the message is for the person who typed it."""


def end_with(program: str, message: str, status: int) -> NoReturn:
    """Write a message to standard error and end the program."""
    sys.stderr.write(f"{program}: {message}\n")
    sys.exit(status)


@contextlib.contextmanager
def expected_errors(
    program: str, spelling: Mapping[str, str] | None = None, status: int = 1
) -> Iterator[None]:
    """End the program with a line about what a person can mend, and its exit status.

    Args:
        program: the command as it was typed, for the beginning of the line.
        spelling: how the command spells the config's fields; see `remedies.spelled`.
        status: the exit status, where the error was no signal; see `status_of`.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read what is printed, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_PIPE_CLOSED)
    except (Exception, KeyboardInterrupt) as error:
        line = explain(error)
        if line is None or (os.environ.get("CMAP_TRACEBACK") and isinstance(error, Exception)):
            raise
        end_with(program, spelled(line, spelling or {}), status_of(error, status))


def status_of(error: BaseException, otherwise: int = 1) -> int:
    """Return the exit status of a program that an error ends.

    Where a signal was the reason, 130 (Ctrl-C) or 143 (SIGTERM), so that `this && next` stops.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    interrupted = isinstance(error, KeyboardInterrupt)
    return getattr(error, "exit_status", 130 if interrupted else otherwise)  # `Stopped` has one


def explain(error: BaseException) -> str | None:
    """Return a line about what went wrong and what mends it; None where that is not known."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, ModuleNotFoundError):
        return _explain_missing_package(error)
    if _is_of_storage(error) and (place := _BUCKET.search(_text(error))):
        return _explain_bucket(place[0].rstrip(".:"), _text(error))
    if isinstance(error, ValueError | OSError | FloatingPointError):
        return _text(error)
    # Only here: it loads JAX, for which a wrong flag need not wait.
    from cmap_jax.training.stopping import Stopped

    return str(error) if isinstance(error, Stopped) else None


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _is_of_storage(error: BaseException) -> bool:
    """Tell whether a file system, Python's or TensorFlow's, is what failed."""
    if isinstance(error, FileNotFoundError):  # it was reached
        return False
    return isinstance(error, OSError) or type(error).__module__.startswith("tensorflow.")


def _explain_bucket(place: str, text: str) -> str:
    scheme = place.partition("://")[0]
    reason = re.sub(" when reading .*", "", " ".join(text.split())).replace(place, "")
    reason = " ".join(reason.split())[:_LONGEST].strip(" :")
    if "not implemented" in text:
        return (
            f"{place}: nothing here can read {scheme}://. Use gs://, or copy or mount the bucket "
            "and name the folder"
        )
    return (
        f"{place} cannot be reached: {reason}. Check its name, the network and your permission "
        "(gcloud auth application-default login), or name a folder of this machine"
    )


def _explain_missing_package(error: ModuleNotFoundError) -> str | None:
    package = (error.name or "").partition(".")[0]
    if not package:  # whoever raised it says what to do
        return str(error)
    if package in ("cmap_jax", "configs", "input_pipeline"):
        return None
    what = f"cmap_jax[{_EXTRAS[package]}]" if package in _EXTRAS else package
    return f"this needs the package {package}, which is not installed: pip install '{what}'"
