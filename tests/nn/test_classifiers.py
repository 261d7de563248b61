import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from memdef_jax.checks import InputError
from memdef_jax.nn import CLASSIFIERS, ClassifierB, ResNet18, ResNet50, SmallCNN, classifier
from memdef_jax.nn.classifiers import dropout
from memdef_jax.nn.residual import ResNet, WideResNet

# Defense-GAN's models (Table 5 of Defense-VAE), MAD-VAE's (its Table 5) and that of the feature-map
# denoiser (its section 4.2): the convolutions as (features, kernel, stride, padding), after which
# of them 2x2 pooling follows, and hidden layers.
TABLE_5 = {
    "a": ([(64, 5, 1, 2), (64, 5, 2, 0)], (), [128]),
    "b": ([(64, 8, 2, 3), (128, 6, 2, 0), (128, 5, 1, 0)], (), []),
    "c": ([(128, 3, 1, 1), (64, 5, 2, 0)], (), [128]),
    "d": ([], (), [200, 200]),
    "e": ([], (), [200, 200]),
    "magnet": ([(32, 3, 1, 0), (32, 3, 1, 0), (64, 3, 1, 0), (64, 3, 1, 0)], (1, 3), [200, 200]),
    "lenet": ([(20, 5, 1, 0), (50, 5, 1, 0)], (0, 1), [500]),
}


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


@pytest.mark.parametrize(
    ("name", "published"),
    # WRN-16-4 of Table 4 (2.7M) and the widely used counts of the other two, all for CIFAR-10.
    [
        ("wide_resnet16_4", 2_748_890),
        ("wide_resnet28_10", 36_479_194),
        ("wide_resnet34_10", 46_160_474),
    ],
)
def test_a_wide_resnet_has_the_published_parameters(name, published):
    depth, width = map(int, name.removeprefix("wide_resnet").split("_"))
    features, blocks = [16, 16 * width, 32 * width, 64 * width], (depth - 4) // 6
    expected = 9 * 3 * 16 + 2 * features[-1] + features[-1] * 10 + 10
    for before, after in itertools.pairwise(features):
        expected += 9 * before * after + before * after + 2 * before  # the first block's own
        expected += (2 * blocks - 1) * (9 * after * after + 2 * after)
    assert expected == published
    assert count(shapes(classifier(name, 10), (32, 32, 3))["params"]) == published


@pytest.mark.parametrize(("image_shape", "features"), [((28, 28, 1), 256), ((32, 32, 3), 400)])
def test_classifier_b_has_the_parameters_of_table_4(image_shape, features):
    expected = 25 * image_shape[-1] * 6 + 6 + 25 * 6 * 16 + 16
    expected += features * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10
    assert count(shapes(ClassifierB(10), image_shape)) == expected


@pytest.mark.parametrize("image_shape", [(28, 28, 1), (32, 32, 3)])
@pytest.mark.parametrize("name", TABLE_5)
def test_a_classifier_has_the_parameters_of_its_table(name, image_shape):
    convolutions, pooled, hidden = TABLE_5[name]
    size, _, width = image_shape
    expected = 0
    for i, (features, kernel, stride, padding) in enumerate(convolutions):
        expected += kernel * kernel * width * features + features
        size = ((size + 2 * padding - kernel) // stride + 1) // (2 if i in pooled else 1)
        width = features
    width *= size * size
    for units in [*hidden, 10]:
        expected, width = expected + (width + 1) * units, units
    assert count(shapes(classifier(name, 10), image_shape)) == expected


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # Flattened: 12x12x64 = 9216 of A and C, 1x1x128 of B, 4x4x64 = 1024 of MagNet's.
        ("a", 1_664 + 102_464 + 1_179_776 + 1_290),
        ("b", 4_160 + 295_040 + 409_728 + 1_290),
        ("c", 1_280 + 204_864 + 1_179_776 + 1_290),
        ("d", 157_000 + 40_200 + 2_010),
        ("e", 157_000 + 40_200 + 2_010),
        ("magnet", 320 + 9_248 + 18_496 + 36_928 + 205_000 + 40_200 + 2_010),
        ("lenet", 520 + 25_050 + 400_500 + 5_010),
    ],
)
def test_a_classifier_of_28_by_28_images_has_the_parameters_counted_by_hand(name, parameters):
    assert count(shapes(classifier(name, 10), (28, 28, 1))) == parameters


