"""Validation of the platform that JAX was asked to use."""

import jax


def check_devices() -> None:
    """Refuse a platform that JAX_PLATFORMS asks for and JAX cannot use, before any work starts.

    Raises:
        ValueError: names the platform, the reason and the remedies.
    """
    wanted = jax.config.jax_platforms
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: its plugin is not installed
        if not wanted:
            raise
        extra = {"cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}.get(wanted.partition(",")[0])
        install = f", install its support (pip install 'cmap_jax[{extra}]')" if extra else ""
        reason = f" ({' '.join(str(error).split())})" if str(error) else ""
        raise ValueError(
            f"JAX_PLATFORMS={wanted}: JAX finds no such device here{reason}. Unset it to use the "
            f"devices that exist{install}, or set JAX_PLATFORMS=cpu"
        ) from error
