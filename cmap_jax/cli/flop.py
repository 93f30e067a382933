"""Counts the floating-point operations of a traced function, without compiling it.

It counts the products of matrices and the convolutions, which are nearly all of a network's work,
and multiplies what a loop does by the number of its steps. A compiler's own count leaves those out.

    count_flop(jax.jit(function).trace(array, jax.ShapeDtypeStruct((2, 3), np.float32)))
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters import partial_eval


def count_flop(traced: jax.stages.Traced) -> int:
    """Return the number of multiplications and additions in products and convolutions.

    A convolution counts the taps on its padding too. Results that nothing uses are not counted.
    """
    jaxpr = traced.jaxpr.jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(used)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_count_one(equation) for equation in jaxpr.eqns)


def _count_one(equation: JaxprEqn) -> int:
    name, settings = equation.primitive.name, equation.params
    if name == "dot_general":
        return _product(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    counts = [_count(jaxpr) for jaxpr in _inner(settings)]
    if name == "cond":
        return max(counts)
    return sum(counts) * (settings["length"] if name == "scan" else 1)


def _inner(settings: dict[str, Any]) -> Iterator[Jaxpr]:
    """Yield the programs that an equation calls."""
    for value in settings.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _product(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _convolution(equation: JaxprEqn) -> int:
    """Count every tap of the kernel, but not the zeros between the pixels of a dilated input."""
    kernel = equation.invars[1].aval
    features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    zeros = math.prod(equation.params["lhs_dilation"])
    return 2 * equation.outvars[0].aval.size * kernel.size // features // zeros
