"""Computing in bfloat16 while the parameters stay float32.

Only what costs the time is lowered: convolutions and matrix products, by the dtype of their
kernels, which the layers of `nn.layers` compute in (Micikevicius et al. 2018, arXiv 1710.03740).
BatchNorm, memories and learned centres stay float32, and so do latent vectors, logits and losses.
bfloat16 has the exponents of float32, so the loss needs no scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax.numpy as jnp

from memdef_jax.checks import InputError

ComputeDtype = Literal["bfloat16"]


def check_compute_dtype(name: str | None) -> None:
    """Check the name of a dtype to compute in; None stands for float32.

    Raises:
      InputError: for any other than `ComputeDtype`'s.
    """
    if name is not None and name not in get_args(ComputeDtype):
        raise InputError(
            f"compute_dtype {name!r} is unknown; "
            f"use {' or '.join(get_args(ComputeDtype))}, or None for float32."
        )


def lowered(params: Any, name: ComputeDtype) -> Any:
    """Parameters with the kernels of convolutions and dense layers, and their biases, cast.

    The gradient through it has the dtypes of what is given.

    Args:
      params: nested dictionaries of float32 arrays; a layer is one with a "kernel".
      name: of the dtype.
    """
    if not isinstance(params, Mapping):
        return params
    own = ("kernel", "bias") if "kernel" in params else ()
    return {
        key: part.astype(jnp.dtype(name)) if key in own else lowered(part, name)
        for key, part in params.items()
    }
