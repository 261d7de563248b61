"""Threat models: on which surface an attack is crafted. All are judged on the deployed pipeline.

============== =====================================================================
transfer       a benign classifier-A of the same architecture
grey_box       the deployed classifier-A; the defense is unknown
frozen_mask    autoencoder and classifier-B, the mask fixed to A's choice on the clean
               image: what the paper's published attack code differentiates
frozen_mask_true  the same with the mask fixed to the true label
adaptive       the whole pipeline, in every way that the defense offers to differentiate it,
               and with what grey_box and frozen_mask find; each image by what works on it
worst_case     each image by whatever of these hurts it most; always derived, never chosen
============== =====================================================================
"""

from __future__ import annotations

import dataclasses

from memdef_jax.checks import InputError


@dataclasses.dataclass(frozen=True)
class Threat:
    """Where an attack is crafted.

    Attributes:
      name: as users write it.
      surfaces: keys of `defense.surfaces(x, y)`, of which the defense must offer one. With several
        each image counts as its worst, since this attacker can ask the deployed pipeline.
      weaker: surfaces of attackers who know less. Their images are taken where the own ones fail,
        so that more knowledge never gives a higher robust accuracy; where that was needed, the
        record says that the attack failed.
      from_benign: take the surface of the benign defense instead of the attacked one.
    """

    name: str
    surfaces: tuple[str, ...]
    weaker: tuple[str, ...] = ()
    from_benign: bool = False


THREATS = {
    threat.name: threat
    for threat in (
        Threat("transfer", ("selector",), from_benign=True),
        Threat("grey_box", ("selector",)),
        Threat("frozen_mask", ("frozen_mask",)),
        Threat("frozen_mask_true", ("frozen_mask_true",)),
        Threat(
            "adaptive",
            ("joint", "straight_through", "soft_mask", "requeried", "surrogate", "deployed"),
            weaker=("selector", "frozen_mask"),
        ),
    )
}
WORST = "worst_case"

# On these the attack sees the deployed decision itself, so it may stop once that has fallen.
DEPLOYED_SURFACES = frozenset({"joint", "straight_through", "requeried", "deployed"})


def parse_threats(names: tuple[str, ...]) -> tuple[Threat, ...]:
    """Threat models by name; "all" is every one. The worst case is always derived.

    Raises:
      InputError: for an unknown name.
    """
    if names == ("all",):
        return tuple(THREATS.values())
    for name in names:
        if name not in THREATS and name != WORST:
            raise InputError(
                f"threat model {name!r} is unknown; use all or some of {', '.join(THREATS)}."
            )
    chosen = tuple(THREATS[name] for name in dict.fromkeys(names) if name != WORST)
    if not chosen:
        raise InputError(f"no threat model was given; use all or some of {', '.join(THREATS)}.")
    return chosen
