"""Drawing the pictures of many garments at once, in processes of their own."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

from cmap_jax.progress import LiveLine, format_seconds

# Starting a process takes as long as drawing some hundreds of pictures.
_IMAGES_PER_WORKER = 500
_PROGRESS_SECONDS = 2.0
_NOT_WRITTEN = 74  # exit status of a child that could not write, such as on a full disk
# Standard input is a pipe that only the parent holds open, so that even SIGKILL to the parent ends
# the child.
_WORKER = f"""
import os, pathlib, sys, threading

def end_with_parent():
    os.read(0, 1)
    os._exit(1)

threading.Thread(target=end_with_parent, daemon=True).start()
root, directory, *numbers = sys.argv[1:]
sys.path.insert(0, root)
from input_pipeline.garments import drawing
start, stop, step, seed, size = map(int, numbers)
try:
    drawing.render_files(pathlib.Path(directory), range(start, stop, step), seed, size)
except FileNotFoundError:
    raise
except OSError as error:
    sys.stderr.write(error.strerror or str(error))
    sys.exit({_NOT_WRITTEN})
"""


def render(directory: pathlib.Path, count: int, seed: int, size: int) -> None:
    """Draws the first `count` garments of the grid into `directory`, on all processors.

    The work is done in plain child processes: threads would wait for one another (PIL draws under
    the interpreter's lock), a fork after JAX or TensorFlow has started threads can hang, and
    `multiprocessing`'s spawn runs the main module again in each child, with all its imports.

    Args:
        directory: folder for the files, which exists.
        count: number of garments, from the start of the grid.
        seed: seed of the whole data set.
        size: pixels a side.

    The processes end with this one, however it ends.

    Raises:
        OSError: a file cannot be written; the message is the system's reason alone.
        RuntimeError: a process failed; the message ends with its errors.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = max(1, min(cores or 1, count // _IMAGES_PER_WORKER))
    root = pathlib.Path(__file__).absolute().parents[2]
    children = []
    to_watch, to_hold = os.pipe()
    try:
        for worker in range(workers):
            numbers = map(str, (worker, count, workers, seed, size))
            command = [sys.executable, "-c", _WORKER, str(root), str(directory), *numbers]
            children.append(subprocess.Popen(command, stdin=to_watch, stderr=subprocess.PIPE))
        _wait(children, directory, count)
    finally:
        for child in children:
            child.kill()
            child.communicate()
        os.close(to_watch)
        os.close(to_hold)


def _wait(children: list[subprocess.Popen[bytes]], directory: pathlib.Path, count: int) -> None:
    """Waits for all child processes, and shows their progress.

    Raises:
        OSError, RuntimeError: as `render`.
    """
    start = shown = time.monotonic()
    line = LiveLine()
    running = list(children)
    while running:
        for child in list(running):
            try:
                _, errors = child.communicate(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
            running.remove(child)
            if child.returncode:
                last = errors.decode(errors="replace").strip()[-2000:]
                if child.returncode == _NOT_WRITTEN:
                    raise OSError(last)
                raise RuntimeError(f"drawing garments failed ({child.returncode}):\n{last}")
        now = time.monotonic()
        if running and now - shown >= _PROGRESS_SECONDS:
            shown, done = now, len(os.listdir(directory))
            rate = done / (now - start)
            left = f", {format_seconds((count - done) / rate)} left" if rate else ""
            line.update(
                f"drawing garments: {done:,} of {count:,}, {rate:.0f} a second{left}", done / count
            )
    line.clear()
