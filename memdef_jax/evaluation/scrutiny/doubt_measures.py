"""What the checks of `doubts` look at: one defense, and attacks that are run once for all of them.

All budgets are Linf. Attacks are crafted on a surface and judged on the deployed pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.attacks import (
    FGSM,
    PGD,
    Attack,
    Noise,
    Square,
    Transfer,
    doubts,
    driver,
    objectives,
)
from memdef_jax.attacks.attack import check_count
from memdef_jax.attacks.logits import Logits, LogitsFunction
from memdef_jax.attacks.state import State
from memdef_jax.checks import InputError, check_eps, check_images, check_labels

# The steps of a PGD walk together are so many radii long, however many they are.
_WALK = 2.5
_SAME = 1e-5  # logits that differ by less, relative to the largest, differ by rounding
_LEVEL = 1e-6  # losses that change by less, relative to themselves, change by rounding


@dataclass(frozen=True)
class Subject:
    """The defense that is doubted, as logits functions `x -> logits[B, K]`.

    Attributes:
      deployed: what is judged. A random defense comes as `eot(...)`.
      surfaces: what an adaptive attacker differentiates, by name, stand-ins (`bpda`,
        `straight_through`) included. Each image counts as fallen if it falls to an attack on any
        of them. Attacks run to their end, because what fools a surface need not fool `deployed`.
      source: an undefended classifier with the same classes, for the transfer check.
      frozen: the pipeline with what it selects held fixed (a frozen memory mask), for the gap
        between such an evaluation and an adaptive one.
      same_values: names of the surfaces whose values are everywhere those of `deployed` and only
        whose gradients differ. Attacks on them stop at the first success, as they do on
        `deployed` itself.

    Raises:
      InputError: when there is no surface, or a name in `same_values` is none.
    """

    deployed: Logits
    surfaces: Mapping[str, Logits]
    source: Logits | None = None
    frozen: Logits | None = None
    same_values: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.surfaces:
            raise InputError(
                "0 surfaces were given and an attacker needs 1 to differentiate; "
                "give at least the deployed function itself."
            )
        for name in self.same_values - self.surfaces.keys():
            raise InputError(
                f"{name!r} in same_values is no surface; use some of {', '.join(self.surfaces)}."
            )


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much work the checks' attacks do.

    Attributes:
      steps: of PGD.
      more_steps: of the PGD that should find nothing more.
      restarts: of another PGD that should find nothing more.
      queries: of Square, an image.
      draws: of random noise, an image.
      passes: over the clean images, to see whether logits change.
      loss: what PGD and FGSM raise, "cross_entropy" or, for logits so far apart that it saturates,
        "margin".

    Raises:
      InputError: for another loss, a count below 1, or a comparison with no more work than what
        it doubts.
    """

    steps: int = 40
    more_steps: int = 200
    restarts: int = 5
    queries: int = 1000
    draws: int = 50
    passes: int = 5
    loss: str = "cross_entropy"

    def __post_init__(self) -> None:
        if self.loss not in ("cross_entropy", "margin"):
            raise InputError(
                f"loss {self.loss!r} cannot be used here; choose 'cross_entropy' or 'margin'."
            )
        for name in ("steps", "queries", "draws"):
            check_count(name, getattr(self, name))
        for name, least in (("more_steps", self.steps + 1), ("restarts", 2), ("passes", 2)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(
                    f"{name} {value!r} cannot be used; give an integer of at least {least}, "
                    "for the check to compare with something."
                )


@dataclass(frozen=True)
class Gradients:
    """Of the images answered rightly, which share has what gradient of the margin at the image.

    Attributes:
      unusable: no surface gives one that is finite and not zero.
      zero: it is exactly zero on every surface.
      broken: it is not finite on some surface.
    """

    unusable: float
    zero: float
    broken: float


@dataclass(frozen=True)
class Climb:
    """How the cross-entropy changes along PGD, on the images answered rightly.

    It is compared by the log-odds against the label, which rise and fall with it and do not round
    to zero when logits are far apart.

    Attributes:
      flat: share of the images whose loss ends no higher than it started, on every surface.
      falling: share of the steps along which it falls, on the surface where these are fewest.
    """

    flat: float
    falling: float


@dataclass(frozen=True)
class Evidence:
    """All that the checks need to know.

    Attributes:
      effort: with which it was collected.
      eps: the budget in [0, 1] pixels.
      probabilities: share of the images whose outputs look like probabilities.
      unsteady: share of the images whose logits differed between passes.
      left: by attack, which images the defense still has right, bool [B]; "clean" without any.
        Missing is what could not be run.
      gradients: None where no image is right.
      climb: None where no image is right.
    """

    effort: Effort
    eps: float
    probabilities: float
    unsteady: float
    left: Mapping[str, np.ndarray] = field(default_factory=dict)
    gradients: Gradients | None = None
    climb: Climb | None = None

    def accuracy(self, attack: str) -> float:
        """Share of all images that are right after an attack."""
        return float(self.left[attack].mean())

    def missed(self, attack: str) -> float:
        """Share of all images that an attack fools and every white-box attack left."""
        return float((self.left["white_box"] & ~self.left[attack]).mean())


def collect(
    subject: Subject, x: jax.Array, y: jax.Array, *, eps: float, key: jax.Array, effort: Effort
) -> Evidence:
    """Look at a defense and attack it in every way the checks compare.

    Args:
      subject: the defense.
      x: float32 images [B, H, W, C] in [0, 1], concrete, at least one.
      y: labels int [B].
      eps: Linf budget, above 0.
      key: one typed key.
      effort: how much work to do.

    Raises:
      InputError: when images, labels, eps or key cannot be used, or functions have different
        numbers of classes.
    """
    check_images(x)
    if len(x) == 0:
        raise InputError("0 images were given and a check needs at least 1; give 50 to 200.")
    check_eps(eps)
    if eps == 0:
        raise InputError("eps 0 leaves an attacker nothing to do; give a budget above 0.")
    fn = LogitsFunction.of(subject.deployed)
    check_labels(y, len(x), driver.classes(fn, x))
    x, y = jnp.asarray(x), jnp.asarray(y, jnp.int32)
    first, *others = (np.asarray(_forward(fn, x)) for _ in range(effort.passes))
    rounding = _SAME * np.maximum(np.abs(first).max(axis=1, keepdims=True), 1.0)
    same = [np.isclose(other, first, 0.0, rounding, True).all(axis=1) for other in others]
    right = ~np.asarray(_fooled(fn, x, y))
    seen: dict[str, Any] = {
        "effort": effort,
        "eps": float(eps),
        "probabilities": float(doubts.like_probabilities(first).mean()),
        "unsteady": float((~np.all(same, axis=0)).mean()),
    }
    if not right.any():
        return Evidence(**seen, left={"clean": right})
    return Evidence(
        **seen,
        left=_attacked(subject, right, x, y, float(eps), key, effort),
        gradients=_gradients(subject, right, x, y),
        climb=_climb(subject, right, x, y, float(eps), key, effort),
    )


def _pgd(effort: Effort, eps: Any, steps: int | None = None, **settings: Any) -> PGD:
    steps = steps or effort.steps
    rate = _WALK * eps / steps
    return PGD(eps=eps, step_size=rate, steps=steps, loss=effort.loss, **settings)


def _attacked(
    subject: Subject,
    right: np.ndarray,
    x: jax.Array,
    y: jax.Array,
    eps: float,
    key: jax.Array,
    effort: Effort,
) -> dict[str, np.ndarray]:
    """Which images every attack leaves, see `Evidence.left`."""
    fn = LogitsFunction.of(subject.deployed)
    same = {name for name, surface in subject.surfaces.items() if surface is subject.deployed}
    same |= subject.same_values

    def directly(attack: Attack, surface: Logits, key: jax.Array = key) -> np.ndarray:
        images = attack.run(surface, x, y, key=key).images
        return right & ~np.asarray(_fooled(fn, images, y))

    def from_elsewhere(attack: Attack, surface: Logits) -> np.ndarray:
        transfer = Transfer(attack=attack, source=surface)
        return right & ~np.asarray(transfer.run(fn, x, y, key=key).success)

    def white_box(attack: Attack) -> np.ndarray:
        each = [
            (directly if name in same else from_elsewhere)(attack, surface)
            for name, surface in subject.surfaces.items()
        ]
        return np.all(each, axis=0)

    pgd = _pgd(effort, eps)
    square = Square(eps=eps, steps=effort.queries, rescale_schedule=True)
    noise = Noise(eps=eps, restarts=effort.draws)
    # All walks draw with one key, so that what differs between them is what is compared.
    left = {
        "clean": right,
        "pgd": white_box(pgd),
        "half_eps": white_box(_pgd(effort, eps / 2)),
        "double_eps": white_box(_pgd(effort, min(2 * eps, 1.0))),
        "unbounded": white_box(_pgd(effort, 1.0)),
        "more_steps": white_box(_pgd(effort, eps, effort.more_steps)),
        "more_restarts": white_box(_pgd(effort, eps, restarts=effort.restarts)),
        "from_clean": white_box(_pgd(effort, eps, random_start=False)),
        "one_step": white_box(FGSM(eps=eps, loss=effort.loss)),
        "black_box": directly(square, fn, jax.random.fold_in(key, 1)),
        "noise": directly(noise, fn, jax.random.fold_in(key, 2)),
    }
    left["white_box"] = left["pgd"] & left["more_steps"] & left["more_restarts"]
    if subject.source is not None:
        left["transfer"] = from_elsewhere(pgd, subject.source)
    if subject.frozen is not None:
        left["frozen"] = from_elsewhere(pgd, subject.frozen)
    return left


def _gradients(subject: Subject, right: np.ndarray, x: jax.Array, y: jax.Array) -> Gradients:
    looks = [
        jax.device_get(doubts.look(LogitsFunction.of(surface), x, y))
        for surface in subject.surfaces.values()
    ]
    zero = np.all([look.silent for look in looks], axis=0)
    broken = np.any([look.broken for look in looks], axis=0)
    unusable = np.all([look.silent | look.broken for look in looks], axis=0)
    return Gradients(*(float(which[right].mean()) for which in (unusable, zero, broken)))


def _climb(
    subject: Subject,
    right: np.ndarray,
    x: jax.Array,
    y: jax.Array,
    eps: float,
    key: jax.Array,
    effort: Effort,
) -> Climb:
    keys = driver.sample_keys(key, len(x))
    radii = jnp.full(len(x), eps, jnp.float32)
    core = _pgd(effort, radii, early_stop=False).core
    rises, falling = np.zeros(len(x), bool), 1.0
    for surface in subject.surfaces.values():
        fn = LogitsFunction.of(surface)
        state, loss = _start(core, fn, x, y, keys)
        losses = [loss]
        for _ in range(effort.steps):
            state, loss = _onward(core, fn, state)
            losses.append(loss)
        # An infinite loss is the highest there is, and can be compared once it is a number.
        walk = np.nan_to_num(np.asarray(jax.device_get(losses), np.float64))
        rounding = _LEVEL * (1.0 + np.abs(walk[:-1]))
        rises |= walk[-1] > walk[0] + rounding[0]
        fell = walk[1:] < walk[:-1] - rounding
        falling = min(falling, float(fell[:, right].mean()))
    return Climb(float((~rises[right]).mean()), falling)


@jax.jit
def _start(
    core: Attack, fn: LogitsFunction, x: jax.Array, y: jax.Array, keys: jax.Array
) -> tuple[State, jax.Array]:
    state = core.init(fn, x, y, keys, jnp.int32(0))
    return state, _log_odds(fn(state.image), y)


@jax.jit
def _onward(core: Attack, fn: LogitsFunction, state: State) -> tuple[State, jax.Array]:
    """PGD's own step, and the loss where it led."""
    state = core.step(fn, state)
    return state, _log_odds(fn(state.image), state.y)


def _log_odds(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Of all other classes against the label, [B]; the cross-entropy is its softplus."""
    own = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=-1)
    return others - objectives.pick(logits, y)


@jax.jit
def _forward(fn: LogitsFunction, x: jax.Array) -> jax.Array:
    return fn(x)


@jax.jit
def _fooled(fn: LogitsFunction, x: jax.Array, y: jax.Array) -> jax.Array:
    return fn.fooled(x, fn(x), y, False)
