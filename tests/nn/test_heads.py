"""The memory head against its formula, and in every classifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.nn import CLASSIFIERS, classifier
from memdef_jax.nn.heads import MemoryHead, head


def test_the_memory_head_is_the_log_mean_exp_of_scaled_cosines_by_class():
    rng = np.random.default_rng(0)
    z, memory = rng.normal(size=(4, 6)), rng.normal(size=(3 * 2, 6))
    variables = {"params": {"memory": jnp.float32(memory)}}
    logits = MemoryHead(classes=3, rows=2, scale=15.0).apply(variables, jnp.float32(z))
    expected = np.empty((4, 3))
    for i, c in np.ndindex(4, 3):
        cosines = [
            z[i] @ row / np.linalg.norm(z[i]) / np.linalg.norm(row)
            for row in memory[2 * c : 2 * c + 2]
        ]
        expected[i, c] = np.log(np.mean(np.exp(15.0 * np.array(cosines))))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(logits).max() <= 15.0


def test_features_that_are_all_zero_have_finite_logits_and_gradients():
    module, z = MemoryHead(classes=3), np.zeros((2, 4), np.float32)
    variables = {"params": {"memory": np.float32(np.random.default_rng(0).normal(size=(15, 4)))}}

    @jax.jit
    def run(variables, z):
        logits, back = jax.vjp(module.apply, variables, z)
        return logits, back(jnp.ones_like(logits))

    logits, gradients = run(variables, z)
    np.testing.assert_allclose(logits, 0.0, atol=1e-5)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", ["small_cnn", "a", "b", "e", "magnet", "lenet", "resnet18"])
def test_a_classifier_with_a_memory_differs_from_the_linear_one_in_its_last_layer_alone(name):
    def shapes(head):
        module = classifier(name, 7, head=head)
        x = jnp.zeros((2, 28, 28, 1))
        return jax.eval_shape(module.init, jax.random.key(0), x)["params"]

    linear, memory = shapes("linear"), shapes("memory")
    (last,) = set(linear) - set(memory)
    assert last == max(n for n in linear if n.startswith("Dense"))
    assert memory.keys() - linear.keys() == {"MemoryHead_0"}
    features = linear[last]["kernel"].shape[0]
    assert memory["MemoryHead_0"]["memory"].shape == (7 * 5, features)
    assert all(memory[n] == linear[n] for n in linear if n != last)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_takes_a_head(name):
    assert classifier(name, 10, head="memory").head == "memory"
    assert classifier(name, 10).head == "linear"


def test_an_unknown_head_is_refused_with_the_known_ones():
    for make in (lambda: head("cosine", 10), lambda: classifier("small_cnn", 10, head="cosine")):
        with pytest.raises(InputError, match="head 'cosine' is unknown; use one of linear, memory"):
            make()
