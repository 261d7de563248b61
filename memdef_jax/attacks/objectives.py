"""What an attacker wants to raise, one function each, with one value per sample [B].

Written for the untargeted case, where the label is the one to move away from. A targeted attack
lowers the same function for its target: `gain` is the one place where that sign is applied.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from memdef_jax.checks import InputError

DLR_CLASSES = 4  # the fewest for which the (targeted) DLR is defined
_TINY = 1e-12


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Negative log-probability of the label, in nats (Goodfellow et al. 2015, section 4)."""
    return jax.nn.logsumexp(logits, axis=-1) - pick(logits, labels)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Largest other logit minus the label's (Carlini & Wagner 2017, f6 without its clamp)."""
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.max(jnp.where(own, -jnp.inf, logits), axis=-1) - pick(logits, labels)


def targeted_margin(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """The target's logit minus the label's."""
    return pick(logits, targets) - pick(logits, labels)


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Difference of logits ratio (Croce & Hein 2020, arXiv 2003.01690, eq. 6).

    The margin in units of the distance from the largest to the third largest logit, so that it
    does not change when logits are scaled or shifted. Needs 4 classes, see `DLR_CLASSES`.
    """
    top = jax.lax.top_k(logits, 3)[0]
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_dlr(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """Targeted difference of logits ratio (Croce & Hein 2020, eq. 7). Needs 4 classes."""
    top = jax.lax.top_k(logits, 4)[0]
    scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY
    return targeted_margin(logits, labels, targets) / scale


def kl_divergence(logits: jax.Array, reference: jax.Array) -> jax.Array:
    """KL from the softmax of reference logits [B, K] to that of the logits, in nats.

    What the inner attack of TRADES raises (Zhang et al. 2019, arXiv 1901.08573, eq. 5), with the
    clean image's logits as reference. Its gradient vanishes at the reference itself.
    """
    p, q = jax.nn.log_softmax(reference), jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


LOSSES = ("cross_entropy", "margin", "dlr", "kl")


def check_objective(name: str, targeted: bool = False) -> None:
    """Raise InputError for an objective that does not exist, or not for targets."""
    if name not in LOSSES:
        raise InputError(f"loss {name!r} is unknown; choose one of {', '.join(LOSSES)}.")
    if name == "kl" and targeted:
        raise InputError("loss 'kl' knows no target; use 'cross_entropy' for a targeted attack.")


def for_classes(name: str, classes: int) -> tuple[str, tuple[str, ...]]:
    """The objective to use with so many classes, and a note where it is another one."""
    if name != "dlr" or classes >= DLR_CLASSES:
        return name, ()
    return "margin", (
        f"loss 'dlr' is undefined for {classes} classes (it needs {DLR_CLASSES}); "
        "'margin' was used instead.",
    )


def check_targets(targets: int, targeted: bool) -> None:
    """Raise InputError for a number of target classes that cannot be."""
    if not isinstance(targets, int) or targets < 0:
        raise InputError(f"targets {targets!r} cannot be used; give 0 or how many classes to try.")
    if targets and targeted:
        raise InputError(
            f"targets {targets} choose their own classes and targeted=True takes yours as labels; "
            "use one of the two."
        )


def targets_for_classes(targets: int, classes: int) -> tuple[int, tuple[str, ...]]:
    """How many target classes there can be, and a note where that is fewer than asked for."""
    if targets < classes:
        return targets, ()
    return classes - 1, (
        f"targets {targets} are more than the {classes - 1} other classes there are; "
        f"{classes - 1} were used.",
    )


def likeliest_others(logits: jax.Array, labels: jax.Array, count: int | None = None) -> jax.Array:
    """The classes besides the label, the most likely first, int32 [B, count]; all for None."""
    others = logits.shape[-1] - 1
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    ranked = jax.lax.top_k(jnp.where(own, -jnp.inf, logits), min(count or others, others))
    return ranked[1]


def towards(name: str, logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
    """What an attack that leaves the label by way of a target class raises, [B]."""
    if name == "dlr":
        return targeted_dlr(logits, labels, targets)
    if name == "margin":
        return targeted_margin(logits, labels, targets)
    return -cross_entropy(logits, targets)


def needs_reference(name: str, targeted: bool) -> bool:
    """Whether the objective looks at the clean image's logits."""
    return name == "kl" or (name == "dlr" and targeted)


def gain(
    name: str,
    logits: jax.Array,
    labels: jax.Array,
    targeted: bool,
    reference: jax.Array | None = None,
) -> jax.Array:
    """What the attacker raises, [B]: the objective, or its negative for the target.

    Args:
      name: one of `LOSSES`.
      logits: [B, K].
      labels: [B], the targets when `targeted`.
      targeted: whether the target's logit is to become the largest.
      reference: clean logits [B, K] where `needs_reference`. For the targeted DLR, whose numerator
        needs a class to leave, that is the class predicted there.
    """
    if name == "dlr" and not targeted:
        return dlr(logits, labels)
    if name in ("kl", "dlr"):
        assert reference is not None
        if name == "kl":
            return kl_divergence(logits, reference)
        return targeted_dlr(logits, jnp.argmax(reference, axis=-1), labels)
    value = (cross_entropy if name == "cross_entropy" else margin)(logits, labels)
    return -value if targeted else value


def fooled(logits: jax.Array, labels: jax.Array, targeted: bool) -> jax.Array:
    """Whether the prediction is what the attacker wants, bool [B]; never where a logit is NaN.

    Attacks ask `LogitsFunction.fooled`, which knows of random models.
    """
    hit = jnp.argmax(logits, axis=-1) == labels
    return (hit if targeted else ~hit) & ~has_nan(logits)


def has_nan(logits: jax.Array) -> jax.Array:
    """Whether any logit of a sample is NaN, bool [B]."""
    return jnp.any(jnp.isnan(logits), axis=-1)


def value_and_gradient(
    logits_fn: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    objective: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """An objective of logits [B, K] -> [B] at images, by one forward and one backward pass.

    Returns:
      Its values [B], the logits [B, K], its gradient with respect to the images [B, H, W, C].
    """

    def total(z: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits = logits_fn(z)
        value = objective(logits)
        return jnp.sum(value), (value, logits)

    (_, (value, logits)), gradient = jax.value_and_grad(total, has_aux=True)(images)
    return value, logits, gradient


def pick(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Each sample's logit of its label, [B]."""
    return jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
