"""A substitute for a model of which only answers can be had: the label-only black-box attack.

The attacker asks the model (the oracle) for the labels of a few images, trains a model of their own
on them, moves the images along that model's gradients to where more labels tell it most, asks
again, and so on (Papernot et al. 2017, arXiv 1602.02697, section 4). What is crafted on the
substitute is then shown to the oracle: `Transfer(attack=..., source=substitute.logits_fn)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from memdef_jax.attacks import balls, driver, objectives
from memdef_jax.attacks.attack import Number, check_count, check_number
from memdef_jax.attacks.logits import Logits, LogitsFunction
from memdef_jax.checks import InputError, check_images, check_labels, is_traced


@dataclass(frozen=True)
class Substitute:
    """What was learned from an oracle's answers.

    Attributes:
      logits_fn: `jax.tree_util.Partial(apply, params)` with the trained parameters.
      queries: images the oracle was asked about.
      agreement: share of them, at the end, on which both name the same class. The substitute was
        trained on them; expect less elsewhere.
    """

    logits_fn: jax.tree_util.Partial
    queries: int
    agreement: float


def jacobian_augmentation(
    logits_fn: Logits, x: jax.Array, labels: jax.Array, step: Number
) -> jax.Array:
    """Images moved along the sign of the gradient of their label's logit, and clipped to [0, 1].

    Jacobian-based dataset augmentation (Papernot et al. 2017, arXiv 1602.02697, section 4.1).

    Args:
      logits_fn: the substitute, any `x -> logits`.
      x: float32 images [B, H, W, C] in [0, 1].
      labels: the oracle's answers [B].
      step: lambda, in [0, 1] pixels; a negative one lowers the logit.

    Returns:
      Images [B, H, W, C].

    Raises:
      InputError: when images, labels or the function cannot be used.
    """
    fn = LogitsFunction.of(logits_fn)
    check_images(x)
    check_labels(labels, len(x))
    if len(x) == 0:
        return x
    check_labels(labels, len(x), driver.classes(fn, x))
    traced = driver.under_trace(fn, x, labels, step)
    return (_augment if traced else _augment_compiled)(fn, x, jnp.asarray(labels), step)


def train_substitute(
    oracle: Logits,
    apply: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    seeds: jax.Array,
    *,
    key: jax.Array,
    rounds: int = 6,
    epochs: int = 10,
    step: float = 0.1,
    period: int | None = None,
    most_new: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    apply_in_training: Callable[[Any, jax.Array, jax.Array], jax.Array] | None = None,
) -> Substitute:
    """Train a substitute from an oracle's labels (Papernot et al. 2017, arXiv 1602.02697, alg. 1).

    Each round labels the new images, trains on all so far, and, but for the last, adds as many
    again by `jacobian_augmentation`. The defaults are those of Defense-GAN and Defense-VAE, which
    start from 150 test images (and leave these out of the test): 150 * 2^5 = 4800 queries. From
    round to round the parameters are kept and Adam starts afresh.

    Args:
      oracle: the attacked model as images -> logits, of which only the largest is looked at; where
        it is random, the vote. `jax.pure_callback` makes one of a program that answers elsewhere.
      apply: the substitute, `apply(params, x) -> logits`; for a module that is itself called,
        `operator.call` with the module as `params`.
      params: where to start, a pytree; its floating arrays are trained.
      seeds: float32 images [N, H, W, C] in [0, 1] to begin with.
      key: a typed key, which orders the batches and draws the images of `most_new` and what is
        random in training.
      rounds: of training, one more than augmentations.
      epochs: passes over the images in each.
      step: of the augmentation in [0, 1] pixels.
      period: change the step's sign every so many augmentations (Papernot et al. 2016, arXiv
        1605.07277, "periodical step size"). CleverHans' tutorial steps backwards in its first
        three augmentations and then forwards, which is step=-0.1, period=3. None never does.
      most_new: the most images that an augmentation may add, drawn from all so far (there,
        "reservoir sampling"), so that queries grow linearly. None doubles every time.
      batch_size: images a training step; the last of an epoch is filled up with its first images.
      learning_rate: of Adam.
      apply_in_training: the substitute while its parameters are fitted, where that differs, as
        with dropout: a hashable function `(params, x, keys) -> logits` with a typed key an image,
        [B]. Augmentation is by `apply` always, as in Defense-GAN's code.

    Returns:
      The trained model, what it cost and how far it agrees.

    Raises:
      InputError: when seeds, numbers or functions cannot be used, or under a trace.
    """
    asked, model = LogitsFunction.of(oracle), _substitute(apply, params)
    if is_traced(asked, model, seeds, key):
        raise InputError(
            "train_substitute loops in Python and cannot run inside jit or vmap; call it outside."
        )
    check_images(seeds, "seeds")
    if len(seeds) == 0:
        raise InputError("there are no seeds; give at least one image, 150 are usual.")
    check_count("rounds", rounds)
    check_count("epochs", epochs)
    check_count("batch_size", batch_size)
    check_count("period", 1 if period is None else period)
    check_count("most_new", 1 if most_new is None else most_new)
    check_number("step", abs(step))
    check_number("learning_rate", learning_rate, above_zero=True)
    draw, passes = _generator(key), 0
    rule = partial(_train_step, apply_in_training, learning_rate, key)
    asked = asked.judge or asked
    _check_classes(model, asked, seeds)

    images = np.asarray(seeds)
    answers = lambda fn, x: _in_batches(_answers, fn, batch_size, x)  # noqa: E731
    labels = answers(asked, images)
    for turn in range(rounds):
        order = np.concatenate([_batches(len(images), batch_size, draw) for _ in range(epochs)])
        model = _fit(rule, model, images, labels, order, passes)
        passes += len(order)
        if turn + 1 == rounds:
            break
        sign = -1 if period is not None and turn // period % 2 else 1
        base = np.arange(len(images))
        if most_new is not None and most_new < len(images):
            base = draw.choice(base, most_new, replace=False)
        augment = lambda fn, x, y: _augment_compiled(fn, x, y, sign * step)  # noqa: B023, E731
        new = _in_batches(augment, model, batch_size, images[base], labels[base])
        images = np.concatenate([images, new])
        labels = np.concatenate([labels, answers(asked, new)])
    agreement = float((answers(model, images) == labels).mean())
    return Substitute(model.function, len(images), agreement)


def _substitute(apply: Callable[[Any, jax.Array], jax.Array], params: Any) -> LogitsFunction:
    model = LogitsFunction.of(jax.tree_util.Partial(apply, params))
    if not any(map(_trainable, model.arrays)):
        raise InputError(
            "params hold no floating array, so there is nothing to train; "
            "give apply(params, x) and its initial parameters."
        )
    return replace(model, arrays=jax.tree.map(jnp.asarray, model.arrays))


def _check_classes(model: LogitsFunction, oracle: LogitsFunction, seeds: jax.Array) -> None:
    own, other = driver.classes(model, seeds[:1]), driver.classes(oracle, seeds[:1])
    if own != other:
        raise InputError(
            f"the substitute gives {own} classes and the oracle {other}; give it as many."
        )


def _trainable(leaf: Any) -> bool:
    return leaf is not None and jnp.issubdtype(leaf.dtype, jnp.floating)


def _generator(key: Any) -> np.random.Generator:
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key) or key.shape:
        raise InputError("key is no single typed key; pass jax.random.key(seed).")
    # On the host, where an order for another number of images needs no other program.
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _batches(total: int, size: int, draw: np.random.Generator) -> np.ndarray:
    """Positions of an epoch's batches [n, size]."""
    order = np.resize(draw.permutation(total), math.ceil(total / size) * size)
    return order.reshape(-1, size)


