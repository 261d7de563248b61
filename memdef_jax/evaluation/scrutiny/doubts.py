"""Checks that doubt the evaluation of a defense: is it robust, or only hard to attack?

Each looks for one symptom of an evaluation that overstates a defense, as collected by Athalye et
al. 2018 (arXiv 1802.00420, section 3.1), Carlini et al. 2019 (arXiv 1902.06705) and Tramer et al.
2020 (arXiv 2002.08347). None proves anything: passing them all is the least one may ask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax

from memdef_jax.evaluation.scrutiny.doubt_measures import Effort, Evidence, Subject, collect

__all__ = ["Effort", "Limits", "Subject", "Verdict", "doubt"]

_ROUNDING = 1e-9  # a difference of accuracies that is the limit may come out above it


@dataclass(frozen=True)
class Verdict:
    """What one check says.

    Attributes:
      name: of the check, for example "more_steps".
      title: what holds when it passes.
      verdict: "pass", "warn", "fail" or "skipped".
      number: what was measured, the lower the better; None when skipped.
      limit: above it the check fails; None when skipped.
      unit: of number and limit; "share" (0.02 is 2% of the images, or 2 points of accuracy).
      advice: one sentence: what was found, and what to do where it is not well.
    """

    name: str
    title: str
    verdict: str
    number: float | None
    limit: float | None
    unit: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Up to where each check passes, all shares; each is named as its check.

    Attributes:
      logits: of the images, whose outputs look like probabilities.
      deterministic: of the images, whose logits differ between passes.
      gradients: of the images, for which no surface gives a usable gradient; any is a warning.
      loss_rises: of the images, whose loss ends PGD no higher than it started.
      falling_steps: of PGD's steps, along which the loss falls; more are a warning only, since a
        walk that has arrived steps to and fro.
      more_steps: accuracy lost to `Effort.more_steps`.
      more_restarts: accuracy lost to `Effort.restarts`.
      unbounded: accuracy left at eps 1; any is a warning.
      black_box: of the images, that Square fools and white-box attacks leave; any is a warning.
      transfer: the same of images crafted on an undefended model.
      noise: the same of random noise.
      one_step: accuracy by which FGSM goes below PGD.
      larger_eps: accuracy gained from eps/2 to eps or from eps to 2 eps.
      frozen_gap: accuracy by which an evaluation with the frozen surface overstates.
      start_point: accuracy lost to a random start.
    """

    logits: float = 0.5
    deterministic: float = 0.0
    gradients: float = 0.05
    loss_rises: float = 0.05
    falling_steps: float = 0.5
    more_steps: float = 0.02
    more_restarts: float = 0.02
    unbounded: float = 0.02
    black_box: float = 0.02
    transfer: float = 0.02
    noise: float = 0.02
    one_step: float = 0.02
    larger_eps: float = 0.02
    frozen_gap: float = 0.05
    start_point: float = 0.05


def doubt(
    subject: Subject,
    x: jax.Array,
    y: jax.Array,
    *,
    eps: float,
    key: jax.Array,
    limits: Limits = Limits(),
    effort: Effort = Effort(),  # noqa: B008  it is frozen
) -> tuple[Verdict, ...]:
    """Run every check on one defense.

    Most of the work are PGD walks on every surface, with the default effort about 650 gradient
    passes an image and surface, fewer where an attack may stop early.

    Args:
      subject: the defense, what an attacker differentiates, and what to compare with.
      x: float32 images [B, H, W, C] in [0, 1], concrete; 50 to 200 resolve the default limits.
      y: labels int [B].
      eps: Linf budget in [0, 1] pixels, above 0.
      key: one typed key; the same key gives the same verdicts.
      limits: up to where a check passes.
      effort: how long to attack.

    Returns:
      One verdict a check, always in the same order. A check that cannot be made, for want of a
      source, a frozen surface or any image the defense has right, is "skipped" and says why.

    Raises:
      InputError: when images, labels, eps or key cannot be used, or the subject's functions have
        different numbers of classes or give NaN.
    """
    evidence = collect(subject, x, y, eps=eps, key=key, effort=effort)
    return tuple(_verdict(check, evidence, limits) for check in _CHECKS)


@dataclass(frozen=True)
class _Finding:
    number: float
    words: str
    suspicious: bool = False  # worth a warning even within the limit


_Measure = Callable[[Evidence, Limits], _Finding]


@dataclass(frozen=True)
class _Check:
    name: str
    title: str
    measure: _Measure
    remedy: str
    of_outputs: bool = False  # no image need be right
    needs: str | None = None  # an attack that not every subject allows


_PARTS = {"transfer": "source", "frozen": "frozen surface"}


def _verdict(check: _Check, seen: Evidence, limits: Limits) -> Verdict:
    reason = None
    if not (check.of_outputs or seen.left["clean"].any()):
        reason = "the defense has none of the images right, so there is nothing left to attack"
    elif check.needs is not None and check.needs not in seen.left:
        reason = f"the subject has no {_PARTS[check.needs]}; give one to make this check"
    if reason is not None:
        return Verdict(check.name, check.title, "skipped", None, None, "share", f"{reason}.")
    found = check.measure(seen, limits)
    limit = getattr(limits, check.name)
    over = found.number > limit + _ROUNDING
    verdict = "fail" if over else "warn" if found.suspicious else "pass"
    advice = found.words if verdict == "pass" else f"{found.words}; {check.remedy}"
    return Verdict(check.name, check.title, verdict, found.number, limit, "share", f"{advice}.")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _logits(seen: Evidence, limits: Limits) -> _Finding:
    return _Finding(
        seen.probabilities,
        f"the outputs of {_percent(seen.probabilities)} of the images lie between 0 and 1 and "
        "sum to 1, as probabilities do",
    )


