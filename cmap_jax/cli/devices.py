"""The devices that JAX is to compute on."""

import jax


def check_devices() -> None:
    """Refuse a platform that JAX was told to use and does not have, before any work starts.

    Raises:
        ValueError: says which, and what mends it.
    """
    wanted = jax.config.jax_platforms
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where its plugin is not installed
        if not wanted:
            raise
        extra = {"cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}.get(wanted.partition(",")[0])
        install = f", install its support (pip install 'cmap_jax[{extra}]')" if extra else ""
        reason = f" ({' '.join(str(error).split())})" if str(error) else ""
        raise ValueError(
            f"JAX_PLATFORMS={wanted}: JAX finds no such device here{reason}. Unset it to take what "
            f"there is{install}, or set JAX_PLATFORMS=cpu"
        ) from error
