"""Whatever cannot be used is refused in one sentence, before any work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    compose,
    eot,
    presets,
)
from memdef_jax.checks import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")

X = np.full((2, 3, 3, 1), 0.5, np.float32)
Y = np.array([0, 2])
KEY = jax.random.key(0)


def model(x):
    return x.reshape(x.shape[0], -1)[:, :3]


class Unhashable:
    __hash__ = None

    def __call__(self, x):
        return x


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (X + 1, r"outside \[0, 1\]"),
        (X - 1, r"outside \[0, 1\]"),
        (X[0], "four axes"),
        (X.astype(np.float64), "float32 in"),
        ((X * 255).astype(np.uint8), "uint8"),
        (X * np.nan, "NaN"),
    ],
)
def test_images(x, words):
    with pytest.raises(InputError, match=words):
        FGSM(eps=0.1)(model, x, Y)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (np.array([0, 1, 2]), "beside 2 images"),
        (np.array([0.0, 1.0]), "int32 class indices"),
        (np.array([0, 3]), "label 3 is outside the 3 classes"),
        (np.array([-1, 0]), "label -1"),
    ],
)
def test_labels(y, words):
    with pytest.raises(InputError, match=words):
        FGSM(eps=0.1)(model, X, y)


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (FGSM(eps=-0.1), "eps -0.1 is outside"),
        (FGSM(eps=1.1), "8/255"),
        (FGSM(eps=float("nan")), "eps nan"),
        (FGSM(eps=-1.0, norm="l2"), "eps -1 cannot"),
        (FGSM(eps=float("nan"), norm="l2"), "eps nan"),
        (FGSM(eps=np.array([0.1, 0.2, 0.3])), "one an image"),
        (BIM(eps=0.1, step_size=-1.0), "step_size -1"),
        (PGD(eps=0.1, step_size=0.1), "pass key="),
        (RFGSM(eps=0.1, alpha=0.2), "alpha 0.2 is above eps 0.1"),
        (MIFGSM(eps=0.1, step_size=0.1, decay=-1.0), "decay -1"),
        (APGD(eps=8.0), "8/255"),
        (FAB(eps=-1.0), "eps -1"),
        (Square(eps=2.0), "8/255"),
        (Square(eps=0.1, p_init=1.5), "p_init 1.5"),
        (Noise(eps=-0.1), "eps -0.1"),
        (AutoAttack(eps=8.0), "8/255"),
        (DeepFool(overshoot=-1.0), "overshoot -1"),
        (DDN(init_norm=0.0), "init_norm 0"),
        (FMN(alpha=0.0), "alpha 0"),
        (CarliniWagnerL2(learning_rate=0.0), "learning_rate 0"),
        (CarliniWagnerL2(initial_const=0.0), "initial_const 0"),
        (CarliniWagnerL2(confidence=-1.0), "confidence -1"),
    ],
)
def test_numbers(attack, words):
    with pytest.raises(InputError, match=words):
        attack(model, X, Y)


def test_an_l2_budget_may_exceed_one():
    assert FGSM(eps=3.0, norm="l2")(model, X, Y).shape == X.shape


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FGSM(eps=0.1, norm="l7"), "norm 'l7' is unknown"),
        (lambda: PGD(eps=0.1, step_size=0.1, loss="hinge"), "loss 'hinge' is unknown"),
        (lambda: PGD(eps=0.1, step_size=0.1, steps=0), "steps 0"),
        (lambda: PGD(eps=0.1, step_size=0.1, restarts=0), "restarts 0"),
        (lambda: PGD(eps=0.1, step_size=0.1, restarts=2, random_start=False), "same run"),
        (lambda: BIM(eps=0.1, step_size=0.1, steps=2.5), "steps 2.5"),
        (lambda: CarliniWagnerL2(search_steps=0), "search_steps 0"),
        (lambda: CarliniWagnerLinf(steps=0), "steps 0"),
        (lambda: APGD(eps=0.1, targets=9, targeted=True), "use one of the two"),
        (lambda: APGD(eps=0.1, loss="kl", targets=2), "'kl' knows no target"),
        (lambda: Square(eps=0.1, norm="l1"), "norm 'l1' is unknown"),
        (lambda: SinglePixel(method="greedy"), "method 'greedy'"),
        (lambda: Noise(eps=0.1, kind="salt"), "kind 'salt'"),
        (lambda: eot(model, 0, KEY), "samples 0"),
        (lambda: presets.named("deepfool", 0.1), "fgsm, bim, pgd, cw"),
        (lambda: presets.named("pgd"), "needs eps"),
    ],
)
def test_names_and_counts_are_refused_when_made(make, words):
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (np.zeros(2, np.uint32), "typed key"),
        (3, "typed key"),
        (jax.random.split(KEY, 3), "one key"),
    ],
)
def test_keys(key, words):
    with pytest.raises(InputError, match=words):
        PGD(eps=0.1, step_size=0.1)(model, X, Y, key=key)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("resnet", "cannot be called"),
        (lambda x: x, "must return"),
        (lambda x: model(x)[:, :1], "at least 2 classes"),
        (lambda x: model(x)[:1], "must return"),
        (
            compose(model, type("Odd", (), {"__hash__": None, "__call__": lambda s, x: x})()),
            "Partial",
        ),
    ],
)
def test_models(function, words):
    with pytest.raises(InputError, match=words):
        FGSM(eps=0.1)(function, X, Y)


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(eps=0.1),
        PGD(eps=0.1, step_size=0.1, steps=3),
        PGD(eps=0.1, step_size=0.1, steps=3, early_stop=False),
        CarliniWagnerL2(search_steps=1, steps=3),
        CarliniWagnerLinf(search_steps=1, steps=3),
        APGD(eps=0.1, steps=3),
        FAB(steps=3),
        Square(eps=0.1, steps=3),
        DeepFool(steps=3),
        DDN(steps=3),
        SinglePixel(method="random", steps=3),
        BlendedUniform(steps=3),
        AutoAttack(eps=0.1, version="custom", attacks=(Square(eps=0.1, steps=3),)),
    ],
)
def test_nan_logits_are_named(attack):
    def broken(x):
        return jnp.where(jnp.arange(x.shape[0])[:, None] == 1, jnp.nan, model(x))

    with pytest.raises(InputError, match="NaN for image 1 of the batch"):
        attack(broken, X, Y, key=KEY)
    result = jax.jit(lambda x: attack.run(broken, x, Y, key=KEY))(X)
    assert not result.success[1]
    assert np.isfinite(result.images).all()
