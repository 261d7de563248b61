import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.nn import MemoryAutoencoder, autoencoder
from memdef_jax.nn.autoencoder import Encoder, architecture
from memdef_jax.nn.layers import Conv, ConvTranspose

FASHION, CIFAR = (28, 28, 1), (32, 32, 3)

# Table 4 as (in, out, kernel, stride, padding) of each convolution, and (in, out, output padding)
# of each transposed one (kernel 3, stride 2, padding 1). Every one but the last has BatchNorm.
TABLE_4 = {
    FASHION: (
        [(1, 16, 1, 2, 1), (16, 32, 3, 2, 1), (32, 64, 3, 2, 1)],
        [(64, 32, 0), (32, 16, 1), (16, 1, 1)],
    ),
    CIFAR: (
        [(3, 64, 3, 2, 1), (64, 128, 3, 2, 1), (128, 128, 3, 2, 1), (128, 256, 3, 2, 1)],
        [(256, 128, 1), (128, 128, 1), (128, 64, 1), (64, 3, 1)],
    ),
}
SIZES = {
    FASHION: ([(15, 16), (8, 32), (4, 64)], [(7, 32), (14, 16), (28, 1)]),
    CIFAR: (
        [(16, 64), (8, 128), (4, 128), (2, 256)],
        [(4, 128), (8, 128), (16, 64), (32, 3)],
    ),
}


def shapes(module, images=2):
    """Shapes of the variables, without computing them."""
    x = jnp.zeros((images, *module.image_shape))
    return jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(images, jnp.int32))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def trained():
    """A small Fashion-MNIST model whose running statistics are not the initial ones."""
    module = MemoryAutoencoder(FASHION, classes=3, rows=12)
    template = shapes(module)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        values = rng.normal(size=leaf.shape)
        if name in ("var", "scale"):
            values = np.exp(0.3 * values)
        elif name == "kernel":
            values *= np.prod(leaf.shape[:-1]) ** -0.5
        return jnp.float32(values)

    variables = jax.tree_util.tree_map_with_path(draw, template)
    x = jnp.float32(rng.uniform(size=(3, *FASHION)))
    return module, variables, x


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def leaky(x):
    return np.where(x > 0, x, x / 4)


def encoded(x, variables, reference):
    params, stats = variables["params"]["encoder"], variables["batch_stats"]["encoder"]
    for i, (_, _, _, stride, padding) in enumerate(TABLE_4[FASHION][0]):
        layer = params[f"Conv_{i}"]
        x = reference.conv2d(x, np.asarray(layer["kernel"]), stride, padding) + layer["bias"]
        x = reference.batch_norm(x, params[f"BatchNorm_{i}"], stats[f"BatchNorm_{i}"])
        x = sigmoid(x) if i == 2 else leaky(x)
    return x.reshape(len(x), -1)


def recalled(z, labels, memory, slots):
    """The read-out as a softmax over the cosines with the rows of the class alone."""
    out = []
    for vector, label in zip(z, labels, strict=True):
        rows = np.asarray(memory, np.float64)[label * slots : (label + 1) * slots]
        e = np.exp(rows @ vector / np.linalg.norm(rows, axis=1) / np.linalg.norm(vector))
        out.append(e / e.sum() @ rows)
    return np.stack(out)


