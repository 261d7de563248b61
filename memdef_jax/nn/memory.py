"""The class-slotted memory of Memory Defense (arXiv 2202.02595, Section 3.2), as pure functions.

Shapes: z [B, D] are latent vectors, memory [N, D] has N rows, `slots = N // K` consecutive rows
for each of K classes, weights are [B, N]. Every division and norm is safe at zero, also in the
gradient.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from memdef_jax.checks import InputError

EPSILON = 1e-12
FEW = 32  # images that `read_own_slots` gives copies of their slots
MANY = 4096  # images from which on sorting them costs less than reading the whole memory
BLOCK = 32  # images of one class that it reads together


def rows_per_class(rows: int, classes: int) -> int:
    """Rows in each class's slot.

    Raises:
      InputError: if the rows are fewer than the classes or not divisible by them.
    """
    if rows < classes:
        raise InputError(
            f"memory rows {rows} are fewer than the {classes} classes; give at least {classes}, "
            "or 0 for the autoencoder without memory."
        )
    if rows % classes:
        raise InputError(
            f"memory rows {rows} are not divisible by the {classes} classes; "
            f"give {rows - rows % classes} or {rows + classes - rows % classes}."
        )
    return rows // classes


def normalise(v: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """v / max(|v|, epsilon) along the last axis; zero, with a finite gradient, where v is zero."""
    return v / _length(v, epsilon)[..., None]


def _length(v: jax.Array, epsilon: float) -> jax.Array:
    # The maximum stands inside the root: the gradient of sqrt at zero is infinite.
    return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(v), axis=-1), epsilon**2))


def cosine_logits(z: jax.Array, memory: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """Cosine similarity of each latent vector with each memory row, [B, N] in [-1, 1].

    Equation 8 as the published code has it: the equation's printed denominator,
    max(|z|, |m_i|), is garbled. Dividing by |m_i| afterwards spares a normalised copy of the
    memory, which costs more than the product for a few images.
    """
    return normalise(z, epsilon) @ memory.T / _length(memory, epsilon)


def address(logits: jax.Array, scale: float | jax.Array = 1.0) -> jax.Array:
    """Soft addressing weights over all rows (Equation 9): softmax(scale * logits), [B, N].

    `scale` is the inverse temperature, 1 in the paper.
    """
    return jax.nn.softmax(scale * logits, axis=-1)


def hard_shrink(
    weights: jax.Array,
    threshold: float | jax.Array,
    *,
    epsilon: float = EPSILON,
    identity_gradient: bool = False,
) -> jax.Array:
    """Set weights up to the threshold to zero and keep the others (MemAE, Equation 7).

    relu(w - t) w / (|w - t| + epsilon), not renormalised.

    Args:
      weights: [B, N].
      threshold: t; MemAE recommends values in [1/N, 3/N].
      epsilon: keeps the division finite at w = t.
      identity_gradient: take the gradient of the identity, for attacks: shrunk rows would
        otherwise pass none.
    """
    gap = weights - threshold
    shrunk = jax.nn.relu(gap) * weights / (jnp.abs(gap) + epsilon)
    return weights + jax.lax.stop_gradient(shrunk - weights) if identity_gradient else shrunk


def class_mask(labels: jax.Array, classes: int, slots: int) -> jax.Array:
    """The mask of Equation 10, [B, classes * slots]; its complement ("unmask") is 1 - mask.

    Args:
      labels: int [B] for a hard mask (ones on the rows of the label's class), or class
        probabilities [B, classes] for a soft one. A hard mask is the soft mask of a one-hot vector.
      classes: K.
      slots: consecutive rows of each class.
    """
    if jnp.issubdtype(labels.dtype, jnp.integer):
        labels = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    return jnp.repeat(labels, slots, axis=-1, total_repeat_length=classes * slots)


def renormalise(weights: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """Divide by the sum along the last axis; weights that are all zero stay zero."""
    return weights / (jnp.sum(weights, axis=-1, keepdims=True) + epsilon)


def masked_address(
    weights: jax.Array,
    mask: jax.Array,
    threshold: float | jax.Array,
    *,
    order: str = "shrink_mask",
    epsilon: float = EPSILON,
    identity_gradient: bool = False,
) -> jax.Array:
    """Shrink and mask (Equation 10), then renormalise to sum one, [B, N].

    Args:
      weights: softmax weights over all rows [B, N].
      mask: from `class_mask`, or its complement.
      threshold: of `hard_shrink`.
      order: "shrink_mask" as the paper says, or "mask_shrink" as the published code does.
      epsilon: under the divisions.
      identity_gradient: see `hard_shrink`.

    Raises:
      InputError: on another order.
    """

    def shrink(w: jax.Array) -> jax.Array:
        return hard_shrink(w, threshold, epsilon=epsilon, identity_gradient=identity_gradient)

    if order == "shrink_mask":
        return renormalise(shrink(weights) * mask, epsilon)
    if order == "mask_shrink":
        return renormalise(shrink(weights * mask), epsilon)
    raise InputError(f"shrink order {order!r} is unknown; use 'shrink_mask' or 'mask_shrink'.")


def read(weights: jax.Array, memory: jax.Array) -> jax.Array:
    """The latent vector rebuilt from memory (Equation 11), [B, D]."""
    return weights @ memory


def shrinks_nothing(threshold: float, scale: float, rows: int, epsilon: float = EPSILON) -> bool:
    """Whether `hard_shrink` leaves all addressing weights as they are, up to float32's rounding.

    Cosines lie in [-1, 1], so no weight is below exp(-2 scale) / rows.
    """
    return threshold + 1e7 * epsilon < math.exp(-2.0 * scale) / rows


def read_own_slots(
    z: jax.Array,
    memory: jax.Array,
    labels: jax.Array,
    classes: int,
    scale: float = 1.0,
    epsilon: float = EPSILON,
) -> jax.Array:
    """What Equations 8 to 11 give with a hard mask where nothing is shrunk, [B, D].

    Rows of other classes then only share in the softmax's denominator, which renormalising takes
    out again, so they are not looked at. Up to `FEW` images have copies of their slots; more are
    sorted into blocks of one class, each read by two products with that class's slot.

    Args:
      z: [B, D].
      memory: [N, D].
      labels: int [B].
      classes: K.
      scale: inverse temperature.
      epsilon: under the norms.
    """
    slots = memory.reshape(classes, -1, memory.shape[-1])
    lengths, z = _length(slots, epsilon), normalise(z, epsilon)

    def of_class(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        z, label = block
        rows = lax.dynamic_index_in_dim(slots, label, keepdims=False)
        norms = lax.dynamic_index_in_dim(lengths, label, keepdims=False)
        return address(z @ rows.T / norms, scale) @ rows

    if len(z) > FEW:
        images, owners, place = _blocks(labels, classes)
        return lax.map(of_class, (z[images], owners)).reshape(-1, z.shape[-1])[place]
    rows = slots[labels]
    cosines = jnp.einsum("bd,bsd->bs", z, rows) / lengths[labels]
    return jnp.einsum("bs,bsd->bd", address(cosines, scale), rows)


def _blocks(labels: jax.Array, classes: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Images sorted into blocks of one class each, of which some have room left over.

    Returns:
      The images of every block int [blocks, BLOCK], where there is room some other one; the class
      of every block int [blocks]; and where each image is, int [B] into the flattened blocks.
    """
    count = len(labels)
    order = jnp.argsort(labels)
    of_class = jnp.bincount(labels, length=classes)
    ends = jnp.cumsum(-(-of_class // BLOCK))  # in blocks
    firsts = ends - -(-of_class // BLOCK)
    starts = jnp.cumsum(of_class) - of_class  # in images
    blocks = jnp.arange(-(-count // BLOCK) + classes)
    owners = jnp.minimum(jnp.searchsorted(ends, blocks, side="right"), classes - 1)
    within = (blocks - firsts[owners])[:, None] * BLOCK + jnp.arange(BLOCK)
    images = order[jnp.minimum(starts[owners][:, None] + within, count - 1)]
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(count), unique_indices=True)
    return images, owners, firsts[labels] * BLOCK + rank - starts[labels]


def active_rows(weights: jax.Array) -> jax.Array:
    """How many rows take part in each image's read-out, int32 [B]."""
    return jnp.sum(weights > 0, axis=-1, dtype=jnp.int32)
