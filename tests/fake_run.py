"""A stand-in for a training run: holds the workdir's lock, waits for leave, and gives results.

python fake_run.py RESULTS --config=... --workdir=... --config.model.variant=... --config.seed=...

RESULTS holds a file of results for each variant and seed. Without one, the run fails. Beside them
a file named after the run with the suffix ".wait" keeps the run at work until it is removed.
"""

import json
import os
import pathlib
import shutil
import signal
import sys
import time

from cmap_jax.workdir.lock_owner import start_of, system


def main():
    results = pathlib.Path(sys.argv[1])
    flags = dict(argument.removeprefix("--").partition("=")[::2] for argument in sys.argv[2:])
    workdir = pathlib.Path(flags["workdir"])
    name = f"{flags.get('config.model.variant', 'cmap')}-{flags['config.seed']}"
    workdir.mkdir(parents=True, exist_ok=True)
    lock = workdir / "run.lock"
    now, pid = time.time(), os.getpid()
    content = {"host": "here", "system": system(), "process": pid, "token": str(pid)}
    times = {"process_started": start_of(pid), "started": now, "alive": now}
    with lock.open("x") as file:  # a second run in the same workdir fails
        json.dump(content | times, file)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with (workdir / "starts.txt").open("a") as file:
            file.write(f"{os.environ.get('CUDA_VISIBLE_DEVICES', '')} {now}\n")
        print(f"at work on {name}", flush=True)
        while (results / f"{name}.wait").exists():
            time.sleep(0.02)
        if not (results / f"{name}.json").exists():
            print("fake_run: no results for this run\n")
            sys.exit(1)
        shutil.copy(results / f"{name}.json", workdir / "evaluation.json")
        (workdir / "model.json").write_text('{"git_commit": "abc", "versions": {"jax": "1"}}')
    finally:
        lock.unlink()


if __name__ == "__main__":
    main()
