"""Contract 2: what an attack is, and the checks on what it is given."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.attacks import driver, objectives
from memdef_jax.attacks.logits import Logits, LogitsFunction
from memdef_jax.attacks.state import Result, State
from memdef_jax.checks import InputError, check_eps, check_images, check_labels, is_traced

# A real number, or one a sample [B]: a leaf of the attack's pytree. The driver broadcasts every
# leaf to [B] before `init`, so the methods of an attack always see arrays.
Number = Any
Settings = TypeVar("Settings")  # a pytree of numbers: an attack


def static(default: Any) -> Any:
    """A dataclass field that is part of the compiled program's identity, not an argument of it."""
    return field(default=default, metadata={"static": True})


class Attack:
    """Base of all attacks: frozen keyword-only dataclasses registered as pytrees.

    A new attack declares its real numbers as plain fields and its counts and names with `static`,
    and writes `init`, `step` and `finish`, three pure functions of a `State`. It never looks at
    `state.done`: the driver freezes the samples that are. It sets `done` for samples that need no
    more work, and `score` wherever it has something to return.

    Attributes:
      norm: one of `balls.NORMS`, in which the perturbation is measured.
      targeted: labels are targets to be reached.
    """

    norm: str
    targeted: bool = False

    @property
    def num_steps(self) -> int:
        """The most calls of `step` that a sample may need."""
        raise NotImplementedError

    @property
    def repeats(self) -> int:
        """How often the whole run is repeated, from another random start or for another target."""
        return 1

    @property
    def settles(self) -> bool:
        """Whether a sample fooled in one run takes no part in the next."""
        return True

    @property
    def random(self) -> bool:
        """Whether the attack draws random numbers and so needs a key."""
        return False

    @property
    def gradient_free(self) -> bool:
        """Whether `step` only evaluates the model, which may then loop on every device."""
        return False

    @property
    def core(self) -> Attack:
        """Whose `init`, `step` and `finish` are compiled.

        Attacks that differ only in how often they step return equal cores and share programs.
        """
        return self

    def plan(self, classes: int) -> tuple[tuple[Attack, ...], tuple[str, ...]]:
        """What to run against a model with so many classes, and notes on what had to change.

        More than one attack makes a cascade: each gets the samples that all before it left.
        """
        return (self,), ()

    def init(
        self, fn: LogitsFunction, x: jax.Array, y: jax.Array, keys: Any, run: jax.Array
    ) -> State:
        """First state of a batch in the given run (0, 1, ... below `repeats`).

        `keys` [B] are None when the attack is not `random`, and other ones in every run.
        """
        raise NotImplementedError

    def step(self, fn: LogitsFunction, state: State) -> State:
        """One iteration of every sample."""
        raise NotImplementedError

    def finish(self, fn: LogitsFunction, state: State) -> State:
        """Judge the samples that used up all their steps."""
        return state

    def check(self) -> None:
        """Raise InputError for a number that cannot be used. Tracers pass unchecked."""

    def __call__(
        self, logits_fn: Logits, x: jax.Array, y: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Adversarial images [B, H, W, C]; arguments and errors as for `run`."""
        return self.run(logits_fn, x, y, key=key).images

    def run(
        self, logits_fn: Logits, x: jax.Array, y: jax.Array, *, key: jax.Array | None = None
    ) -> Result:
        """Attack a batch and return the full record.

        Called under a trace (jit, vmap, grad, shard_map) the whole attack is one lax loop. Called
        eagerly it runs in compiled chunks, between which samples that need no more work are
        dropped; both give the same images. Nothing is differentiable through an attack: outputs
        are constants to `jax.grad`.

        Args:
          logits_fn: any callable (pytree) from images [B, H, W, C] to logits [B, K]. A new
            function object compiles anew; a registered pytree with other arrays does not.
          x: float32 images [B, H, W, C] in [0, 1].
          y: integer labels [B], or the targets of a targeted attack.
          key: a typed key (`jax.random.key`), or one a sample [B]; needed only where the attack
            draws. A single key gives the sample at position i `fold_in(key, i)`, so that no
            draw depends on the other images.

        Returns:
          The record, see `Result`.

        Raises:
          InputError: when images, labels, numbers, the key or the model's output cannot be used.
            Values, as opposed to shapes, are checked only when they are known (not traced).
        """
        fn = LogitsFunction.of(logits_fn)
        check_images(x)
        batch = x.shape[0]
        check_labels(y, batch)
        self.check()
        attack = per_sample(self, batch)
        keys = per_sample_keys(key, batch) if self.random else None
        x, y = jnp.asarray(x), jnp.asarray(y).astype(jnp.int32)
        if batch == 0:
            return driver.nothing(self.norm, x, y)
        traced = driver.under_trace(fn, attack, x, y, keys)
        classes = driver.classes(fn, x)
        check_labels(y, batch, classes)
        planned, notes = attack.plan(classes)
        stages = [per_sample(stage, batch) for stage in planned]
        return driver.run(stages, fn, x, y, keys, traced, notes)


def judge_clean(fn: LogitsFunction, state: State, targeted: bool) -> State:
    """The samples that fool without any help are done."""
    logits = fn(state.x)
    hit = fn.fooled(state.x, logits, state.y, targeted)
    return replace(
        state.count(1, 0),
        success=hit,
        score=jnp.where(hit, jnp.inf, state.score),
        done=hit,
        nan=objectives.has_nan(logits),
    )


def check_number(name: str, value: Number, *, above_zero: bool = False) -> None:
    """Check that a real number, or each of an array, is finite and not negative.

    Raises:
      InputError: on the first bad value; zero is bad only with `above_zero`.
    """
    if is_traced(value):
        return
    values = np.asarray(value, dtype=np.float64)
    good = np.isfinite(values) & ((values > 0) if above_zero else (values >= 0))
    if not good.all():
        limit = "positive" if above_zero else "zero or positive"
        raise InputError(
            f"{name} {values[~good].flat[0]:g} cannot be used; give a finite {limit} number."
        )


def check_budget(eps: Number, norm: str) -> None:
    """Check the radius of a ball: within [0, 1] for Linf, finite and not negative for L2.

    Raises:
      InputError: on the first bad value.
    """
    if norm == "linf":
        check_eps(eps)
    else:
        check_number("eps", eps)


def check_count(name: str, value: int) -> None:
    """Raise InputError for a count that is not an integer of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{name} {value!r} cannot be used; give an integer of at least 1.")


def check_restarts(restarts: int, random_start: bool) -> None:
    """Raise InputError for a count below 1, or for restarts that would all be the same run."""
    check_count("restarts", restarts)
    if restarts > 1 and not random_start:
        raise InputError(
            f"restarts {restarts} without random_start would repeat the same run; "
            "set random_start=True."
        )


def per_sample(settings: Settings, batch: int) -> Settings:
    """Every number of an attack as float32 [B], so that one program serves all forms.

    Raises:
      InputError: for an array of numbers that is not [B].
    """

    def widen(number: Number) -> jax.Array:
        shape = np.shape(number)
        if shape not in ((), (batch,)):
            raise InputError(
                f"a number of {type(settings).__name__} has shape {shape} beside {batch} images; "
                "give one number, or one an image."
            )
        if is_traced(number):
            return jnp.broadcast_to(jnp.asarray(number, jnp.float32), (batch,))
        return jnp.asarray(np.broadcast_to(np.asarray(number, np.float32), (batch,)))

    return jax.tree.map(widen, settings)


def per_sample_keys(key: Any, batch: int) -> jax.Array:
    """A typed key a sample, of one key or of as many.

    Raises:
      InputError: without a key, or for one that is not typed or of another shape.
    """
    if key is None:
        raise InputError("this attack draws random numbers; pass key=jax.random.key(seed).")
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise InputError(
            f"key is a {type(key).__name__} of dtype {dtype}; "
            "pass a typed key, jax.random.key(seed)."
        )
    if key.shape == ():
        return driver.sample_keys(key, batch)
    if key.shape != (batch,):
        raise InputError(
            f"key has shape {key.shape} beside {batch} images; give one key, or one an image."
        )
    return key
