"""For any model and budget, attacks stay in the ball and in [0, 1] and report the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memdef_jax.attacks import (
    APGD,
    BIM,
    DDN,
    FAB,
    FGSM,
    FMN,
    MIFGSM,
    PGD,
    RFGSM,
    AutoAttack,
    BlendedUniform,
    CarliniWagnerL2,
    CarliniWagnerLinf,
    DeepFool,
    Noise,
    SinglePixel,
    Square,
    balls,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

ATTACKS = {
    "fgsm": lambda eps: FGSM(eps=eps),
    "fgsm-l2": lambda eps: FGSM(eps=eps, norm="l2", early_stop=False),
    "rfgsm": lambda eps: RFGSM(eps=eps, alpha=eps / 2, noise="gaussian"),
    "bim": lambda eps: BIM(eps=eps, step_size=0.05, steps=3),
    "mifgsm": lambda eps: MIFGSM(eps=eps, step_size=0.05, steps=3, early_stop=False),
    "pgd": lambda eps: PGD(eps=eps, step_size=0.02, steps=3, restarts=2),
    "pgd-kl": lambda eps: PGD(eps=eps, step_size=0.02, steps=3, loss="kl", norm="l2"),
    "apgd": lambda eps: APGD(eps=eps, steps=5),
    "apgd-t-l2": lambda eps: APGD(eps=eps, steps=5, loss="dlr", targets=9, norm="l2"),
    "fab": lambda eps: FAB(steps=3),
    "fab-t-l2": lambda eps: FAB(eps=eps, steps=3, targets=2, norm="l2"),
    "square": lambda eps: Square(eps=eps, steps=9),
    "square-l2": lambda eps: Square(eps=eps, steps=9, norm="l2"),
    "cw": lambda eps: CarliniWagnerL2(search_steps=2, steps=5, learning_rate=0.1),
    "cw-linf": lambda eps: CarliniWagnerLinf(search_steps=2, steps=5, learning_rate=0.1),
    "deepfool": lambda eps: DeepFool(steps=3),
    "deepfool-linf": lambda eps: DeepFool(steps=3, norm="linf"),
    "ddn": lambda eps: DDN(steps=5),
    "fmn": lambda eps: FMN(steps=5),
    "pixel": lambda eps: SinglePixel(method="random", steps=5),
    "noise": lambda eps: Noise(kind="gaussian", eps=eps, norm="l2"),
    "blended": lambda eps: BlendedUniform(steps=5),
    "autoattack": lambda eps: AutoAttack(
        eps=eps, version="custom", attacks=(APGD(eps=eps, steps=3), Square(eps=eps, steps=9))
    ),
}
FREE = {"cw", "cw-linf", "fab", "deepfool", "deepfool-linf", "ddn", "fmn", "pixel", "blended"}
# Few shapes, so that most examples compile nothing.
CASES = st.tuples(
    st.sampled_from([(1, 2, (1, 1, 1)), (3, 10, (3, 5, 1)), (9, 3, (4, 2, 3))]),
    st.sampled_from(["normal", "constant", "saturated"]),
    st.floats(0, 1, width=32),
    st.integers(0, 2**31 - 1),
)


@pytest.mark.parametrize("name", ATTACKS)
@settings(max_examples=15, deadline=None)
@given(case=CASES)
def test_attacks_stay_inside_and_tell_the_truth(linear, name, case):
    (batch, classes, shape), kind, eps, seed = case
    rng = np.random.default_rng(seed)
    scale = {"normal": 1.0, "constant": 0.0, "saturated": 1e4}[kind]
    w = scale * rng.normal(size=(int(np.prod(shape)), classes))
    model = linear(jnp.asarray(w, jnp.float32), jnp.zeros(classes))
    x = rng.uniform(size=(batch, *shape)).astype(np.float32)
    x = np.where(rng.random(x.shape) < 0.2, np.round(x), x)
    y = rng.integers(0, classes, batch)  # some are misclassified from the start

    attack = ATTACKS[name](eps)
    result = attack.run(model, x, y, key=jax.random.key(seed))
    images = np.asarray(result.images)
    assert np.isfinite(images).all()
    assert images.min() >= 0
    assert images.max() <= 1
    np.testing.assert_allclose(
        result.norm, balls.length(jnp.asarray(images - x), attack.norm), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_array_equal(result.success, np.argmax(model(images), -1) != y)
    if name in FREE:
        np.testing.assert_array_equal(images[~result.success], x[~result.success])
    else:
        # 1e-7 is what adding to a pixel rounds away.
        assert (np.asarray(result.norm) <= 1.0001 * eps + 1e-7 * np.sqrt(x[0].size)).all()