@pytest.mark.parametrize("size", [28, 32])
def test_the_first_padding_of_model_b_is_that_called_same(size):
    assert lax.padtype_to_pads((size,) * 2, (8, 8), (2, 2), "SAME") == [(3, 3), (3, 3)]


@pytest.mark.parametrize(
    ("name", "least"), [("a", 5), ("b", 28), ("c", 5), ("magnet", 16), ("lenet", 16)]
)
def test_images_too_small_for_the_convolutions_are_refused(name, least):
    assert shapes(classifier(name, 10), (least, least, 1))
    with pytest.raises(InputError, match=rf"too small .*; resize them to {least}x{least} or more"):
        shapes(classifier(name, 10), (least, least - 1, 1))


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


@pytest.mark.parametrize("name", TABLE_5)
def test_a_classifier_equals_the_layers_of_its_table_in_numpy(name, reference):
    convolutions, pooled, hidden = TABLE_5[name]
    module = classifier(name, 10)
    variables = randomised(module, (28, 28, 1))
    x = np.random.default_rng(1).uniform(size=(2, 28, 28, 1)).astype(np.float32)
    params, y = variables["params"], x
    for i, (_, _, stride, padding) in enumerate(convolutions):
        layer = params[f"Conv_{i}"]
        y = relu(reference.conv2d(y, np.asarray(layer["kernel"]), stride, padding) + layer["bias"])
        y = reference.max_pool2d(y, 2) if i in pooled else y
    y = y.reshape(2, -1)
    for i in range(len(hidden)):
        y = relu(dense(y, params[f"Dense_{i}"]))
    expected = dense(y, params[f"Dense_{len(hidden)}"])
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-4, atol=1e-4)


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


