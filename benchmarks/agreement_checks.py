"""What `benchmarks.agreement` checks: each function measures one thing and says what it needs."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from benchmarks.peer_attacks import peer_contenders
from benchmarks.work import OURS, Outcome, Work, judge, our_attack, our_contender
from memdef_jax import attacks
from memdef_jax.attacks import Attack

AGREEMENT = 0.995
SLACK = 1.01
CHANCE = 0.1


@dataclasses.dataclass(frozen=True)
class Finding:
    """The outcome of a check.

    Attributes:
      numbers: what was measured, in words.
      needs: what a pass needs, in words.
      passed: whether it does; None where an attack is not there yet.
      values: the same numbers for programs.
    """

    numbers: str
    needs: str
    passed: bool | None
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


MISSING = Finding("not available yet", "", None)


class Subject:
    """A model under attack and what each attack reached on it; nothing is run twice."""

    def __init__(
        self, bound: Any, module: Any, x: np.ndarray, y: np.ndarray, eps: float, seed: int
    ) -> None:
        self.bound, self.module, self.x, self.y, self.eps = bound, module, x, y, eps
        self._seed = seed
        self._known: dict[Any, Outcome] = {}

    @functools.cached_property
    def clean(self) -> np.ndarray:
        """Which images are classified correctly, bool [N]."""
        logits = jax.jit(lambda fn, x: fn(x))(self.bound, self.x)
        return np.asarray(logits).argmax(-1) == self.y

    def ours(self, name: str, attack: Attack, norm: str = "linf") -> Outcome:
        """What an attack of this library reaches; `name` identifies it with all its settings."""
        if name not in self._known:
            contender = our_contender(attack, self.bound, seed=self._seed)
            images = contender(self.x, self.y)
            if norm == "linf" and hasattr(attack, "eps"):
                _check_ball(images, self.x, attack.eps)
            self._known[name] = judge(contender, self.x, self.y, images, norm)
        return self._known[name]

    def named(self, name: str, eps: float | None = None) -> Outcome | None:
        """What one of `strengths` reaches, None where it does not exist yet."""
        eps = self.eps if eps is None else eps
        make = strengths().get(name)
        return None if make is None else self.ours(f"{name} {eps:g}", make(eps))


def _check_ball(images: np.ndarray, x: np.ndarray, eps: float) -> None:
    away = np.abs(images.astype(np.float64) - x).max()
    if away > eps + 1e-6 or images.min() < 0 or images.max() > 1:
        raise AssertionError(f"an attack left its ball: {away:g} beside eps {eps:g}")


def strengths() -> dict[str, Callable[[float], Attack]]:
    """Budget attacks by name, weakest first, those that exist."""
    makers: dict[str, tuple[str, Callable[[Any, float], Attack]]] = {
        "FGSM": ("FGSM", lambda make, eps: make(eps=eps)),
        "BIM-10": ("BIM", lambda make, eps: make(eps=eps, step_size=eps / 4, steps=10)),
        "MI-FGSM-10": ("MIFGSM", lambda make, eps: make(eps=eps, step_size=eps / 4, steps=10)),
        "PGD-40": ("PGD", lambda make, eps: make(eps=eps, step_size=eps / 10, steps=40)),
        "APGD-100": ("APGD", lambda make, eps: make(eps=eps, norm="linf", steps=100)),
        "APGD-T": (
            "APGD",
            lambda make, eps: make(eps=eps, norm="linf", steps=100, loss="dlr", targets=9),
        ),
        "FAB-T": ("FAB", lambda make, eps: make(eps=eps, norm="linf", steps=100, targets=9)),
        "Square-5000": ("Square", lambda make, eps: make(eps=eps, norm="linf", steps=5000)),
        "AutoAttack": (
            "AutoAttack",
            lambda make, eps: make(version="standard", norm="linf", eps=eps),
        ),
    }
    there = {name: (getattr(attacks, kind, None), form) for name, (kind, form) in makers.items()}
    return {
        name: functools.partial(form, make)
        for name, (make, form) in there.items()
        if make is not None
    }


def decisions(subject: Subject, work: Work, libraries: tuple[str, ...]) -> Finding:
    """Per-sample decisions of ours and each peer, none with a random start or early stop."""
    attack = our_attack(work, early_stop=False)
    if attack is None:
        return MISSING
    ours = subject.ours(f"{work} to the end", attack)
    shares = {}
    for peer in peer_contenders(work, subject.module, subject.bound, libraries):
        images = peer(subject.x, subject.y)
        theirs = judge(peer, subject.x, subject.y, images, work.norm)
        shares[peer.library] = float((ours.fooled == theirs.fooled).mean())
    numbers = ", ".join(f"{name} {100 * share:.1f}%" for name, share in shares.items())
    return Finding(
        f"{numbers} (robust accuracy {100 * ours.robust:.1f}%)",
        f"equal decisions on at least {100 * AGREEMENT:.1f}%",
        all(share >= AGREEMENT for share in shares.values()),
        {"equal": shares, "robust": ours.robust},
    )


def smallest(subject: Subject, work: Work, libraries: tuple[str, ...]) -> Finding:
    """Median norms of a minimum-norm attack beside the peers', on images classified correctly.

    A failure counts as an infinite norm, whatever image the library returned. A second median is
    over the images that both fooled.
    """
    attack = our_attack(work)
    if attack is None:
        return MISSING
    ours = subject.ours(str(work), attack, work.norm).norm
    peers, ratios, words = {}, [], []
    for peer in peer_contenders(work, subject.module, subject.bound, libraries):
        count = min(len(ours), peer.at_most or len(ours))
        here = subject.clean[:count]
        x, y = subject.x[:count], subject.y[:count]
        theirs = judge(peer, x, y, peer(x, y), work.norm).norm[here]
        mine = ours[:count][here]
        both = np.isfinite(mine) & np.isfinite(theirs)
        medians = [float(np.median(norms)) for norms in (mine, theirs, mine[both], theirs[both])]
        pairs = [_ratio(*medians[:2]), _ratio(*medians[2:])]
        ratios += pairs
        peers[peer.library] = {
            "images": int(here.sum()),
            "fooled": int(np.isfinite(theirs).sum()),
            "ours_fooled": int(np.isfinite(mine).sum()),
            "median": medians[1],
            "ours_median": medians[0],
            "common_median": medians[3],
            "ours_common_median": medians[2],
        }
        words.append(
            f"{peer.library} {medians[1]:.4g} ({np.isfinite(theirs).sum()}/{len(theirs)} fooled; "
            f"ours / theirs {pairs[0]:.3f}, on images both fooled {pairs[1]:.3f})"
        )
    mine = ours[subject.clean]
    return Finding(
        f"ours {np.median(mine):.4g} ({np.isfinite(mine).sum()}/{len(mine)} fooled); "
        + "; ".join(words),
        f"no ratio above {SLACK}",
        all(ratio <= SLACK for ratio in ratios),
        {"ours_median": float(np.median(mine)), "peers": peers},
    )


def _ratio(ours: float, theirs: float) -> float:
    if np.isinf(theirs):
        return 0.0 if np.isfinite(ours) else 1.0
    return ours / theirs if theirs > 0 else float("inf")


def beats_its_parts(subject: Subject) -> Finding:
    """AutoAttack beside the worst case over every subset of its attacks, each run on all images."""
    whole = subject.named("AutoAttack")
    parts = {name: subject.named(name) for name in ("APGD-100", "APGD-T", "FAB-T", "Square-5000")}
    known = {name: part for name, part in parts.items() if part is not None}
    if whole is None or len(known) < len(parts):
        return MISSING
    values = {
        " + ".join(subset): float(1 - np.any([known[n].fooled for n in subset], axis=0).mean())
        for size in range(1, len(known) + 1)
        for subset in itertools.combinations(known, size)
    }
    single = ", ".join(f"{name} {100 * values[name]:.1f}%" for name in known)
    return Finding(
        f"AutoAttack {100 * whole.robust:.1f}%; {single}; "
        f"least of the 15 subsets {100 * min(values.values()):.1f}%",
        "AutoAttack not above any subset",
        whole.robust <= min(values.values()),
        {"autoattack": whole.robust, "subsets": values},
    )


def beats_restarts(subject: Subject, steps: int = 100, restarts: int = 50) -> Finding:
    """AutoAttack beside PGD from many starts."""
    whole = subject.named("AutoAttack")
    if whole is None:
        return MISSING
    pgd = attacks.PGD(eps=subject.eps, step_size=subject.eps / 10, steps=steps, restarts=restarts)
    many = subject.ours(f"PGD {steps} x {restarts}", pgd)
    return Finding(
        f"AutoAttack {100 * whole.robust:.1f}%, "
        f"PGD-{steps} x {restarts} restarts {100 * many.robust:.1f}%",
        "AutoAttack not above PGD",
        whole.robust <= many.robust,
        {"autoattack": whole.robust, "pgd": many.robust},
    )


def order(subject: Subject) -> Finding:
    """Robust accuracies from the weakest attack to the strongest."""
    names = ("FGSM", "BIM-10", "PGD-40", "APGD-100", "AutoAttack")
    found = {name: subject.named(name) for name in names}
    values = {name: outcome.robust for name, outcome in found.items() if outcome is not None}
    missing = [name for name in names if name not in values]
    falling = all(a >= b for a, b in itertools.pairwise(values.values()))
    numbers = " >= ".join(f"{name} {100 * value:.1f}%" for name, value in values.items())
    numbers += f" ({', '.join(missing)} not available yet)" if missing else ""
    passed = None if missing and falling else falling
    return Finding(numbers, "never rising", passed, {"robust": values})


def full_budget(subject: Subject) -> Finding:
    """Robust accuracy where the ball is the whole space of images."""
    found = {name: subject.named(name, 1.0) for name in strengths()}
    values = {name: outcome.robust for name, outcome in found.items() if outcome is not None}
    # One step lands on one corner of the cube, where a model may be right by chance.
    single = {"FGSM": CHANCE}
    return Finding(
        ", ".join(f"{name} {100 * value:.1f}%" for name, value in values.items()),
        f"0% at eps 1 (FGSM, a single step: at most {100 * CHANCE:.0f}%, chance)",
        all(value <= single.get(name, 0.0) for name, value in values.items()),
        {"robust": values},
    )


def monotone(subject: Subject) -> Finding:
    """The worst case over the gradient attacks for each image, as eps grows."""
    factors = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
    gradient = ("FGSM", "BIM-10", "MI-FGSM-10", "PGD-40", "APGD-100", "APGD-T")
    names = [name for name in gradient if name in strengths()]
    fooled = [~subject.clean]
    for factor in factors[1:]:
        outcomes = [subject.named(name, subject.eps * factor) for name in names]
        fooled.append(np.any([o.fooled for o in outcomes if o is not None], axis=0))
    returning = [int((before & ~after).sum()) for before, after in itertools.pairwise(fooled)]
    curve = [float(1 - worst.mean()) for worst in fooled]
    return Finding(
        "robust accuracy "
        + ", ".join(f"{100 * v:.1f}% at {f * subject.eps:.3g}" for f, v in zip(factors, curve))
        + f"; images robust again at a larger eps: {sum(returning)} (over {', '.join(names)})",
        "no image robust again",
        sum(returning) == 0,
        {"eps": [f * subject.eps for f in factors], "robust": curve, "returning": returning},
    )


def all_checks(
    eps: float, libraries: tuple[str, ...], steps_scale: float
) -> Iterator[tuple[str, Callable[[Subject], Finding]]]:
    """Every check by name, cheap ones first."""

    def scaled(steps: int) -> int:
        return max(1, round(steps * steps_scale))

    same = (
        Work(attack="fgsm", eps=eps),
        Work(attack="bim", eps=eps, steps=10, step_size=eps / 4),
        Work(attack="pgd", eps=eps, steps=scaled(40), step_size=eps / 10),
        Work(attack="mifgsm", eps=eps, steps=10, step_size=eps / 4),
    )
    for work in same:
        # Foolbox sums gradients that it did not normalise: another MI-FGSM.
        able = tuple(n for n in libraries if not (work.attack == "mifgsm" and "foolbox" in n))
        yield f"decisions, {work.title}", functools.partial(decisions, work=work, libraries=able)
    yield "order of strength", order
    yield "eps 1", full_budget
    yield "monotone in eps", monotone
    least = (
        Work(attack="deepfool", norm="l2", steps=50),
        Work(attack="deepfool", norm="linf", steps=50),
        Work(attack="ddn", norm="l2", steps=scaled(100)),
        Work(attack="fmn", norm="l2", steps=scaled(100)),
        Work(attack="fmn", norm="linf", steps=scaled(100)),
        Work(attack="cw", norm="l2", steps=scaled(200)),
    )
    for work in least:
        yield (
            f"smallest {work.norm.title()}, {work.title}",
            functools.partial(smallest, work=work, libraries=libraries),
        )
    yield "AutoAttack against PGD with restarts", beats_restarts
    yield "AutoAttack against its parts", beats_its_parts


__all__ = ["OURS", "Finding", "Subject", "all_checks", "strengths"]
