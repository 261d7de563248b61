"""The same attacks of torchattacks, Foolbox (on torch and on JAX) and ART, as contenders.

Each library is given the model as it likes it best: torch modules in evaluation mode whose
parameters need no gradients, and for Foolbox on JAX a jitted model. Attacks run with the settings
of a `Work`; where a library cannot do the same work, the note says so.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import torch_models
from benchmarks.peer_tables import LIBRARIES
from benchmarks.work import Contender, Work

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside the peers
    import foolbox
    import torch
    import torchattacks
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

# Images for attacks that go image by image, and for those that take hours.
_SLOW, _ONE_BATCH = 32, 128
logging.getLogger("art").setLevel(logging.ERROR)


class _HalfPrecision(torch.nn.Module):
    """A module computed in bfloat16 and attacked in float32."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module.bfloat16()

    def forward(self, x: Any) -> Any:
        return self.module(x.bfloat16()).float()


def half_precision(module: Any) -> Any:
    """The module with bfloat16 inside."""
    return _HalfPrecision(module).eval()


def peer_contenders(
    work: Work,
    module: Any,
    model: Any,
    libraries: tuple[str, ...] = LIBRARIES,
    device: str = "cpu",
) -> list[Contender]:
    """The libraries that have the attack.

    Args:
      work: what to do.
      module: the torch model, on `device`.
      model: the same model in JAX.
      libraries: those wanted.
      device: "cpu" or "cuda".
    """
    makers: dict[str, Callable[[], Contender | None]] = {
        "torchattacks": lambda: _torchattacks(work, module, device),
        "foolbox": lambda: _foolbox(work, module, device),
        "art": lambda: _art(work, module, device),
        "foolbox-jax": lambda: _foolbox_jax(work, model),
    }
    made = [makers[name]() for name in libraries]
    return [contender for contender in made if contender is not None]