def _fit(
    rule: Callable[..., tuple[LogitsFunction, optax.OptState]],
    model: LogitsFunction,
    images: np.ndarray,
    labels: np.ndarray,
    batches: np.ndarray,
    passes: int,
) -> LogitsFunction:
    """Train with Adam, from its first step, on batches [n, size], after so many earlier ones."""
    state = _ADAM.init(_free(model))
    for number, chosen in enumerate(batches, passes):
        model, state = rule(number, model, state, images[chosen], labels[chosen])
    return model


def _in_batches(
    function: Callable[..., jax.Array], fn: LogitsFunction, size: int, *arrays: np.ndarray
) -> np.ndarray:
    """A function of images, and more, over any number of them by one compiled size."""
    total, parts = len(arrays[0]), []
    for first in range(0, total, size):
        chosen = np.arange(first, first + size) % total
        parts.append(np.asarray(function(fn, *(array[chosen] for array in arrays))))
    return np.concatenate(parts)[:total]


def _augment(fn: LogitsFunction, x: jax.Array, labels: jax.Array, step: Number) -> jax.Array:
    objective = lambda logits: objectives.pick(logits, labels)  # noqa: E731
    _, _, gradient = objectives.value_and_gradient(fn, x, objective)
    return jnp.clip(x + step * balls.ascent(gradient, "linf"), 0.0, 1.0)


def _free(model: LogitsFunction) -> tuple[Any, ...]:
    """The arrays to be trained, None for others."""
    return tuple(leaf if _trainable(leaf) else None for leaf in model.arrays)


_ADAM = optax.scale_by_adam()  # without a rate, which is an argument of the compiled step


@partial(jax.jit, static_argnums=0)
def _train_step(
    apply_in_training: Callable[[Any, jax.Array, jax.Array], jax.Array] | None,
    rate: jax.Array,
    key: jax.Array,
    number: jax.Array,
    model: LogitsFunction,
    state: optax.OptState,
    x: jax.Array,
    labels: jax.Array,
) -> tuple[LogitsFunction, optax.OptState]:
    def with_free(free: tuple[Any, ...]) -> LogitsFunction:
        both = zip(free, model.arrays, strict=True)
        return replace(model, arrays=tuple(b if a is None else a for a, b in both))

    def loss(free: tuple[Any, ...]) -> jax.Array:
        fn = with_free(free)
        if apply_in_training is None:
            logits = fn(x)
        else:
            keys = jax.random.split(jax.random.fold_in(key, number), len(x))
            logits = apply_in_training(fn.function.args[-1], x, keys)
        return jnp.mean(objectives.cross_entropy(logits, labels))

    free = _free(model)
    direction, state = _ADAM.update(jax.grad(loss)(free), state)
    return with_free(jax.tree.map(lambda p, d: p - rate * d, free, direction)), state


_answers = jax.jit(lambda fn, x: jnp.argmax(fn(x), axis=-1).astype(jnp.int32))
_augment_compiled = jax.jit(_augment)
