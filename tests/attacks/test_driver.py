"""The driver: eager, jitted, mapped and sharded use agree, and nothing compiles twice."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import (
    APGD,
    BIM,
    FAB,
    FGSM,
    PGD,
    AutoAttack,
    CarliniWagnerL2,
    Square,
    driver,
)
from tests.xla_flags import FLAGS

KEY = jax.random.key(3)
QUICK = pytest.mark.usefixtures("quick_compile")
ATTACKS = {
    "fgsm": FGSM(eps=0.05),
    "bim": BIM(eps=0.05, step_size=0.01, steps=7),
    "pgd": PGD(eps=0.05, step_size=0.01, steps=7, restarts=2),
    "pgd-l2": PGD(norm="l2", eps=0.15, step_size=0.04, steps=7, restarts=2, early_stop=False),
    "cw": CarliniWagnerL2(search_steps=3, steps=20, learning_rate=0.05, initial_const=1.0),
}
CASCADE = AutoAttack(
    eps=0.05,
    version="custom",
    attacks=(
        APGD(eps=0.05, steps=5),
        FAB(eps=0.05, steps=3, targets=2),
        Square(eps=0.05, steps=9),
    ),
)
whole = jax.jit(lambda attack, model, x, y, key: attack.run(model, x, y, key=key))


def assert_same(a, b):
    a, b = (replace(record, seconds=None, stages=(), notes=()) for record in (a, b))
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


@pytest.mark.parametrize("name", ATTACKS)
def test_eager_equals_whole_loop(mlp_problem, name):
    model, x, y = mlp_problem(batch=20)
    eager = ATTACKS[name].run(model, x, y, key=KEY)
    assert eager.success.mean() > 0
    assert_same(eager, whole(ATTACKS[name], model, x, y, KEY))


@QUICK
@pytest.mark.parametrize("name", ATTACKS)
def test_chunks_of_several_steps_equal_single_steps(mlp_problem, name, monkeypatch):
    model, x, y = mlp_problem(batch=20)
    single = ATTACKS[name].run(model, x, y, key=KEY)
    monkeypatch.setattr(driver, "steps_a_dispatch", lambda attack, platform: 8)
    assert_same(single, ATTACKS[name].run(model, x, y, key=KEY))


@QUICK
@pytest.mark.parametrize("name", ["pgd", "cw"])
def test_an_image_does_not_depend_on_its_batch(mlp_problem, name):
    model, x, y = mlp_problem(batch=20)
    keys = jax.random.split(KEY, 20)
    together = ATTACKS[name].run(model, x, y, key=keys)
    some = np.array([17, 2, 5])
    apart = ATTACKS[name].run(model, x[some], y[some], key=keys[some])
    assert_same(jax.tree.map(lambda leaf: leaf[some], together), apart)
    alone = ATTACKS[name](model, x[:1], y[:1], key=KEY)
    np.testing.assert_allclose(alone, ATTACKS[name](model, x, y, key=KEY)[:1], atol=1e-5)


@QUICK
@pytest.mark.parametrize("attack", [ATTACKS["bim"], ATTACKS["pgd-l2"], CASCADE])
def test_a_sweep_of_eps_by_vmap_equals_separate_runs(mlp_problem, attack):
    model, x, y = mlp_problem()
    epsilons = jnp.array([0.0, 0.02, 0.1])

    def run(eps):
        return replace(attack, eps=eps).run(model, x, y, key=KEY)

    sweep = jax.jit(jax.vmap(run))(epsilons)
    for i, eps in enumerate(epsilons):
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], sweep), run(float(eps)))


@QUICK
def test_numbers_per_sample_equal_separate_scalar_runs(mlp_problem):
    model, x, y = mlp_problem(batch=20)
    epsilons = np.array([0.01, 0.05] * 10, np.float32)
    mixed = replace(ATTACKS["pgd"], eps=epsilons).run(model, x, y, key=KEY)
    for eps in (0.01, 0.05):
        alone = replace(ATTACKS["pgd"], eps=eps).run(model, x, y, key=KEY)
        chosen = epsilons == np.float32(eps)
        some = lambda record: jax.tree.map(lambda leaf: leaf[chosen], record)  # noqa: B023, E731
        assert_same(some(mixed), some(alone))


@QUICK
@pytest.mark.parametrize("name", ["pgd", "cw"])
def test_other_numbers_weights_and_keys_compile_nothing(mlp_problem, linear, name):
    traces = []

    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Counting:
        inner: object

        def __call__(self, x):
            traces.append(x.shape)
            return self.inner(x)

    model, x, y = mlp_problem(batch=24)
    ATTACKS[name].run(Counting(model), x, y, key=KEY)
    sizes = {shape[0] for shape in traces}
    assert sizes <= set(driver.packing_sizes(24, 60))
    other = jax.tree.map(lambda leaf: leaf * 2.0 + 0.1, ATTACKS[name])
    # Which smaller batches are met depends on the values; the second run is compared by function.
    seen = set(traces)
    traces.clear()
    other.run(Counting(jax.tree.map(lambda w: w * 0.9, model)), x, y, key=jax.random.key(9))
    assert not {shape for shape in traces if shape in seen}
    traces.clear()
    other.run(Counting(model), x, y, key=KEY)
    other.run(Counting(model), x, y, key=KEY)
    count = len(traces)
    other.run(Counting(model), x, y, key=KEY)
    assert len(traces) == count


def test_packing_sizes_are_few():
    assert driver.packing_sizes(128, 1) == (128,)
    assert driver.packing_sizes(128, 40) == (128, 112, 96, 64, 32, 8)
    assert driver.packing_sizes(1000, 40) == (1000, 880, 752, 504, 256, 64)
    assert driver.packing_sizes(128, 900) == (128, 112, 96, 80, 64, 48, 32, 16, 8)
    assert driver.packing_sizes(5, 900) == (5,)


@QUICK
def test_fallen_samples_cost_nothing_more(linear_problem):
    sizes = []

    def model(x):
        jax.debug.callback(lambda n=x.shape[0]: sizes.append(n))
        return linear(x)

    linear, x, y = linear_problem(batch=32, classes=2)
    eps = np.where(np.arange(32) < 4, 0.0, 1.0).astype(np.float32)  # all but four will fall
    BIM(eps=eps, step_size=0.1, steps=20)(model, x, y)
    jax.effects_barrier()
    assert sizes.count(32) < 10
    assert sizes.count(8) > 10


@QUICK
def test_per_sample_parts_follow_the_packing(linear_problem):
    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Masked:
        """A frozen mask an image: its own class is switched off until `allowed`."""

        inner: object
        shift: jax.Array

        def __call__(self, x):
            return self.inner(x) + self.shift

        def take(self, indices):
            return Masked(self.inner, self.shift[indices])

    linear, x, y = linear_problem(batch=20, classes=3)
    shift = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    model = Masked(linear, jnp.asarray(shift))
    y = jnp.argmax(model(x), -1).astype(jnp.int32)
    attack = PGD(eps=0.1, step_size=0.02, steps=7, restarts=2)
    eager = attack.run(model, x, y, key=KEY)
    assert 0 < eager.success.mean() < 1
    assert_same(eager, whole(attack, model, x, y, KEY))
    np.testing.assert_array_equal(np.argmax(model(eager.images), -1) != y, eager.success)


@QUICK
def test_plain_functions_and_partials(linear_problem):
    model, x, y = linear_problem()
    expected = ATTACKS["bim"](model, x, y)
    partial = jax.tree_util.Partial(lambda m, z: m(z), model)
    np.testing.assert_allclose(ATTACKS["bim"](lambda z: model(z), x, y), expected, atol=1e-6)
    np.testing.assert_allclose(ATTACKS["bim"](partial, x, y), expected, atol=1e-6)


@QUICK
@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f])
def test_inside_a_gradient_an_attack_is_a_constant(linear_problem, wrap):
    model, x, y = linear_problem()

    def loss(w):
        adversarial = ATTACKS["bim"](lambda z: replace(model, w=w)(z), x, y)
        return jnp.sum(replace(model, w=w)(adversarial))

    adversarial = ATTACKS["bim"](model, x, y)
    expected = jnp.broadcast_to(adversarial.reshape(8, -1).sum(0)[:, None], model.w.shape)
    np.testing.assert_allclose(wrap(jax.grad(loss))(model.w), expected, rtol=1e-4)


@QUICK
@pytest.mark.parametrize("name", ATTACKS)
def test_an_empty_batch_gives_an_empty_result(linear_problem, name):
    model, x, y = linear_problem()
    result = ATTACKS[name].run(model, x[:0], y[:0], key=KEY)
    assert result.images.shape == (0, 5, 4, 3)
    assert result.success.shape == result.norm.shape == (0,)


SHARDED = """
import dataclasses, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from memdef_jax.attacks import APGD, FAB, PGD, AutoAttack, CarliniWagnerL2, Square
cascade = APGD(eps=.03, steps=4), FAB(eps=.03, steps=2, targets=2), Square(eps=.03, steps=9)
assert jax.device_count() == 8
key = jax.random.key(0)
w = jax.random.normal(key, (60, 4))
fn = jax.tree_util.Partial(lambda w, x: x.reshape(x.shape[0], -1) @ w, w)
x = jax.random.uniform(key, (16, 5, 4, 3))
y = jnp.argmax(fn(x), -1)
keys = jax.random.split(key, 16)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
placed = jax.device_put((x, y, keys), NamedSharding(mesh, P("data")))
split = P("data")
for attack in (PGD(eps=.03, step_size=.01, steps=5),
               AutoAttack(eps=.03, version="custom", attacks=cascade),
               CarliniWagnerL2(search_steps=2, steps=10, learning_rate=.05)):
    run = lambda fn, x, y, keys: attack.run(fn, x, y, key=keys)
    expected = run(fn, x, y, keys)
    mapped = jax.shard_map(run, mesh=mesh, in_specs=(P(), split, split, split), out_specs=split)
    for result in (jax.jit(run)(fn, *placed), run(fn, *placed), jax.jit(mapped)(fn, *placed)):
        assert len(result.images.sharding.device_set) == 8
        a, b = (
            dataclasses.replace(record, seconds=None, stages=(), notes=())
            for record in (expected, result)
        )
        for a, b in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)
"""


@pytest.mark.exhaustive
def test_a_batch_over_eight_devices_equals_one_device():
    flags = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {FLAGS}",
        "JAX_PLATFORMS": "cpu",
    }
    program = [sys.executable, "-W", "error", "-c", SHARDED]
    done = subprocess.run(program, env={**os.environ, **flags}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