def test_a_wide_resnet_equals_its_layers_in_numpy(reference):
    module = WideResNet(classes=3, depth=16, width=2)
    variables = randomised(module, (8, 8, 2))
    x = np.random.default_rng(1).uniform(size=(2, 8, 8, 2)).astype(np.float32)
    params, stats = variables["params"], variables["batch_stats"]

    def convolved(x, layer, stride=1):
        kernel = np.asarray(layer["kernel"])
        return reference.conv2d(x, kernel, stride, len(kernel) // 2)

    y = convolved(x, params["Conv_0"])
    for block, stride in enumerate((1, 1, 2, 1, 2, 1)):
        own, seen = params[f"_WideBlock_{block}"], stats[f"_WideBlock_{block}"]
        active = relu(reference.batch_norm(y, own["BatchNorm_0"], seen["BatchNorm_0"]))
        z = convolved(active, own["Conv_0"], stride)
        z = relu(reference.batch_norm(z, own["BatchNorm_1"], seen["BatchNorm_1"]))
        z = convolved(z, own["Conv_1"])
        # The first block of each group changes the number of features, so its shortcut projects.
        assert ("Conv_2" in own) == (block in (0, 2, 4))
        y = z + (convolved(active, own["Conv_2"], stride) if "Conv_2" in own else y)
    y = relu(reference.batch_norm(y, params["BatchNorm_0"], stats["BatchNorm_0"]))
    expected = dense(y.mean(axis=(1, 2)), params["Dense_0"])
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


def test_dropout_takes_features_of_any_shape():
    x, keys = jnp.ones((3, 4, 5, 2)), jax.random.split(jax.random.key(0), 3)
    dropped = dropout(x, 0.5, keys)
    assert dropped.shape == x.shape
    np.testing.assert_array_equal(dropout(x[1:2], 0.5, keys[1:2])[0], dropped[1])
    np.testing.assert_array_equal(np.unique(dropped), [0, 2])


DROPPING = {"classifier_b": ClassifierB(10)} | {name: classifier(name, 10) for name in "abd"}
KEEPING = {
    "small_cnn": SmallCNN(10),
    "e": classifier("e", 10),
    "magnet": classifier("magnet", 10),
    "no_rate": ClassifierB(10, dropout_rate=0.0),
}


def prepared(module):
    x = np.random.default_rng(1).uniform(size=(4, 28, 28, 1)).astype(np.float32)
    return jax.jit(module.apply, static_argnames="train"), randomised(module, (28, 28, 1)), x


@pytest.fixture(scope="module", params=DROPPING)
def dropping(request):
    return prepared(DROPPING[request.param])


def test_training_logits_of_an_image_do_not_depend_on_its_batch(dropping):
    apply, variables, x = dropping
    keys = jax.random.split(jax.random.key(0), 4)
    together = apply(variables, x, train=True, dropout_keys=keys)
    order = jnp.asarray([2, 0, 1, 1])
    some = apply(variables, x[order], train=True, dropout_keys=keys[order])
    np.testing.assert_allclose(some, together[order], rtol=1e-4, atol=1e-4)
    others = apply(variables, x, train=True, dropout_keys=jax.random.split(jax.random.key(1), 4))
    assert (np.abs(others - together).max(axis=1) > 0.01).all()


def test_dropout_acts_only_in_training_and_only_with_keys(dropping):
    apply, variables, x = dropping
    keys = jax.random.split(jax.random.key(0), 4)
    plain = apply(variables, x)
    np.testing.assert_allclose(apply(variables, x, dropout_keys=keys), plain, atol=1e-5)
    np.testing.assert_allclose(apply(variables, x, train=True), plain, atol=1e-5)
    assert np.abs(apply(variables, x, train=True, dropout_keys=keys) - plain).max() > 0.01


@pytest.mark.parametrize("name", KEEPING)
def test_a_classifier_without_dropout_ignores_the_keys(name):
    apply, variables, x = prepared(KEEPING[name])
    keys = jax.random.split(jax.random.key(0), 4)
    plain = apply(variables, x)
    np.testing.assert_allclose(apply(variables, x, train=True, dropout_keys=keys), plain, atol=1e-5)


def test_a_resnet_ignores_the_keys():
    module = ResNet(classes=3, stages=(1,), bottleneck=False)
    variables, x = randomised(module, (8, 8, 1)), jnp.ones((2, 8, 8, 1))
    apply = functools.partial(module.apply, variables, x, train=True, mutable=["batch_stats"])
    keys = jax.random.split(jax.random.key(0), 2)
    jax.tree.map(np.testing.assert_array_equal, apply(dropout_keys=keys), apply())


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


def zeros(module):
    return jax.tree.map(lambda s: jnp.zeros(s.shape), shapes(module, (28, 28, 1)))


def transparent_two_convolutions(name):
    """Features of one, 128 of which the hidden layer and the logits pass on."""
    module = classifier(name, 128)
    variables = zeros(module)
    params = variables["params"]
    params["Conv_1"]["bias"] = jnp.ones(64)
    params["Dense_0"]["kernel"] = jnp.eye(9216, 128)
    params["Dense_1"]["kernel"] = jnp.eye(128)
    return module, variables


def transparent_three_convolutions():
    """Pixels of one, 36 of which, each by a tap of its own, reach the logits."""
    module = classifier("b", 36)
    variables = zeros(module)
    params = variables["params"]
    params["Conv_0"]["kernel"] = params["Conv_0"]["kernel"].at[3, 3, 0, 0].set(1)
    taps = np.zeros((6, 6, 64, 128), np.float32)
    for i in range(36):
        taps[i // 6, i % 6, 0, i] = 1
    params["Conv_1"]["kernel"] = jnp.asarray(taps)
    params["Conv_2"]["kernel"] = params["Conv_2"]["kernel"].at[0, 0].set(jnp.eye(128))
    params["Dense_0"]["kernel"] = jnp.eye(128, 36)
    return module, variables


def transparent_dense():
    module = classifier("d", 200)
    variables = zeros(module)
    params = variables["params"]
    params["Dense_0"]["bias"] = jnp.ones(200)
    params["Dense_1"]["kernel"] = jnp.eye(200)
    params["Dense_2"]["kernel"] = jnp.eye(200)
    return module, variables


@pytest.mark.parametrize(
    ("make", "rates"),
    [
        (lambda: transparent_two_convolutions("a"), (0.25, 0.5)),
        (transparent_three_convolutions, (0.2, 0.5)),
        (lambda: transparent_two_convolutions("c"), (0.25, 0.5)),
        (transparent_dense, (0.5, 0.25)),
    ],
    ids=["a", "b", "c", "d"],
)
def test_the_two_dropouts_of_a_model_are_independent_and_have_the_rates_of_the_table(make, rates):
    module, variables = make()
    keys = jax.random.split(jax.random.key(0), 100)
    apply = jax.jit(module.apply, static_argnums=2)
    logits = np.asarray(apply(variables, jnp.ones((100, 28, 28, 1)), True, keys))
    # What both keep is scaled twice; at least 3600 units, a standard error below one percent.
    kept = np.prod([1 - rate for rate in rates])
    np.testing.assert_allclose(np.unique(logits), [0, 1 / kept], rtol=1e-5)
    np.testing.assert_allclose((logits > 0).mean(), kept, atol=0.03)
