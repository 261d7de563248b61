import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.nn import Bound, ClassifierB, MemoryAutoencoder, ResNet18, ResNet50, SmallCNN

X = jnp.linspace(0.0, 1.0, 2 * 8 * 8).reshape(2, 8, 8, 1)


def initialised(key=0, classes=3):
    """A fresh instance of the module with fresh variables."""
    module, rng = SmallCNN(classes), np.random.default_rng(key)
    shapes = jax.eval_shape(module.init, jax.random.key(0), X)
    return Bound(module, jax.tree.map(lambda s: jnp.float32(rng.normal(size=s.shape)) / 10, shapes))


def test_a_bound_module_gives_the_logits_of_the_module_with_its_variables():
    bound = initialised()
    np.testing.assert_array_equal(bound(X), SmallCNN(3).apply(bound.variables, X))


def test_the_leaves_of_a_bound_module_are_its_variables():
    bound = initialised()
    leaves, treedef = jax.tree.flatten(bound)
    assert all(a is b for a, b in zip(leaves, jax.tree.leaves(bound.variables), strict=True))
    assert isinstance(jax.tree.unflatten(treedef, leaves), Bound)


def test_a_function_of_a_pytree_reaches_the_variables():
    zero = jax.tree.map(jnp.zeros_like, initialised())
    np.testing.assert_array_equal(zero(X), np.zeros((2, 3)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SmallCNN(10),
        lambda: ClassifierB(10),
        lambda: ResNet18(classes=10),
        lambda: ResNet50(classes=10),
        lambda: MemoryAutoencoder((28, 28, 1), 10),
    ],
)
def test_fresh_instances_of_a_module_have_the_same_tree_structure(make):
    first, second = (jax.tree.structure(Bound(make(), {"params": 0.0})) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)


def test_modules_with_other_settings_have_another_tree_structure():
    first, second = (jax.tree.structure(Bound(SmallCNN(k), {"params": 0.0})) for k in (10, 11))
    assert first != second


def test_a_new_checkpoint_in_a_fresh_module_does_not_recompile():
    traces = []

    @jax.jit
    def run(bound, x):
        traces.append(bound)
        return bound(x)

    bounds = [initialised(key) for key in range(3)]
    outputs = [run(bound, X) for bound in bounds]
    assert len(traces) == 1
    for bound, output in zip(bounds, outputs, strict=True):
        # Compiled and uncompiled products are summed in another order.
        np.testing.assert_allclose(output, bound(X), atol=1e-5)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    run(initialised(classes=4), X)
    assert len(traces) == 2


def test_jit_and_vmap_and_jacrev_take_a_bound_module_as_their_function():
    bound = initialised()
    expected = bound(X)
    np.testing.assert_allclose(jax.jit(bound)(X), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(bound))(X[:, None])[:, 0], expected, atol=1e-5)
    jacobian = jax.jit(jax.jacrev(bound))(X)
    assert jacobian.shape == (2, 3, *X.shape)
    np.testing.assert_array_equal(jacobian[0, :, 1], 0)


def test_bound_modules_are_equal_only_to_themselves():
    bound = initialised()
    same, twin = bound, Bound(SmallCNN(3), bound.variables)
    assert bound == same
    assert bound != twin
    assert len({bound, same, twin}) == 2
