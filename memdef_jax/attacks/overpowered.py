"""The Overpowered attack: a search in the latent space of a generative defense.

Attacks on pixels must first get through the defense. This one starts behind it: it looks for a code
whose decoded image is near a reference image and misclassified, so that a defense which projects
onto the range of its generator passes it on unchanged (Jalal, Ilyas, Daskalakis & Dimakis 2017,
arXiv 1712.09196). A success need not be a flaw of the classifier: within the published budget a
digit can be turned into another one that people would read so too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from memdef_jax.attacks import balls, driver, objectives
from memdef_jax.attacks.attack import (
    Attack,
    Number,
    check_count,
    check_number,
    per_sample,
    per_sample_keys,
    static,
)
from memdef_jax.attacks.latent_codes import (
    Decode,
    Decoded,
    check_codes,
    finite,
    joined,
    noisy_margin,
)
from memdef_jax.attacks.logits import Logits, LogitsFunction
from memdef_jax.attacks.state import State, where
from memdef_jax.checks import InputError, check_eps, check_images, check_labels

_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8  # Adam's


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LatentResult:
    """The record of a search in latent space. All but `success` and `steps` describe `z`.

    Attributes:
      images: decoded and clipped to [0, 1], without noise, [B, H, W, C]; of a failure the decoded
        start.
      z: float32 codes [B, D]; of a failure the start.
      distance: float32 [B], mean squared error per pixel of the image to its reference.
      margin: float32 [B], the label's logit minus the largest other, mean over the draws of noise
        that decided; of a failure, over the first ones at the start.
      success: bool [B], see `Overpowered`.
      steps: int32 [B], iterations used, over all restarts; where a success stopped.
    """

    images: jax.Array
    z: jax.Array
    distance: jax.Array
    margin: jax.Array
    success: jax.Array
    steps: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Overpowered:
    """A code near a reference image that the classifier gets wrong (arXiv 1712.09196).

    With G(z) the decoded image clipped to [0, 1], d its mean squared error per pixel to the
    reference and r a normal draw, it minimises over z and maximises over lambda >= 0

        mean over draws of margin(logits_fn(G(z) + rho * r / ||r||), y) + lambda * d,

    by Adam on z and plain gradient ascent on lambda, where margin is the label's logit minus the
    largest other. As in the published code the term in d is replaced by -lambda where d is at most
    half of the budget (`free`): there the distance costs nothing and lambda falls. Noisy images are
    not clipped. Gradient entries that are NaN or infinite count as zero.

    A success has d within the budget and a mean margin of at most -confidence, as published. Here
    it must also fool without noise (for a random `logits_fn`, by its vote): the returned image has
    none, so one pass over the record confirms every success. A sample ends with its first success;
    those left go into the next restart. The published search runs 20 copies of each start, which
    are of use only where something moves them apart: here each has other draws and `jitter`.

    Defaults are the published ones as MAD-VAE used them, but for restarts and jitter. MAD-VAE ran
    one instance for each rho in 1, 2.5, 3 and 3.5, and counted an image as correct when it
    withstood all four ("original accuracy") or pooled them ("accuracy").

    Attributes:
      budget: the largest d, in squared [0, 1] pixels; 0.0204 is an L2 distance of 4 on 784 pixels.
      rho: L2 length of the noise, in [0, 1] pixels.
      draws: of noise, for each iteration and sample.
      group: draws evaluated together, a divisor of `draws`, to bound memory; None for all. It
        changes no draw. Smaller groups run in a lax loop, where a CPU is slow at convolutions.
      steps: iterations of each restart; each judges a code, the first one the start.
      restarts: runs at most, each with other draws.
      jitter: standard deviation of the normal noise on the start of all restarts but the first, in
        units of z.
      learning_rate: of Adam, in units of z.
      initial_lambda: where lambda starts, in logits per squared pixel.
      lambda_rate: step size of the ascent on lambda.
      free: share of the budget within which the distance costs nothing. Where lambda rises steeply
        beside the margin, the search hardly gets beyond it: a higher share uses more of the budget.
      confidence: margin in logits by which a success must fool on average over the draws.

    Raises:
      InputError: for a count below 1, or a group that does not divide the draws.
    """

    budget: Number = 0.0204
    rho: Number = 1.0
    draws: int = static(100)
    group: int | None = static(None)
    steps: int = static(1000)
    restarts: int = static(1)
    jitter: Number = 0.1
    learning_rate: Number = 0.05
    initial_lambda: Number = 1000.0
    lambda_rate: Number = 1e4
    free: Number = 0.5
    confidence: Number = 1.0

    def __post_init__(self) -> None:
        for name in ("draws", "steps", "restarts"):
            check_count(name, getattr(self, name))
        if self.group is None:
            return
        check_count("group", self.group)
        if self.draws % self.group:
            raise InputError(
                f"group {self.group} does not divide draws {self.draws}; give a divisor or None."
            )

    def run(
        self,
        logits_fn: Logits,
        decode: Decode,
        z: jax.Array,
        reference: jax.Array,
        y: jax.Array,
        *,
        key: jax.Array,
    ) -> LatentResult:
        """Search from a batch of codes.

        Under a trace it is one lax loop; eagerly it runs in compiled steps, between which samples
        that have succeeded are dropped. Both give the same codes, none of which depends on the
        other samples. Nothing is differentiable through it.

        Args:
          logits_fn: any callable (pytree) from images [B, H, W, C] to logits [B, K].
          decode: any callable (pytree) from codes [B, D] to images [B, H, W, C]. Other arrays in a
            registered pytree, here as in `logits_fn`, compile nothing anew.
          z: codes [B, D] to start from, usually those of the images.
          reference: float32 images [B, H, W, C] in [0, 1] from which d is measured.
          y: integer labels [B].
          key: a typed key, or one a sample [B]; a single one gives sample i `fold_in(key, i)`.

        Raises:
          InputError: when arrays, numbers, the key or what the functions return cannot be used.
            Values, as opposed to shapes, are checked only when they are known (not traced).
        """
        fn = joined(logits_fn, decode, reference)
        check_images(reference, "reference images")
        batch = reference.shape[0]
        check_codes(z, batch)
        check_labels(y, batch)
        self._check()
        settings = per_sample(self, batch)
        keys = per_sample_keys(key, batch)
        y = jnp.asarray(y).astype(jnp.int32)
        # The driver knows images only: a code goes through it as a row of pixels.
        start = jnp.asarray(z, jnp.float32)[:, None, None, :]
        if batch == 0:
            none = jnp.zeros(0)
            return LatentResult(reference, start[:, 0, 0], none, none, y != y, y)
        search = _LatentSearch(settings=settings)
        traced = driver.under_trace(fn, search, start, y, keys)
        check_labels(y, batch, driver.classes(fn, start))
        found = driver.run((search,), fn, start, y, keys, traced)
        runs = jnp.maximum(found.run, 0)
        index = jnp.where(found.success, found.steps, 1)
        record = _record if traced else _record_compiled
        images, distance, margin = record(
            search.core.settings, fn, found.images, y, keys, runs, index
        )
        return LatentResult(
            images, found.images[:, 0, 0], distance, margin, found.success, found.steps
        )

    def _check(self) -> None:
        check_eps(self.free, "free")
        for name in ("budget", "rho", "jitter", "lambda_rate", "initial_lambda", "confidence"):
            check_number(name, getattr(self, name))
        check_number("learning_rate", self.learning_rate, above_zero=True)

    def _margin(
        self, model: Decoded, image: jax.Array, y: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return noisy_margin(model, image, y, keys, self.rho, self.draws, self.group)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Descent:
    """Where a restart stands: Adam's code and moments [B, 1, 1, D], the rest [B]."""

    z: jax.Array
    m: jax.Array
    v: jax.Array
    iteration: jax.Array
    multiplier: jax.Array  # lambda
    keys: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class _LatentSearch(Attack):
    """The search as the driver runs it, where `images` are codes."""

    settings: Overpowered
    norm = "l2"
    random = True

    @property
    def num_steps(self) -> int:
        return self.settings.steps

    @property
    def repeats(self) -> int:
        return self.settings.restarts

    @property
    def core(self) -> _LatentSearch:
        return replace(self, settings=replace(self.settings, steps=1, restarts=1))

    def init(
        self, fn: LogitsFunction, x: jax.Array, y: jax.Array, keys: Any, run: jax.Array
    ) -> State:
        # The draws of a run have the steps, which start at 1, folded into its keys.
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, 0), x.shape[1:])  # noqa: E731
        size = jnp.where(run == 0, 0.0, self.settings.jitter)
        z = x + balls.per_image(size) * jax.vmap(draw)(keys)
        state = State.blank(x, y)
        own = _Descent(z, 0 * z, 0 * z, state.steps, self.settings.initial_lambda, keys)
        return replace(state, own=own)

    def step(self, fn: LogitsFunction, state: State) -> State:
        own, settings, model = state.own, self.settings, fn.function
        steps = state.steps + 1
        image, pull = jax.vjp(model.image, own.z)
        distance = model.distance(image)
        keys = jax.vmap(jax.random.fold_in)(own.keys, steps)
        margin, slope = settings._margin(model, image, state.y, keys)
        logits = LogitsFunction.of(model.logits_fn)(image)
        near = (distance <= settings.budget) & (margin <= -settings.confidence)
        hit = near & fn.fooled(own.z, logits, state.y, False)

        costs = distance > settings.free * settings.budget
        weight = jnp.where(costs, own.multiplier, 0.0) * 2.0 / image[0].size
        (gradient,) = pull(slope + balls.per_image(weight) * (image - model.reference))
        rise = settings.lambda_rate * jnp.where(costs, distance, -1.0)
        multiplier = jnp.maximum(own.multiplier + rise, 0.0)
        own = replace(_adam(own, finite(gradient), settings.learning_rate), multiplier=multiplier)
        return replace(
            state.count(settings.draws + 1, settings.draws),
            image=where(hit, state.own.z, state.image),
            success=hit,
            done=hit,
            score=jnp.where(hit, jnp.inf, state.score),
            nan=objectives.has_nan(logits),
            steps=steps,
            own=own,
        )


def _adam(own: _Descent, gradient: jax.Array, rate: jax.Array) -> _Descent:
    """One step of Adam (Kingma & Ba 2015, algorithm 1), each sample at its own iteration."""
    iteration = own.iteration + 1
    m = _BETA1 * own.m + (1 - _BETA1) * gradient
    v = _BETA2 * own.v + (1 - _BETA2) * gradient**2
    rate = balls.per_image(rate / (1 - _BETA1**iteration))
    correction = balls.per_image(1 - _BETA2**iteration)
    z = own.z - rate * m / (jnp.sqrt(v / correction) + _TINY)
    return replace(own, z=z, m=m, v=v, iteration=iteration)


def _record(
    settings: Overpowered,
    fn: LogitsFunction,
    z: jax.Array,
    y: jax.Array,
    keys: jax.Array,
    run: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Images, distances and margins of codes, under the very draws of the given run and step."""
    fn, z, settings = jax.lax.stop_gradient((fn, z, settings))
    model, fold = fn.function, jax.vmap(jax.random.fold_in)
    image = model.image(z)
    margin, _ = settings._margin(model, image, y, fold(fold(keys, run), step))
    return image, model.distance(image), margin


_record_compiled = jax.jit(_record)
