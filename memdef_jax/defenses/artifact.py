"""A trained defense as one program that runs, and can be attacked, without this package.

The program is StableHLO with the weights inside, as `jax.export` writes it: it takes images
[B, H, W, C] of any B and gives the logits of the deployed pipeline, and it has a first derivative,
so that any attack on a logits function works on it. Of a Memory Defense that derivative is the
deployed one, which does not see the choice of the slot: an attack on it alone is no adaptive one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from memdef_jax.checks import InputError
from memdef_jax.defenses.contract import Defense

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_BATCH = "batch"


def to_artifact(defense: Defense, platforms: Sequence[str] = ("cpu", "cuda", "tpu")) -> bytes:
    """Export the deployed pipeline.

    Convolutions are written as suits the backend that exports; on another one they are as right,
    but may be slower there.

    Args:
      defense: any; its variables become constants of the program.
      platforms: that it shall run on, of `PLATFORMS`.

    Returns:
      What `jax.export.deserialize` reads; `.call(x)` are the logits [B, K], float32.

    Raises:
      InputError: for an unknown platform, or none.
    """
    if not platforms or set(platforms) - set(PLATFORMS):
        raise InputError(
            f"platforms {tuple(platforms)} cannot be exported for; use some of "
            f"{', '.join(PLATFORMS)}."
        )
    (batch,) = export.symbolic_shape(_BATCH)
    x = jax.ShapeDtypeStruct((batch, *defense.spec.image_shape), jnp.float32)

    def logits(x: jax.Array) -> jax.Array:
        return defense(x).astype(jnp.float32)

    exported = export.export(jax.jit(logits), platforms=tuple(dict.fromkeys(platforms)))(x)
    return bytes(exported.serialize(vjp_order=1))


def describe(defense: Defense, name: str, run: dict[str, Any], platforms: Sequence[str]) -> str:
    """What the program takes and gives, as JSON to stand beside it.

    Args:
      defense: that was exported.
      name: its name in the run.
      run: of `training.run.read_run`.
      platforms: that it runs on.
    """
    spec = defense.spec
    content = {
        "defense": name,
        "kind": defense.kind,
        "image_shape": list(spec.image_shape),
        "classes": spec.classes,
        "input": "float32 [batch, height, width, channels] in [0, 1]",
        "output": "float32 [batch, classes], logits",
        "derivatives": 1,
        "platforms": list(platforms),
        "dataset": run["dataset"],
        "fingerprint": run["fingerprint"],
        "jax": jax.__version__,
    }
    return json.dumps(content, indent=2)
