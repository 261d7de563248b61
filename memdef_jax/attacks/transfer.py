"""Attacks crafted on one model and judged on another: transfer and black-box threat models."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.attacks import driver, objectives
from memdef_jax.attacks.attack import Attack
from memdef_jax.attacks.logits import Logits, LogitsFunction
from memdef_jax.attacks.state import Result
from memdef_jax.checks import InputError, check_images


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Transfer:
    """An attack whose gradients come from `source` and whose success is measured on the target.

    Called as any attack: `Transfer(attack=PGD(...), source=other)(target, x, y, key=key)`. The
    target only sees the finished images, once each (Papernot et al. 2016, arXiv 1605.07277).

    The attack runs with `early_stop=False` where it has that field, because an image that has just
    fooled the source has stopped too early for another model. So all restarts run to their end and
    the image of highest loss on the source is handed over; the target is never asked to choose.
    Attacks without the field stop as they always do: a minimum-norm attack ends at the source's
    decision boundary and transfers badly unless it has a margin, such as CW's `confidence`.

    Attributes:
      attack: what crafts the images.
      source: any `x -> logits` with as many classes as the target. If it is random, wrap it with
        `eot`.
    """

    attack: Attack
    source: Logits

    @property
    def norm(self) -> str:
        """In which the perturbation is measured."""
        return self.attack.norm

    @property
    def targeted(self) -> bool:
        """Whether labels are targets to be reached."""
        return self.attack.targeted

    def __call__(
        self, logits_fn: Logits, x: jax.Array, y: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Images [B, H, W, C] crafted on the source; arguments and errors as for `run`."""
        return self.run(logits_fn, x, y, key=key).images

    def run(
        self, logits_fn: Logits, x: jax.Array, y: jax.Array, *, key: jax.Array | None = None
    ) -> Result:
        """Craft on the source, judge on the target.

        Args:
          logits_fn: the target; where it is random, its vote decides.
          x: float32 images [B, H, W, C] in [0, 1].
          y: integer labels [B], or targets.
          key: as for the attack.

        Returns:
          The record, see `Result`: `success` is the target's, `forward` counts the source's passes
          and one of the target's, and `run`, `stages` and `notes` are those of the source.

        Raises:
          InputError: as `Attack.run`, or when source and target have other numbers of classes.
        """
        target = LogitsFunction.of(logits_fn)
        source = LogitsFunction.of(self.source)
        check_images(x)
        if len(x) > 0:
            _check_classes(source, target, x)
        made = _to_the_end(self.attack).run(source, x, y, key=key)
        if len(x) == 0:
            return made
        start = time.perf_counter()
        traced = driver.under_trace(target, made.images, y)
        judge = _judge if traced else _judge_compiled
        success, nan = judge(target, self.targeted, made.images, jnp.asarray(y))
        made = replace(made, success=success, forward=made.forward + 1)
        if traced:
            return made
        if np.asarray(nan).any():
            raise InputError(
                f"logits_fn gave NaN for image {np.asarray(nan).argmax()} of the batch; "
                "look for a division by zero or an overflow in the model."
            )
        spent = (time.perf_counter() - start) / len(x)
        return replace(made, seconds=None if made.seconds is None else made.seconds + spent)


def _check_classes(source: LogitsFunction, target: LogitsFunction, x: jax.Array) -> None:
    own, other = driver.classes(source, x), driver.classes(target, x)
    if own != other:
        raise InputError(
            f"source gives {own} classes and the target {other}; "
            "craft on a model with the target's classes."
        )


def _to_the_end(attack: Attack) -> Attack:
    fields = dataclasses.fields(attack)  # type: ignore[arg-type]
    if not any(field.name == "early_stop" for field in fields):
        return attack
    return replace(attack, early_stop=False)  # type: ignore[type-var]


def _judge(
    target: LogitsFunction, targeted: bool, images: jax.Array, y: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Whether each image fools the target, and whether the target gave NaN for it, bool [B]."""
    logits = target(images)
    return target.fooled(images, logits, y, targeted), objectives.has_nan(logits)


_judge_compiled = jax.jit(_judge, static_argnums=1)
