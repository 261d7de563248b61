"""What an attack is asked to do, the same for every library, and how this library does it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax import attacks
from memdef_jax.attacks import Attack
from memdef_jax.attacks.logits import Logits
from memdef_jax.checks import InputError

OURS = "memdef_jax"
MINIMAL = ("cw", "deepfool", "ddn", "fmn")  # they seek the smallest perturbation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """An attack and its settings.

    Attributes:
      attack: one of "fgsm", "bim", "pgd", "mifgsm", "apgd", "square", or of `MINIMAL`.
      norm: "linf" or "l2".
      eps: radius for those that have one.
      steps: iterations; queries for "square"; for each c in "cw".
      step_size: of bim, pgd and mifgsm.
      random_start: of pgd.
      search_steps, learning_rate, initial_const: of cw.
    """

    attack: str
    norm: str = "linf"
    eps: float = 0.0
    steps: int = 1
    step_size: float = 0.0
    random_start: bool = False
    search_steps: int = 5
    learning_rate: float = 1e-2
    initial_const: float = 1e-2

    @property
    def minimal(self) -> bool:
        """Whether the smallest perturbation is sought."""
        return self.attack in MINIMAL

    @property
    def title(self) -> str:
        """As shown in tables."""
        names = {"mifgsm": "MI-FGSM", "cw": "CW", "deepfool": "DeepFool", "square": "Square"}
        name = names.get(self.attack, self.attack.upper())
        if self.attack == "cw":
            return f"CW-L2 {self.search_steps}x{self.steps}"
        if self.attack == "deepfool":
            return f"DeepFool {self.norm.title()}"
        if self.attack == "fgsm":
            return name
        return f"{name}-{self.steps}" + (f" {self.norm.title()}" if self.minimal else "")


@dataclasses.dataclass(frozen=True)
class Contender:
    """A library's attack on its own copy of the model.

    Attributes:
      library: its name.
      prepare: images [B, H, W, C] and labels [B] as the library wants them; not timed.
      attack: the attack on what `prepare` returned; returns when it is finished.
      images: what `attack` returned as images [B, H, W, C]; not timed.
      logits: of the library's copy of the model, so that no image on the decision boundary is
        judged by the rounding of another library.
      note: what a reader should know.
      at_most: measure on so many images, because it goes image by image.
    """

    library: str
    prepare: Callable[[np.ndarray, np.ndarray], Any]
    attack: Callable[[Any], Any]
    images: Callable[[Any], np.ndarray]
    logits: Callable[[np.ndarray], np.ndarray]
    note: str = ""
    at_most: int | None = None

    def __call__(self, x: np.ndarray, y: np.ndarray, batch: int = 128) -> np.ndarray:
        """Adversarial images, attacked in batches."""
        parts = [
            self.images(self.attack(self.prepare(x[i : i + batch], y[i : i + batch])))
            for i in range(0, len(x), batch)
        ]
        return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an attack reached.

    Attributes:
      fooled: bool [N], whether the image is misclassified; clean errors count.
      norm: float [N], length of the perturbation, infinite where it does not fool.
    """

    fooled: np.ndarray
    norm: np.ndarray

    @property
    def robust(self) -> float:
        """Share of images that are still classified correctly."""
        return float(1.0 - self.fooled.mean())


def judge(
    contender: Contender, x: np.ndarray, y: np.ndarray, images: np.ndarray, norm: str
) -> Outcome:
    """Judge images on the contender's own model."""
    fooled = contender.logits(images).argmax(-1) != y
    delta = (images - x).reshape(len(x), -1).astype(np.float64)
    size = np.abs(delta).max(-1) if norm == "linf" else np.sqrt((delta**2).sum(-1))
    return Outcome(fooled, np.where(fooled, size, np.inf))


def our_attack(work: Work, **more: Any) -> Attack | None:
    """The library's attack, None where it has none (yet).

    Args:
      more: further arguments of its constructor, such as early_stop.
    """
    ball = {"eps": work.eps, "norm": work.norm}
    climb = {**ball, "step_size": work.step_size, "steps": work.steps}
    forms: dict[str, tuple[str, dict[str, Any]]] = {
        "fgsm": ("FGSM", ball),
        "bim": ("BIM", climb),
        "pgd": ("PGD", {**climb, "random_start": work.random_start}),
        "mifgsm": ("MIFGSM", {**climb, "decay": 1.0}),
        "apgd": ("APGD", {**ball, "steps": work.steps}),
        "square": ("Square", {**ball, "steps": work.steps}),
        "cw": (
            "CarliniWagnerL2",
            {
                "search_steps": work.search_steps,
                "steps": work.steps,
                "learning_rate": work.learning_rate,
                "initial_const": work.initial_const,
            },
        ),
        "deepfool": ("DeepFool", {"norm": work.norm, "steps": work.steps, "overshoot": 0.02}),
        "ddn": ("DDN", {"steps": work.steps}),
        "fmn": ("FMN", {"norm": work.norm, "steps": work.steps}),
    }
    if work.attack not in forms:
        raise InputError(f"attack {work.attack!r} is unknown; choose from {', '.join(forms)}.")
    name, settings = forms[work.attack]
    make = getattr(attacks, name, None)
    return None if make is None else make(**settings, **more)


def our_contender(
    attack: Attack, model: Logits, pad_to: int | None = None, seed: int = 0
) -> Contender:
    """This library's attack, called eagerly as its users do.

    Args:
      pad_to: fill smaller batches up to this size, because another size compiles anew.
    """
    judge_one = jax.jit(lambda fn, x: fn(x))

    def prepare(x: np.ndarray, y: np.ndarray) -> Any:
        count = len(x)
        if pad_to and count < pad_to:
            places = np.minimum(np.arange(pad_to), count - 1)
            x, y = x[places], y[places]
        return jax.block_until_ready((jnp.asarray(x), jnp.asarray(y))), count

    key = jax.random.key(seed)

    def run(inputs: Any) -> Any:
        (x, y), count = inputs
        record = attack.run(model, x, y, key=key)
        return jax.block_until_ready((record.images, record.success)), count

    def logits(x: np.ndarray) -> np.ndarray:
        parts = [judge_one(model, x[i : i + 128]) for i in range(0, len(x), 128)]
        return np.concatenate([np.asarray(part, np.float32) for part in parts])

    return Contender(OURS, prepare, run, lambda out: np.asarray(out[0][0])[: out[1]], logits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HalfPrecision:
    """A model computed in bfloat16 and attacked in float32."""

    model: Any

    @classmethod
    def of(cls, model: Any) -> HalfPrecision:
        """The same model with its floating-point arrays in bfloat16."""
        cast = lambda a: a.astype(jnp.bfloat16) if jnp.issubdtype(a.dtype, jnp.floating) else a  # noqa: E731
        return cls(jax.tree.map(cast, model))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.model(x.astype(jnp.bfloat16)).astype(jnp.float32)
