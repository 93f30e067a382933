"""The number of programs that XLA compiles or reads from its cache within a block."""

import contextlib
from collections.abc import Iterator

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def counted() -> Iterator[list[float]]:
    """Yield a list that grows by the seconds of each compilation."""
    seconds: list[float] = []

    def listen(event: str, duration: float, **_) -> None:
        if event == _EVENT:
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
