"""Detection of attacked images by a score, such as the reconstruction error.

The detector of Memory Defense (arXiv 2202.02595) calls an image adversarial when its reconstruction
error lies above the 99th percentile of the errors of benign images. How well scores separate is one
question; how many wrong answers pass unnoticed, above all when the attacker knows of the detector
(`Evading`), is the one that matters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memdef_jax.attacks.attack import check_number
from memdef_jax.attacks.logits import Logits, judge, take
from memdef_jax.checks import InputError


@dataclass(frozen=True)
class Detection:
    """What a threshold on the score makes of benign and attacked images. All but it are shares.

    Attributes:
      threshold: an image is detected when its score is above.
      false_positive_rate: of the benign images, those detected.
      detection_rate: of the attacked images, those detected, whether the attack fooled or not.
      auroc: area under the ROC curve, whatever the threshold.
      passed_accuracy: of the attacked images that pass, those answered rightly; None if none does.
      undetected_error: of all attacked images, those that are answered wrongly and pass.
      clean_count: benign images.
      attacked_count: attacked images.
    """

    threshold: float
    false_positive_rate: float
    detection_rate: float
    auroc: float
    passed_accuracy: float | None
    undetected_error: float
    clean_count: int
    attacked_count: int


def auroc(clean: np.ndarray, attacked: np.ndarray) -> float:
    """Area under the ROC curve: how often an attacked image scores above a benign one.

    The share of all pairs, ties counted half (Mann and Whitney's U over the number of pairs).

    Args:
      clean: scores of benign images [N].
      attacked: scores of attacked images [M].

    Raises:
      InputError: when either is empty, not one axis or holds NaN.
    """
    ordered = np.sort(_scores(clean, "clean scores"))
    attacked = _scores(attacked, "attacked scores")
    below = np.searchsorted(ordered, attacked, side="left")
    up_to = np.searchsorted(ordered, attacked, side="right")
    return float((below + up_to).mean() / (2 * len(ordered)))


def roc(clean: np.ndarray, attacked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve: what every threshold detects.

    Args:
      clean: scores of benign images [N].
      attacked: scores of attacked images [M].

    Returns:
      False positive rates and detection rates, both [T + 1] for T different scores, rising from
      (0, 0) to (1, 1).

    Raises:
      InputError: as `auroc`.
    """
    clean = np.sort(_scores(clean, "clean scores"))
    attacked = np.sort(_scores(attacked, "attacked scores"))
    cuts = np.unique(np.concatenate([clean, attacked]))[::-1]

    def rates(ordered: np.ndarray) -> np.ndarray:
        missed = np.searchsorted(ordered, cuts, side="left") / len(ordered)
        return np.concatenate([[0.0], 1.0 - missed])

    return rates(clean), rates(attacked)


def threshold(clean_scores: np.ndarray, percentile: float = 99.0) -> float:
    """The score that so many percent of benign images do not exceed (arXiv 2202.02595).

    Args:
      clean_scores: of benign images [N] that are not among those judged with the threshold, else
        the false positive rate is chosen and not measured.
      percentile: in [0, 100]; between two scores it is interpolated.

    Raises:
      InputError: as `auroc`, or for a percentile outside its range.
    """
    if not 0.0 <= percentile <= 100.0:
        raise InputError(f"percentile {percentile:g} is outside [0, 100]; the paper uses 99.")
    return float(np.percentile(_scores(clean_scores, "clean scores"), percentile))


def measure(
    clean_scores: np.ndarray,
    attacked_scores: np.ndarray,
    attacked_correct: np.ndarray,
    threshold: float,
) -> Detection:
    """What a detector with a threshold achieves.

    Args:
      clean_scores: of benign images [N], other ones than the threshold was chosen on.
      attacked_scores: of attacked images [M].
      attacked_correct: whether the defense answers each of them rightly, bool [M].
      threshold: a finite score.

    Raises:
      InputError: as `auroc`, for another number of answers than scores, or a threshold that is
        not finite.
    """
    clean = _scores(clean_scores, "clean scores")
    attacked = _scores(attacked_scores, "attacked scores")
    correct = np.asarray(attacked_correct)
    if correct.shape != attacked.shape or correct.dtype != bool:
        raise InputError(
            f"attacked_correct is {correct.dtype} of shape {correct.shape} beside "
            f"{len(attacked)} attacked scores; give one bool an image."
        )
    if not np.isfinite(threshold):
        raise InputError(f"threshold {threshold:g} is not finite; choose it with threshold().")
    passed = attacked <= threshold
    return Detection(
        threshold=float(threshold),
        false_positive_rate=float((clean > threshold).mean()),
        detection_rate=float((~passed).mean()),
        auroc=auroc(clean, attacked),
        passed_accuracy=float(correct[passed].mean()) if passed.any() else None,
        undetected_error=float((passed & ~correct).mean()),
        clean_count=len(clean),
        attacked_count=len(attacked),
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Evading:
    """A logits function for attacks that must fool the classifier and its detector together.

    Where the score is above the limit, the excess relative to the limit, times a weight, is added
    to the true label's logit. An image then counts as adversarial only where its margin beats that
    penalty, and any attack lowers the score together with the margin (an attack on a function close
    to the full defense, see Tramer et al. 2020, arXiv 2002.08347). Attack it with loss="margin",
    for the cross-entropy has no gradient left where the penalty is many logits.

    Made by `Evading.of`.

    Attributes:
      logits: what is attacked.
      score: from images [B, H, W, C] to scores [B].
      labels: true labels int32 [B].
      limit: the detector's threshold.
      weight: logits for an excess of once the limit.
    """

    logits: Logits
    score: Callable[[jax.Array], jax.Array]
    labels: jax.Array
    limit: Any
    weight: Any

    @classmethod
    def of(
        cls,
        logits: Logits,
        score: Callable[[jax.Array], jax.Array],
        labels: jax.Array,
        *,
        limit: float,
        weight: float = 100.0,
    ) -> Evading:
        """Join a logits function and a score.

        Args:
          logits: a surface of the defense, [B, H, W, C] to [B, K].
          score: differentiable, [B, H, W, C] to [B]. Bind a defense's own as
            `jax.tree_util.Partial(MemoryDefense.score, defense)`, so that its parameters are
            arguments of the compiled attack.
          labels: true labels int [B].
          limit: the detector's threshold, above 0.
          weight: above 0; with 100 an excess of 1% of the limit costs one logit. More evades more
            strictly, and leaves the attack less room to move.

        Raises:
          InputError: for a limit or weight that is not finite and positive.
        """
        check_number("limit", limit, above_zero=True)
        check_number("weight", weight, above_zero=True)
        labels = jnp.asarray(labels, jnp.int32)
        return cls(logits, score, labels, jnp.float32(limit), jnp.float32(weight))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits [B, K], the label's raised where the score exceeds the limit."""
        logits = self.logits(x)
        excess = jax.nn.relu(self.score(x) - self.limit) / self.limit
        label = jax.nn.one_hot(self.labels, logits.shape[-1], dtype=logits.dtype)
        return logits + (self.weight * excess)[:, None] * label

    def take(self, indices: jax.Array) -> Evading:
        """The same for a re-packed batch."""
        return replace(
            self,
            logits=take(self.logits, indices),
            score=take(self.score, indices),
            labels=self.labels[indices],
        )

    def judge(self) -> Any:
        """What decides for a random function: its vote, the penalty added to the label's share."""
        voted = judge(self.logits)
        return None if voted is None else replace(self, logits=voted)


def _scores(scores: Any, name: str) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or not len(values):
        raise InputError(
            f"{name} have shape {values.shape}; give one number an image, for at least one image."
        )
    if np.isnan(values).any():
        raise InputError(
            f"{name} hold NaN, for example for image {np.isnan(values).argmax()}; "
            "look for a division by zero in the score."
        )
    return values