def decoded(z, variables, reference):
    params, stats = variables["params"]["decoder"], variables["batch_stats"]["decoder"]
    x = z.reshape(len(z), 4, 4, 64)
    for i, (_, _, output_padding) in enumerate(TABLE_4[FASHION][1]):
        layer = params[f"ConvTranspose_{i}"]
        weight = np.asarray(layer["kernel"]).transpose(3, 2, 0, 1)
        x = reference.conv_transpose2d(x, weight, 2, 1, output_padding) + layer["bias"]
        if i < 2:
            x = leaky(reference.batch_norm(x, params[f"BatchNorm_{i}"], stats[f"BatchNorm_{i}"]))
    return x


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_shape", [FASHION, CIFAR])
def test_the_layers_have_the_sizes_of_table_4(image_shape):
    module = MemoryAutoencoder(image_shape, classes=10, rows=20)
    x = jnp.zeros((2, *image_shape))

    def run(variables):
        return module.apply(
            variables,
            x,
            jnp.zeros(2, jnp.int32),
            capture_intermediates=lambda m, _: isinstance(m, (Conv, ConvTranspose)),
        )

    output, state = jax.eval_shape(run, shapes(module))
    for part, sizes in zip(("encoder", "decoder"), SIZES[image_shape], strict=True):
        layers = state["intermediates"][part].values()
        actual = [layer["__call__"][0].shape for layer in layers]
        assert actual == [(2, size, size, features) for size, features in sizes]
    assert output.shape == x.shape


@pytest.mark.parametrize("image_shape", [FASHION, CIFAR])
def test_the_latent_vector_has_1024_elements(image_shape):
    module = MemoryAutoencoder(image_shape, classes=10, rows=20)
    z = jax.eval_shape(
        lambda v: module.apply(v, jnp.zeros((2, *image_shape)), method="encode"), shapes(module)
    )
    assert z.shape == (2, 1024)


@pytest.mark.parametrize("image_shape", [FASHION, CIFAR])
@pytest.mark.parametrize("rows", [0, 500])
def test_the_parameters_are_those_of_table_4(image_shape, rows):
    convolutions, transposed = TABLE_4[image_shape]
    weights = sum(k * k * i * o + o for i, o, k, _, _ in convolutions)
    weights += sum(9 * i * o + o for i, o, _ in transposed)
    channels = sum(o for _, o, *_ in convolutions) + sum(o for _, o, _ in transposed[:-1])
    variables = shapes(MemoryAutoencoder(image_shape, classes=10, rows=rows))
    assert count(variables["params"]) == weights + 2 * channels + 1024 * rows
    assert count(variables["batch_stats"]) == 2 * channels


def test_another_image_shape_is_refused():
    with pytest.raises(InputError, match=r"images of 64x64x3 have no .* 28x28x1 or 32x32x3"):
        architecture((64, 64, 3))
    with pytest.raises(InputError, match="images of 28x28x3"):
        shapes(MemoryAutoencoder((28, 28, 3), classes=10))


@pytest.mark.parametrize("rows", [-1, 5, 25])
def test_rows_that_cannot_be_shared_between_the_classes_are_refused(rows):
    with pytest.raises(InputError, match=f"memory rows {rows} are"):
        shapes(MemoryAutoencoder(FASHION, classes=10, rows=rows))


def test_images_of_another_size_than_the_model_are_not_mistaken_for_another_batch():
    # 16 images of 32x32 have as many latent elements as 25 of 28x28.
    module = MemoryAutoencoder(FASHION, classes=10, rows=0)
    with pytest.raises(TypeError, match="reshape"):
        jax.eval_shape(
            lambda v: module.apply(v, jnp.zeros((16, 32, 32, 1)), jnp.zeros(16, jnp.int32)),
            shapes(module),
        )


def test_the_memory_starts_uniform_within_the_root_of_six_over_its_width():
    module = MemoryAutoencoder(FASHION, classes=10, rows=50)
    variables = module.init(jax.random.key(0), jnp.ones((1, 1024)), method="address")
    memory, bound = np.asarray(variables["params"]["memory"]), (6 / 1024) ** 0.5
    assert memory.shape == (50, 1024)
    assert np.abs(memory).max() <= bound
    # 51,200 draws: the standard error of the standard deviation is below half a percent.
    np.testing.assert_allclose(memory.std(), bound / 3**0.5, rtol=0.02)


# --- values --------------------------------------------------------------------------------------


