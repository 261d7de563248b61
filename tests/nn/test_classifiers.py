import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.nn import CLASSIFIERS, ClassifierB, ResNet18, ResNet50, classifier
from memdef_jax.nn.classifiers import ResNet, dropout


def shapes(module, image_shape):
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((2, *image_shape)))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def randomised(module, image_shape, seed=0):
    """Variables of the module with kernels that keep the scale, and lively running statistics."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        values = rng.normal(size=leaf.shape)
        if name in ("var", "scale"):
            values = np.exp(0.3 * values)
        elif name == "kernel":
            values *= np.prod(leaf.shape[:-1]) ** -0.5
        return jnp.float32(values)

    return jax.tree_util.tree_map_with_path(draw, shapes(module, image_shape))


@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
@pytest.mark.parametrize(("image_shape", "classes"), [((28, 28, 1), 10), ((32, 32, 3), 7)])
@pytest.mark.parametrize("train", [False, True])
def test_every_classifier_gives_one_logit_a_class(name, image_shape, classes, train):
    module, x = classifier(name, classes), jnp.zeros((5, *image_shape))
    run = functools.partial(module.apply, train=train, mutable="batch_stats")
    logits, _ = jax.eval_shape(run, shapes(module, image_shape), x)
    assert logits.shape == (5, classes)


def test_an_unknown_classifier_is_refused_with_the_known_names():
    with pytest.raises(InputError, match="'vgg' is unknown; use one of small_cnn, resnet18, resn"):
        classifier("vgg", 10)


# --- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "published", "features"),
    # torchvision's counts, with a 7x7 stem on three channels and 1000 classes.
    [(ResNet18, 11_689_512, 512), (ResNet50, 25_557_032, 2048)],
)
@pytest.mark.parametrize(("channels", "classes"), [(1, 10), (3, 100)])
def test_a_resnet_has_torchvisions_parameters_but_for_the_stem_and_the_classes(
    make, published, features, channels, classes
):
    expected = published - 7 * 7 * 3 * 64 + 3 * 3 * channels * 64
    expected += (features + 1) * (classes - 1000)
    params = shapes(make(classes=classes), (32, 32, channels))["params"]
    assert count(params) == expected


@pytest.mark.parametrize(("image_shape", "features"), [((28, 28, 1), 256), ((32, 32, 3), 400)])
def test_classifier_b_has_the_parameters_of_table_4(image_shape, features):
    expected = 25 * image_shape[-1] * 6 + 6 + 25 * 6 * 16 + 16
    expected += features * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10
    assert count(shapes(ClassifierB(10), image_shape)) == expected


# --- values --------------------------------------------------------------------------------------


def dense(x, layer):
    return x @ np.asarray(layer["kernel"], np.float64) + layer["bias"]


def relu(x):
    return np.maximum(x, 0)


def test_classifier_b_equals_its_layers_in_numpy(reference):
    variables = randomised(ClassifierB(10), (28, 28, 1))
    x = np.random.default_rng(1).uniform(size=(2, 28, 28, 1)).astype(np.float32)
    params, y = variables["params"], x
    for name in ("Conv_0", "Conv_1"):
        y = reference.conv2d(y, np.asarray(params[name]["kernel"])) + params[name]["bias"]
        y = relu(reference.max_pool2d(y, 2))
    y = y.reshape(2, -1)
    for name in ("Dense_0", "Dense_1"):
        y = relu(dense(y, params[name]))
    np.testing.assert_allclose(
        ClassifierB(10).apply(variables, x), dense(y, params["Dense_2"]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_resnet_equals_its_layers_in_numpy(bottleneck, reference):
    module = ResNet(classes=3, stages=(1, 2), bottleneck=bottleneck)
    variables = randomised(module, (10, 10, 2))
    x = np.random.default_rng(1).uniform(size=(2, 10, 10, 2)).astype(np.float32)

    def convolved(x, params, stats, i, stride=1):
        kernel = np.asarray(params[f"Conv_{i}"]["kernel"])
        x = reference.conv2d(x, kernel, stride, len(kernel) // 2)
        return reference.batch_norm(x, params[f"BatchNorm_{i}"], stats[f"BatchNorm_{i}"])

    params, stats = variables["params"], variables["batch_stats"]
    y = relu(convolved(x, params, stats, 0))
    y = reference.max_pool2d(y, 3, 2, 1)
    # Strides as in torchvision, v1.5: the first block of the second stage halves the image, by its
    # first 3x3 convolution; the shortcut has a projection where the shape changes.
    projected = (bottleneck, True, False)
    for block, stride in enumerate((1, 2, 1)):
        own = params[f"_Block_{block}"], stats[f"_Block_{block}"]
        strides = (1, stride, 1) if bottleneck else (stride, 1)
        short, last = y, len(strides) - 1
        for i, s in enumerate(strides):
            y = convolved(y, *own, i, s)
            y = relu(y) if i < last else y
        assert (f"Conv_{last + 1}" in own[0]) == projected[block]
        if projected[block]:
            short = convolved(short, *own, last + 1, stride)
        y = relu(y + short)
    expected = dense(y.mean(axis=(1, 2)), params["Dense_0"])

    # The smaller the batch of sums in float32 the better they agree; logits are of order one.
    actual = jax.jit(module.apply)(variables, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


# --- dropout -------------------------------------------------------------------------------------


def test_dropout_zeroes_at_its_rate_and_scales_the_rest_to_keep_the_mean():
    dropped = np.asarray(dropout(jnp.ones((8, 4000)), 0.25, jax.random.split(jax.random.key(0), 8)))
    np.testing.assert_allclose(np.unique(dropped), [0, 4 / 3], rtol=1e-6)
    # 32,000 draws have a standard error of 0.0024.
    np.testing.assert_allclose((dropped == 0).mean(), 0.25, atol=0.01)


def test_dropout_of_a_sample_depends_on_its_own_key_only():
    x, keys = jnp.ones((6, 50)), jax.random.split(jax.random.key(0), 6)
    together = dropout(x, 0.5, keys)
    order = jnp.asarray([3, 0, 5])
    np.testing.assert_array_equal(dropout(x[order], 0.5, keys[order]), together[order])
    np.testing.assert_array_equal(dropout(x[4:5], 0.5, keys[4:5])[0], together[4])
    assert (together[0] != together[1]).any()


@pytest.fixture(scope="module")
def classifier_b():
    module = ClassifierB(10)
    x = np.random.default_rng(1).uniform(size=(4, 28, 28, 1)).astype(np.float32)
    return jax.jit(module.apply, static_argnames="train"), randomised(module, (28, 28, 1)), x


def test_training_logits_of_an_image_do_not_depend_on_its_batch(classifier_b):
    apply, variables, x = classifier_b
    keys = jax.random.split(jax.random.key(0), 4)
    together = apply(variables, x, train=True, dropout_keys=keys)
    order = jnp.asarray([2, 0, 1, 1])
    some = apply(variables, x[order], train=True, dropout_keys=keys[order])
    np.testing.assert_allclose(some, together[order], rtol=1e-4, atol=1e-4)
    others = apply(variables, x, train=True, dropout_keys=jax.random.split(jax.random.key(1), 4))
    assert (np.abs(others - together).max(axis=1) > 0.01).all()


def test_dropout_acts_only_in_training_and_only_with_keys(classifier_b):
    apply, variables, x = classifier_b
    keys = jax.random.split(jax.random.key(0), 4)
    plain = apply(variables, x)
    np.testing.assert_allclose(apply(variables, x, dropout_keys=keys), plain, atol=1e-5)
    np.testing.assert_allclose(apply(variables, x, train=True), plain, atol=1e-5)


def test_the_two_hidden_layers_of_classifier_b_drop_different_units():
    # Identity-like layers let the second mask be read where the first one kept the unit.
    module = ClassifierB(128)
    variables = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes(module, (28, 28, 1)))
    params = variables["params"]
    params["Dense_0"]["bias"] = jnp.ones(256)
    params["Dense_1"]["kernel"] = jnp.eye(256, 128)
    params["Dense_2"]["kernel"] = jnp.eye(128)
    keys = jax.random.split(jax.random.key(0), 50)
    apply = jax.jit(module.apply, static_argnums=2)
    logits = np.asarray(apply(variables, jnp.zeros((50, 28, 28, 1)), True, keys))
    # Kept twice, a unit is scaled twice; 6400 units at a chance of 1/4 (1/2 if the masks agreed).
    np.testing.assert_array_equal(np.unique(logits), [0, 4])
    np.testing.assert_allclose((logits == 4).mean(), 0.25, atol=0.03)