def _from_torch(
    library: str,
    run: Callable[[Any, Any], Any],
    module: Any,
    device: str,
    note: str = "",
    at_most: int | None = None,
) -> Contender:
    def prepare(x: np.ndarray, y: np.ndarray) -> Any:
        return torch_models.to_torch(x, device), torch.from_numpy(y).long().to(device)

    def attack(inputs: Any) -> Any:
        images = run(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        return images

    return Contender(
        library,
        prepare,
        attack,
        torch_models.to_numpy,
        lambda x: torch_models.logits(module, x, device),
        note,
        at_most,
    )


def _torchattacks(work: Work, module: Any, device: str) -> Contender | None:
    size, step = {"eps": work.eps}, {"alpha": work.step_size, "steps": work.steps}
    norm = {"linf": "Linf", "l2": "L2"}[work.norm]
    note, at_most = "", None
    if work.minimal:
        if work.attack == "cw":
            # One c for all, but as many iterations as the others' whole search.
            attack = torchattacks.CW(
                module, c=1, steps=work.search_steps * work.steps, lr=work.learning_rate
            )
            note = "c = 1, no search"
        elif work.attack == "deepfool" and work.norm == "l2":
            attack = torchattacks.DeepFool(module, steps=work.steps, overshoot=0.02)
            note, at_most = "image by image", _SLOW
        else:
            return None
    elif work.attack == "apgd":
        attack = torchattacks.APGD(module, norm=norm, steps=work.steps, loss="ce", **size)
    elif work.attack == "square":
        attack = torchattacks.Square(
            module, norm=norm, n_queries=work.steps, resc_schedule=False, **size
        )
    elif work.norm != "linf":
        return None
    elif work.attack == "fgsm":
        attack = torchattacks.FGSM(module, **size)
    elif work.attack == "bim":
        attack = torchattacks.BIM(module, **size, **step)
    elif work.attack == "pgd":
        attack = torchattacks.PGD(module, random_start=work.random_start, **size, **step)
    elif work.attack == "mifgsm":
        attack = torchattacks.MIFGSM(module, decay=1.0, **size, **step)
    else:
        return None
    return _from_torch("torchattacks", attack, module, device, note, at_most)


def _foolbox_attack(work: Work) -> Any:
    """The Foolbox attack, None where there is none."""
    kinds = foolbox.attacks
    step = {"abs_stepsize": work.step_size, "steps": work.steps}
    if work.attack == "cw":
        return kinds.L2CarliniWagnerAttack(
            binary_search_steps=work.search_steps,
            steps=work.steps,
            stepsize=work.learning_rate,
            initial_const=work.initial_const,
        )
    if work.attack == "ddn":
        return kinds.DDNAttack(steps=work.steps)
    if work.attack in ("deepfool", "fmn"):
        names = {
            ("deepfool", "l2"): "L2DeepFoolAttack",
            ("deepfool", "linf"): "LinfDeepFoolAttack",
            ("fmn", "l2"): "L2FMNAttack",
            ("fmn", "linf"): "LInfFMNAttack",
        }
        return getattr(kinds, names[work.attack, work.norm])(steps=work.steps)
    if work.norm != "linf":
        return None
    if work.attack == "fgsm":
        return kinds.LinfFastGradientAttack()
    if work.attack == "bim":
        return kinds.LinfBasicIterativeAttack(**step)
    if work.attack == "pgd":
        return kinds.LinfPGD(random_start=work.random_start, **step)
    if work.attack == "mifgsm":
        return kinds.LinfMomentumIterativeFastGradientMethod(momentum=1.0, **step)
    return None


def _foolbox(work: Work, module: Any, device: str) -> Contender | None:
    attack = _foolbox_attack(work)
    if attack is None:
        return None
    target = foolbox.PyTorchModel(module, bounds=(0, 1), device=device)
    eps = None if work.minimal else work.eps

    def run(x: Any, y: Any) -> Any:
        images = attack(target, x, y, epsilons=eps)[1]
        if work.attack == "cw":  # a failed search returns a black image, not an adversarial one
            black = images.flatten(1).amax(1) == 0
            images = torch.where(black[:, None, None, None], x, images)
        return images

    return _from_torch("foolbox", run, module, device)


def _foolbox_jax(work: Work, model: Any) -> Contender | None:
    attack = _foolbox_attack(work)
    if attack is None:
        return None
    compiled = jax.jit(lambda fn, x: fn(x))
    target = foolbox.JAXModel(lambda x: compiled(model, x), bounds=(0, 1))
    eps = None if work.minimal else work.eps

    def run(inputs: Any) -> Any:
        x, y = inputs
        images = jax.block_until_ready(attack(target, x, y, epsilons=eps)[1])
        if work.attack == "cw":
            images = jnp.where(images.max((1, 2, 3), keepdims=True) == 0, x, images)
        return images

    def logits(x: np.ndarray) -> np.ndarray:
        parts = [compiled(model, x[i : i + 128]) for i in range(0, len(x), 128)]
        return np.concatenate([np.asarray(part, np.float32) for part in parts])

    return Contender(
        "foolbox-jax",
        lambda x, y: jax.block_until_ready((jnp.asarray(x), jnp.asarray(y))),
        run,
        np.asarray,
        logits,
    )


def _art(work: Work, module: Any, device: str) -> Contender | None:
    def estimator(shape: tuple[int, ...]) -> Any:
        return PyTorchClassifier(
            model=module,
            loss=torch.nn.CrossEntropyLoss(),
            input_shape=shape,
            nb_classes=10,
            clip_values=(0.0, 1.0),
            device_type="gpu" if device == "cuda" else "cpu",
        )

    norm = {"linf": np.inf, "l2": 2}[work.norm]
    common = {"norm": norm, "eps": work.eps}
    loop = {"eps_step": work.step_size, "max_iter": work.steps, "verbose": False}
    makers: dict[str, Callable[[Any, int], Any]] = {
        "fgsm": lambda e, b: evasion.FastGradientMethod(e, batch_size=b, **common),
        "bim": lambda e, b: evasion.ProjectedGradientDescent(
            e, batch_size=b, num_random_init=0, **common, **loop
        ),
        "pgd": lambda e, b: evasion.ProjectedGradientDescent(
            e, batch_size=b, num_random_init=int(work.random_start), **common, **loop
        ),
        "mifgsm": lambda e, b: evasion.MomentumIterativeMethod(
            e, batch_size=b, decay=1.0, **common, **loop
        ),
        "apgd": lambda e, b: evasion.AutoProjectedGradientDescent(
            e,
            batch_size=b,
            eps_step=2 * work.eps,
            max_iter=work.steps,
            nb_random_init=1,
            loss_type="cross_entropy",
            verbose=False,
            **common,
        ),
        "square": lambda e, b: evasion.SquareAttack(
            e, batch_size=b, max_iter=work.steps, verbose=False, **common
        ),
        "cw": lambda e, b: evasion.CarliniL2Method(
            e,
            batch_size=b,
            binary_search_steps=work.search_steps,
            max_iter=work.steps,
            learning_rate=work.learning_rate,
            initial_const=work.initial_const,
            verbose=False,
        ),
        "deepfool": lambda e, b: evasion.DeepFool(
            e, batch_size=b, max_iter=work.steps, epsilon=0.02, verbose=False
        ),
    }
    if work.attack not in makers or (work.attack == "deepfool" and work.norm != "l2"):
        return None

    def prepare(x: np.ndarray, y: np.ndarray) -> Any:
        images = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        return makers[work.attack](estimator(images.shape[1:]), len(x)), images, y

    def run(inputs: Any) -> Any:
        attack, images, y = inputs
        return attack.generate(images, y=y)

    return Contender(
        "art",
        prepare,
        run,
        lambda images: images.transpose(0, 2, 3, 1),
        lambda x: torch_models.logits(module, x, device),
        {"cw": "line search, not Adam"}.get(work.attack, ""),
        _ONE_BATCH if work.attack in ("cw", "square", "deepfool") else None,
    )