def _deterministic(seen: Evidence, limits: Limits) -> _Finding:
    return _Finding(
        seen.unsteady,
        f"{seen.effort.passes} passes over the same images gave different logits for "
        f"{_percent(seen.unsteady)} of them",
    )


def _gradients(seen: Evidence, limits: Limits) -> _Finding:
    assert seen.gradients is not None
    found = seen.gradients
    return _Finding(
        found.unusable,
        f"{_percent(found.unusable)} of the images have no usable gradient on any surface "
        f"(exactly zero on all: {_percent(found.zero)}, not finite on some: "
        f"{_percent(found.broken)})",
        found.unusable > 0 or found.broken > 0,
    )


def _loss_rises(seen: Evidence, limits: Limits) -> _Finding:
    assert seen.climb is not None
    found = seen.climb
    return _Finding(
        found.flat,
        f"after {seen.effort.steps} steps of PGD the loss of {_percent(found.flat)} of the images "
        f"is no higher than before, and it fell in {_percent(found.falling)} of the steps",
        found.falling > limits.falling_steps,
    )


def _unbounded(seen: Evidence, limits: Limits) -> _Finding:
    left = seen.accuracy("unbounded")
    words = f"PGD at eps 1, which allows any image, leaves {_percent(left)} right"
    return _Finding(left, words, left > 0)


def _larger_eps(seen: Evidence, limits: Limits) -> _Finding:
    half, same, double = (seen.accuracy(name) for name in ("half_eps", "pgd", "double_eps"))
    return _Finding(
        max(same - half, double - same),
        f"PGD leaves {_percent(half)}, {_percent(same)} and {_percent(double)} right at eps "
        f"{seen.eps / 2:.4g}, {seen.eps:.4g} and {min(2 * seen.eps, 1.0):.4g}",
    )


def _gap(one: str, other: str, words: str) -> _Measure:
    """By how much one attack leaves more right than the other."""

    def measure(seen: Evidence, limits: Limits) -> _Finding:
        first, second = seen.accuracy(one), seen.accuracy(other)
        shown = words.format(_percent(first), _percent(second), effort=seen.effort)
        return _Finding(first - second, f"PGD leaves {shown}")

    return measure


def _missed(attack: str, how: str) -> _Measure:
    """What an attack fools although every white-box attack left it."""

    def measure(seen: Evidence, limits: Limits) -> _Finding:
        share = seen.missed(attack)
        words = f"{how} fooled {_percent(share)} of all images after white-box attacks left them"
        return _Finding(share, words, share > 0)

    return measure


_STAND_IN = "the gradients mislead, so add a differentiable stand-in (bpda, straight_through)"

_CHECKS = (
    _Check(
        "logits",
        "the outputs are logits",
        _logits,
        "return logits, because gradients vanish through a softmax",
        of_outputs=True,
    ),
    _Check(
        "deterministic",
        "the same image gets the same logits",
        _deterministic,
        "make the defense a function of images and a key and wrap it with eot, so that gradients "
        "are means over draws and votes decide",
        of_outputs=True,
    ),
    _Check(
        "gradients",
        "every image has a gradient",
        _gradients,
        "add a surface with a differentiable stand-in (bpda, straight_through)",
    ),
    _Check(
        "loss_rises",
        "PGD raises the loss",
        _loss_rises,
        "take smaller steps, use the loss 'margin' or add a differentiable stand-in",
    ),
    _Check(
        "more_steps",
        "more steps do not help",
        _gap(
            "pgd",
            "more_steps",
            "{} right with {effort.steps} steps and {} with {effort.more_steps}",
        ),
        "quote the lower number and raise the steps until it no longer moves",
    ),
    _Check(
        "more_restarts",
        "more restarts do not help",
        _gap("pgd", "more_restarts", "{} right from one start and {} from {effort.restarts}"),
        "quote the lower number and raise the restarts until it no longer moves",
    ),
    _Check("unbounded", "without a bound nothing is left", _unbounded, _STAND_IN),
    _Check(
        "black_box",
        "queries find nothing that gradients missed",
        _missed("black_box", "Square"),
        _STAND_IN,
    ),
    _Check(
        "transfer",
        "an undefended model's images find nothing that gradients missed",
        _missed("transfer", "PGD on the undefended model"),
        f"{_STAND_IN} and count each image's worst attack",
        needs="transfer",
    ),
    _Check(
        "noise",
        "random noise finds nothing that gradients missed",
        _missed("noise", "random noise of the same budget"),
        "the attack is broken, so check its loss, its step size and the defense's gradients",
    ),
    _Check(
        "one_step",
        "one step is not stronger than many",
        _gap("pgd", "one_step", "{} right, and a single step, FGSM, {}"),
        "the loss surface is shattered, so add a smooth stand-in or take smaller steps",
    ),
    _Check(
        "larger_eps",
        "a larger budget does not raise accuracy",
        _larger_eps,
        "the attack does not use its budget, so tune its step size and check the gradients",
    ),
    _Check(
        "frozen_gap",
        "freezing the selection overstates nothing",
        _gap("frozen", "pgd", "{} right on the frozen surface and {} on the adaptive ones"),
        "quote the adaptive number, because the deployed selection is not frozen",
        needs="frozen",
    ),
    _Check(
        "start_point",
        "the gradient at the clean image can be trusted",
        _gap("from_clean", "pgd", "{} right from the clean image and {} from a random start"),
        "start attacks at random points, because the gradient at the clean image misleads",
    ),
)
