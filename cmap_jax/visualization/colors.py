"""A scale of colours for numbers from 0 to 1 that colour-blind people can read.

See docs/method.md, section 13.

    scale(np.array([0.0, 0.5, 1.0]))    # dark blue, grey, yellow: [3, 3] uint8
"""

import numpy as np
from jaxtyping import Float, UInt8

# Points at even distances of "cividis" (Nunez, Anderton and Renslow, 2018). The scale runs from
# blue to yellow, which all common forms of colour blindness tell apart, and its lightness rises
# evenly, so that it can be read in grey too.
_POINTS = np.array(
    [
        (0x00, 0x22, 0x4E),
        (0x12, 0x35, 0x70),
        (0x3B, 0x49, 0x6C),
        (0x57, 0x5D, 0x6D),
        (0x70, 0x71, 0x73),
        (0x8A, 0x86, 0x78),
        (0xA5, 0x9C, 0x74),
        (0xC3, 0xB3, 0x69),
        (0xE1, 0xCC, 0x55),
        (0xFE, 0xE8, 0x38),
    ],
    np.float64,
)


def scale(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """Return the red, green and blue of each number; numbers beyond 0 and 1 count as these."""
    at = np.clip(values, 0, 1) * (len(_POINTS) - 1)
    channels = [np.interp(at, np.arange(len(_POINTS)), channel) for channel in _POINTS.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
