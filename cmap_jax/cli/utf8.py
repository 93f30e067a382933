"""Texts and paths in any language, whatever the locale says.

Under an ASCII locale, as in small containers, Python could print no other characters and open no
path with them, if its own UTF-8 mode is switched off.
"""

import os
import sys


def use_utf8() -> None:
    """Start the program again in Python's UTF-8 mode, if it runs under an ASCII locale.

    Characters that still cannot be printed, such as the bytes of a path that is no UTF-8, are
    printed as escapes.
    """
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"  # for the programs that this one starts, too
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