def test_the_latent_vector_equals_the_encoder_of_table_4_in_numpy(trained, reference):
    module, variables, x = trained
    z = module.apply(variables, x, method="encode")
    assert ((z > 0) & (z < 1)).all()
    np.testing.assert_allclose(z, encoded(np.asarray(x), variables, reference), atol=1e-5)


def test_the_reconstruction_equals_the_pipeline_in_numpy(trained, reference):
    module, variables, x = trained
    labels = np.asarray([2, 0, 1])
    z = encoded(np.asarray(x), variables, reference)
    z = recalled(z, labels, variables["params"]["memory"], slots=4)
    expected = decoded(z, variables, reference)
    actual = module.apply(variables, x, jnp.asarray(labels), method="reconstruct")
    # Three layers of sums of up to 576 terms in float32, on outputs of size about ten.
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(module.apply(variables, x, jnp.asarray(labels)), actual, atol=1e-5)


def test_without_memory_the_latent_vector_goes_straight_to_the_decoder(trained, reference):
    _, variables, x = trained
    module = MemoryAutoencoder(FASHION, classes=3, rows=0)
    assert "memory" not in shapes(module)["params"]
    params = {k: v for k, v in variables["params"].items() if k != "memory"}
    plain = {"params": params, "batch_stats": variables["batch_stats"]}
    expected = decoded(encoded(np.asarray(x), variables, reference), variables, reference)
    for labels in (jnp.asarray([0, 1, 2]), jnp.asarray([1, 1, 1])):
        for method in ("reconstruct", "__call__"):
            actual = module.apply(plain, x, labels, method=method)
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)


def test_an_integer_label_chooses_the_same_slot_as_its_one_hot_vector(trained):
    module, variables, x = trained
    labels = jnp.asarray([2, 0, 1])
    hard = module.apply(variables, x, labels, method="reconstruct")
    soft = module.apply(variables, x, jnp.eye(3)[labels], method="reconstruct")
    np.testing.assert_allclose(hard, soft, atol=1e-5)


def test_only_the_rows_of_the_chosen_class_reach_the_reconstruction(trained):
    module, variables, x = trained
    labels = jnp.full(3, 1)

    def with_row(row):
        params = dict(variables["params"])
        params["memory"] = params["memory"].at[row].multiply(-3.0)
        return module.apply({**variables, "params": params}, x, labels, method="reconstruct")

    before = module.apply(variables, x, labels, method="reconstruct")
    for row in (3, 8):
        np.testing.assert_allclose(with_row(row), before, rtol=1e-4, atol=1e-4)
    for row in (4, 7):
        assert np.abs(with_row(row) - before).max() > 0.01


def test_the_complement_reads_the_rows_of_all_the_other_classes(trained):
    module, variables, x = trained
    model = module.bind(variables)
    weights = model.address(model.encode(x))
    others = model.mask(weights, jnp.asarray([2, 0, 1]), complement=True)
    np.testing.assert_allclose(weights.sum(axis=1), np.ones(3), rtol=1e-5)
    np.testing.assert_allclose(others.sum(axis=1), np.ones(3), rtol=1e-5)
    for row, label in zip(others, (2, 0, 1), strict=True):
        np.testing.assert_array_equal(row[4 * label : 4 * label + 4], 0)
    np.testing.assert_allclose(
        model.recall(others), others @ variables["params"]["memory"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("order", "identity_gradient"), [("shrink_mask", False), ("mask_shrink", True)]
)
def test_a_threshold_that_empties_the_memory_decodes_zero_with_a_finite_gradient(
    order, identity_gradient, trained
):
    _, variables, x = trained
    module = MemoryAutoencoder(FASHION, classes=3, rows=12, threshold=2.0, order=order)
    labels = jnp.asarray([2, 0, 1])

    def total(x):
        rebuilt = module.apply(
            variables, x, labels, identity_gradient=identity_gradient, method="reconstruct"
        )
        return rebuilt.sum(), rebuilt

    (_, rebuilt), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(x)
    expected = module.apply(variables, jnp.zeros((3, 1024)), method="decode")
    np.testing.assert_allclose(rebuilt, expected, atol=1e-5)
    assert np.isfinite(gradient).all()
    assert gradient.any() == identity_gradient


# --- BatchNorm -----------------------------------------------------------------------------------


def test_training_moves_the_running_statistics_a_tenth_towards_the_batch(trained, reference):
    module, variables, x = trained
    labels = jnp.asarray([2, 0, 1])
    _, state = module.apply(variables, x, labels, train=True, mutable="batch_stats")

    old = variables["batch_stats"]["encoder"]["BatchNorm_0"]
    new = state["batch_stats"]["encoder"]["BatchNorm_0"]
    layer = variables["params"]["encoder"]["Conv_0"]
    first = reference.conv2d(np.asarray(x), np.asarray(layer["kernel"]), 2, 1) + layer["bias"]
    mean, var = first.mean(axis=(0, 1, 2)), first.var(axis=(0, 1, 2))
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * var, rtol=1e-4)

    before, after = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(state)
    assert len(before) == len(after) == 2 * 5
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, after, strict=True))


