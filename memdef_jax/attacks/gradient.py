"""Gradient attacks inside a ball: FGSM, RAND-FGSM, BIM, MI-FGSM and PGD.

They are one algorithm: start somewhere, move along the gradient of the objective, project back,
repeat. Each iteration's gradient pass also judges the iterate it starts from, so that finding a
fooled sample costs no pass of its own; one forward pass at the end judges the last iterate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.attacks import balls, objectives
from memdef_jax.attacks.attack import (
    Attack,
    Number,
    check_budget,
    check_count,
    check_number,
    check_restarts,
    static,
)
from memdef_jax.attacks.logits import LogitsFunction
from memdef_jax.attacks.state import State
from memdef_jax.checks import InputError, check_eps, is_traced


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Memory:
    """What some of them remember; None where they do not."""

    reference: jax.Array | None  # clean logits [B, K]
    velocity: jax.Array | None  # accumulated gradients [B, H, W, C]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class _Climb(Attack):
    """The pieces that all of them run, and so compile once."""

    eps: Number
    rate: Number  # step size
    spread: Number  # size of the random start
    decay: Number  # of the velocity
    norm: str = static("linf")
    start: str = static("uniform")  # in the ball, or "sign" or "gaussian" noise
    momentum: bool = static(False)
    loss: str = static("cross_entropy")
    targeted: bool = static(False)
    early_stop: bool = static(True)

    def init(
        self, fn: LogitsFunction, x: jax.Array, y: jax.Array, keys: Any, run: jax.Array
    ) -> State:
        state = State.blank(x, y)
        reference = None
        if objectives.needs_reference(self.loss, self.targeted):
            reference = fn(x)
            state = state.count(1, 0)
        own = _Memory(reference, x * 0 if self.momentum else None)
        state = replace(state, own=own)
        if keys is None:
            return state
        if self.early_stop:
            state = self._judge(fn, state)
            state = replace(state, done=state.success)
        hit = balls.per_image(state.done)
        return replace(state, image=jnp.where(hit, x, self._start(x, keys)))

    def step(self, fn: LogitsFunction, state: State) -> State:
        _, logits, gradient = objectives.value_and_gradient(
            fn, state.image, lambda logits: self._gain(logits, state)
        )
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
        own = state.own
        if self.momentum:
            gradient = balls.per_image(self.decay) * own.velocity + balls.unit_mean(gradient)
            own = replace(own, velocity=gradient)
        moved = state.image + balls.per_image(self.rate) * balls.ascent(gradient, self.norm)
        moved = balls.project(moved, state.x, self.eps, self.norm)
        state = replace(state.count(1, 1), nan=state.nan | objectives.has_nan(logits), own=own)
        if not self.early_stop:
            return replace(state, image=moved, steps=state.steps + 1)
        hit = fn.fooled(state.image, logits, state.y, self.targeted)
        return replace(
            state,
            image=jnp.where(balls.per_image(hit), state.image, moved),
            success=hit,
            score=jnp.where(hit, jnp.inf, state.score),
            done=hit,
            steps=state.steps + ~hit,
        )

    def finish(self, fn: LogitsFunction, state: State) -> State:
        return self._judge(fn, state)

    def _start(self, x: jax.Array, keys: Any) -> jax.Array:
        if self.start == "uniform":
            return balls.random_start(x, self.spread, self.norm, keys)
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
        noise = jnp.sign(noise) if self.start == "sign" else noise
        moved = x + balls.per_image(self.spread) * noise
        return balls.project(moved, x, self.eps, self.norm)

    def _gain(self, logits: jax.Array, state: State) -> jax.Array:
        reference = state.own.reference
        return objectives.gain(self.loss, logits, state.y, self.targeted, reference)

    def _judge(self, fn: LogitsFunction, state: State) -> State:
        """Success and score of the current image, by one forward pass."""
        logits = fn(state.image)
        score = self._gain(logits, state)
        hit = fn.fooled(state.image, logits, state.y, self.targeted)
        if self.early_stop:
            score = jnp.where(hit, jnp.inf, score)
        nan = state.nan | objectives.has_nan(logits)
        return replace(state.count(1, 0), success=hit, score=score, nan=nan)


class _ProjectedGradient(Attack):
    """What they share. They differ in step size, number of steps, start and memory."""

    eps: Number
    loss: str
    targeted: bool
    early_stop: bool

    @property
    def rate(self) -> Number:
        """Step size [B]."""
        raise NotImplementedError

    @property
    def settles(self) -> bool:
        return self.early_stop

    @property
    def core(self) -> Attack:
        return _Climb(
            eps=self.eps,
            rate=self.rate,
            spread=self.eps,
            decay=self.eps,  # unused without momentum, as long as it has the batch's length
            norm=self.norm,
            loss=self.loss,
            targeted=self.targeted,
            early_stop=self.early_stop,
        )

    def plan(self, classes: int) -> tuple[tuple[Attack, ...], tuple[str, ...]]:
        loss, notes = objectives.for_classes(self.loss, classes)
        return (replace(self, loss=loss),), notes  # type: ignore[type-var]

    def check(self) -> None:
        check_budget(self.eps, self.norm)
        check_number("step_size", self.rate)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FGSM(_ProjectedGradient):
    """Fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572, section 4).

    One step of length eps along the sign of the gradient, or for L2 along the normalised gradient.
    For the variant with a random start (FGSM-RS, Wong et al. 2020) use `PGD` with steps=1,
    random_start=True and step_size=1.25*eps.

    Attributes:
      eps: radius of the ball in [0, 1] pixels; a number, or one a sample [B].
      norm: "linf" or "l2".
      loss: what is raised, one of `objectives.LOSSES`; "kl" has no gradient at the clean image and
        so needs a random start.
      targeted: labels are targets to be reached.
      early_stop: leave images alone that are misclassified without any help. Turn it off when the
        images are crafted on one model and judged on another.

    Raises:
      InputError: for an unknown norm or loss.
    """

    eps: Number
    norm: str = static("linf")
    loss: str = static("cross_entropy")
    targeted: bool = static(False)
    early_stop: bool = static(True)

    def __post_init__(self) -> None:
        balls.check_norm(self.norm)
        objectives.check_objective(self.loss, self.targeted)

    @property
    def rate(self) -> Number:
        return self.eps

    @property
    def num_steps(self) -> int:
        return 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class RFGSM(_ProjectedGradient):
    """FGSM after a random step, RAND-FGSM (Tramer et al. 2018, arXiv 1705.07204, section 4.1).

    The image is moved by `alpha` times noise, clipped to [0, 1], and then one step of eps - alpha
    follows along the sign of the gradient taken there. Linf only.

    Attributes:
      alpha: size of the random step in [0, 1] pixels, at most eps; a number, or one a sample [B].
      noise: "sign" of a standard normal draw, as published and as in Defense-VAE, or "gaussian",
        the draw itself, as in Defense-GAN's and MAD-VAE's code; its tails are projected back to
        the ball of radius eps.
      restarts: runs in all, each from another draw.
      eps, loss, targeted, early_stop: as for `FGSM`.

    Raises:
      InputError: for an unknown noise or loss, or restarts below 1.
    """

    eps: Number
    alpha: Number
    noise: str = static("sign")
    restarts: int = static(1)
    loss: str = static("cross_entropy")
    targeted: bool = static(False)
    early_stop: bool = static(True)
    norm = "linf"

    def __post_init__(self) -> None:
        objectives.check_objective(self.loss, self.targeted)
        check_count("restarts", self.restarts)
        if self.noise not in ("sign", "gaussian"):
            raise InputError(f"noise {self.noise!r} is unknown; choose 'sign' or 'gaussian'.")

    @property
    def rate(self) -> Number:
        return self.eps - self.alpha

    @property
    def num_steps(self) -> int:
        return 1

    @property
    def repeats(self) -> int:
        return self.restarts

    @property
    def random(self) -> bool:
        return True

    @property
    def core(self) -> Attack:
        return replace(super().core, start=self.noise, spread=self.alpha)  # type: ignore[type-var]

    def check(self) -> None:
        check_eps(self.eps)
        check_eps(self.alpha, "alpha")
        if not is_traced(self.rate) and np.any(np.asarray(self.rate) < 0):
            raise InputError(
                f"alpha {np.max(self.alpha):g} is above eps {np.min(self.eps):g}; "
                "the random step must leave room for the gradient's."
            )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BIM(_ProjectedGradient):
    """Basic iterative method (Kurakin et al. 2017, arXiv 1607.02533, section 2.2).

    PGD from the clean image itself. The step size may exceed eps; each iterate is projected.

    Attributes:
      step_size: length of a step in [0, 1] pixels; a number, or one a sample [B].
      steps: iterations.
      eps, norm, loss, targeted, early_stop: as for `FGSM`; with early_stop a sample stops at its
        first iterate that fools the model, without it the last iterate is returned.

    Raises:
      InputError: for an unknown norm or loss, or steps below 1.
    """

    eps: Number
    step_size: Number
    steps: int = static(10)
    norm: str = static("linf")
    loss: str = static("cross_entropy")
    targeted: bool = static(False)
    early_stop: bool = static(True)

    def __post_init__(self) -> None:
        balls.check_norm(self.norm)
        objectives.check_objective(self.loss, self.targeted)
        check_count("steps", self.steps)

    @property
    def rate(self) -> Number:
        return self.step_size

    @property
    def num_steps(self) -> int:
        return self.steps


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class MIFGSM(_ProjectedGradient):
    """Momentum iterative FGSM (Dong et al. 2018, arXiv 1710.06081, algorithm 1).

    BIM along an accumulation of gradients, each divided by its mean absolute value. (Dividing by
    the L1 norm, as printed, differs by the constant number of pixels and gives the same steps.)

    Attributes:
      decay: what is kept of the accumulation in each step, the paper's mu.
      eps, step_size, steps, norm, loss, targeted, early_stop: as for `BIM`.

    Raises:
      InputError: for an unknown norm or loss, or steps below 1.
    """

    eps: Number
    step_size: Number
    steps: int = static(10)
    decay: Number = 1.0
    norm: str = static("linf")
    loss: str = static("cross_entropy")
    targeted: bool = static(False)
    early_stop: bool = static(True)

    def __post_init__(self) -> None:
        balls.check_norm(self.norm)
        objectives.check_objective(self.loss, self.targeted)
        check_count("steps", self.steps)

    @property
    def rate(self) -> Number:
        return self.step_size

    @property
    def num_steps(self) -> int:
        return self.steps

    @property
    def core(self) -> Attack:
        return replace(super().core, momentum=True, decay=self.decay)  # type: ignore[type-var]

    def check(self) -> None:
        super().check()
        check_number("decay", self.decay)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PGD(_ProjectedGradient):
    """Projected gradient descent (Madry et al. 2018, arXiv 1706.06083, section 2.1).

    BIM from a start drawn uniformly in the ball, optionally repeated from other starts: run r
    draws with `fold_in(key, r)`. With early_stop only samples not yet fooled start again; without
    it every sample runs every restart and the image of highest loss is returned.

    Attributes:
      random_start: start at a uniform draw in the ball instead of the clean image.
      restarts: runs in all, at least 1; more than 1 needs the random start.
      eps, step_size, steps, norm, loss, targeted, early_stop: as for `BIM`.

    Raises:
      InputError: for an unknown norm or loss, a count below 1, or restarts without random start.
    """

    eps: Number
    step_size: Number
    steps: int = static(40)
    norm: str = static("linf")
    random_start: bool = static(True)
    restarts: int = static(1)
    loss: str = static("cross_entropy")
    targeted: bool = static(False)
    early_stop: bool = static(True)

    def __post_init__(self) -> None:
        balls.check_norm(self.norm)
        objectives.check_objective(self.loss, self.targeted)
        check_count("steps", self.steps)
        check_restarts(self.restarts, self.random_start)

    @property
    def rate(self) -> Number:
        return self.step_size

    @property
    def num_steps(self) -> int:
        return self.steps

    @property
    def repeats(self) -> int:
        return self.restarts

    @property
    def random(self) -> bool:
        return self.random_start