def test_evaluation_leaves_the_running_statistics_alone(trained):
    module, variables, x = trained
    _, state = module.apply(variables, x, jnp.asarray([2, 0, 1]), mutable="batch_stats")
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])


def test_training_normalises_by_the_batch_and_evaluation_image_by_image(trained):
    module, variables, x = trained
    labels = jnp.asarray([2, 0, 1])
    changed = x.at[1:].multiply(0.5)
    first, second = (module.apply(variables, images, labels) for images in (x, changed))
    np.testing.assert_allclose(first[0], second[0], rtol=1e-4, atol=1e-4)
    first, second = (
        module.apply(variables, images, labels, True, mutable="batch_stats")[0]
        for images in (x, changed)
    )
    assert np.abs(first[0] - second[0]).max() > 0.01


def test_batch_norm_over_a_mesh_axis_sees_the_whole_batch(trained):
    _, variables, x = trained
    x = jnp.concatenate([x, x[:1] ** 2])
    part = {k: v["encoder"] for k, v in variables.items()}
    arch = architecture(FASHION)

    def encode(x, axis_name=None):
        return Encoder(arch, axis_name).apply(part, x, True, mutable="batch_stats")

    whole, state = jax.jit(encode)(x)
    # Variances are differences of squares in float32, which costs two digits.
    sharded = jax.vmap(lambda x: encode(x, "data"), axis_name="data")
    shards, states = jax.jit(sharded)(x.reshape(2, 2, *FASHION))
    np.testing.assert_allclose(shards.reshape(4, -1), whole, atol=1e-4)
    for i in range(2):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5),
            states["batch_stats"],
            state["batch_stats"],
        )


@pytest.mark.parametrize(("few", "many"), [(0, 2), (8, 9), (0, 9)])  # sorted, copied, masked
def test_however_the_slots_are_read_the_images_are_those_of_the_masked_address(
    few, many, monkeypatch
):
    monkeypatch.setattr(autoencoder.mem, "FEW", few)
    monkeypatch.setattr(autoencoder.mem, "MANY", many)
    module = MemoryAutoencoder(FASHION, classes=10, rows=20)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *FASHION)), jnp.zeros(1, int))
    rng = np.random.default_rng(0)
    x, labels = jnp.float32(rng.uniform(size=(5, *FASHION))), jnp.array([3, 1, 3, 9, 3])

    def masked(module, x):
        weights = module.mask(module.address(module.encode(x)), labels)
        return module.decode(module.recall(weights))

    found = jax.jit(lambda x: module.apply(variables, x, labels, method="reconstruct"))(x)
    expected = jax.jit(lambda x: module.apply(variables, x, method=masked))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
