import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError, check_eps, check_images, check_labels, is_traced

IMAGES = np.full((2, 4, 4, 1), 0.5, np.float32)


def images_with(value):
    x = IMAGES.copy()
    x[1, 2, 3, 0] = value
    return x


# --- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("x", [IMAGES, images_with(0.0), images_with(1.0), IMAGES[:0]])
def test_images_within_zero_and_one_pass(make, x):
    check_images(make(x))


def test_a_single_image_is_refused_and_the_missing_axis_named():
    with pytest.raises(InputError) as error:
        check_images(IMAGES[0])
    assert str(error.value) == (
        "images have shape (4, 4, 1); four axes [batch, height, width, channels] are needed, "
        "so add the missing axis (a single image is x[None])."
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.float16, np.int32])
def test_images_of_another_dtype_are_refused_and_the_conversion_named(dtype):
    with pytest.raises(InputError) as error:
        check_images(IMAGES.astype(dtype))
    assert str(error.value) == (
        f"images have dtype {np.dtype(dtype)}; float32 in [0, 1] is needed: "
        "convert uint8 with x.astype('float32') / 255."
    )


def test_nested_lists_have_no_dtype_and_are_refused():
    with pytest.raises(InputError, match="images have dtype None; float32"):
        check_images(IMAGES.tolist())


def test_images_with_nan_are_refused():
    with pytest.raises(InputError) as error:
        check_images(images_with(np.nan))
    assert str(error.value) == (
        "images contain NaN; clean the data before attacking or training on it."
    )


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        (-0.25, "[-0.25, 0.5]"),
        (1.5, "[0.5, 1.5]"),
        (255.0, "[0.5, 255]"),
        (np.inf, "[0.5, inf]"),
        (-np.inf, "[-inf, 0.5]"),
    ],
)
@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
def test_images_outside_zero_and_one_are_refused_with_their_range(make, value, bounds):
    with pytest.raises(InputError) as error:
        check_images(make(images_with(value)))
    assert str(error.value) == (
        f"images lie in {bounds}, outside [0, 1]; "
        "undo any normalisation and put it inside the model instead."
    )


def test_the_smallest_step_above_one_is_refused():
    with pytest.raises(InputError, match="outside"):
        check_images(images_with(np.nextafter(np.float32(1), np.float32(2))))


@pytest.mark.parametrize("x", [IMAGES[0], IMAGES.astype(np.uint8), images_with(2.0)])
def test_the_sentence_names_what_was_checked(x):
    with pytest.raises(InputError, match=r"^starting points (have|lie)"):
        check_images(x, name="starting points")


# --- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_integer_labels_within_the_classes_pass(dtype):
    check_labels(np.asarray([0, 2, 1], dtype), batch=3, classes=3)
    check_labels(jnp.asarray([0, 2, 1]), batch=3, classes=3)


def test_without_the_number_of_classes_any_integer_passes():
    check_labels(np.asarray([-7, 1000]), batch=2)


def test_an_empty_batch_of_labels_passes():
    check_labels(np.zeros(0, np.int32), batch=0, classes=3)


@pytest.mark.parametrize("shape", [(2,), (3, 1), (3, 10), ()])
def test_labels_that_are_not_one_an_image_are_refused(shape):
    with pytest.raises(InputError) as error:
        check_labels(np.zeros(shape, np.int32), batch=3)
    assert str(error.value) == (
        f"labels have shape {shape} beside 3 images; one integer an image is needed."
    )


@pytest.mark.parametrize("dtype", [np.float32, np.bool_])
def test_labels_that_are_not_integers_are_refused(dtype):
    with pytest.raises(InputError) as error:
        check_labels(np.zeros(3, dtype), batch=3)
    assert str(error.value) == (
        f"labels have dtype {np.dtype(dtype)}; int32 class indices are needed."
    )


def test_a_list_of_labels_has_no_dtype_and_is_refused():
    with pytest.raises(InputError, match="labels have dtype None; int32 class indices"):
        check_labels([0, 1, 2], batch=3)


@pytest.mark.parametrize(("labels", "bad"), [([0, 3], 3), ([-1, 2], -1), ([-2, 9], -2)])
@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
def test_a_label_outside_the_classes_is_refused_and_shown(make, labels, bad):
    with pytest.raises(InputError) as error:
        check_labels(make(labels), batch=2, classes=3)
    assert str(error.value) == f"label {bad} is outside the 3 classes 0 to 2."


# --- eps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0, 0.0, 8 / 255, 1, 1.0, np.float32(0.1), [0.0, 0.5], ()])
def test_a_budget_within_zero_and_one_passes(eps):
    check_eps(eps)
    check_eps(jnp.asarray(eps))


@pytest.mark.parametrize(
    ("eps", "shown"),
    [
        (-0.1, "-0.1"),
        (8, "8"),
        (1.01, "1.01"),
        (np.nan, "nan"),
        (np.inf, "inf"),
        ([0.1, 2.0, -3.0], "2"),
        (np.asarray([[0.1], [-0.5]]), "-0.5"),
    ],
)
def test_a_budget_outside_zero_and_one_is_refused_and_the_units_named(eps, shown):
    with pytest.raises(InputError) as error:
        check_eps(eps)
    assert str(error.value) == (
        f"eps {shown} is outside [0, 1]; give it in units of [0, 1] pixels, for example 8/255."
    )


def test_the_sentence_names_the_budget():
    with pytest.raises(InputError, match=r"^step size 3 is outside"):
        check_eps(jnp.float32(3), name="step size")


# --- traces --------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad])
def test_values_under_a_trace_are_unknown_and_pass(transform):
    def checked(x):
        assert is_traced(x)
        check_images(jnp.broadcast_to(x, (2, 4, 4, 1)))
        check_eps(x)
        return x

    value = jnp.asarray([99.0]) if transform is jax.vmap else jnp.asarray(99.0)
    transform(checked)(value)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap])
def test_labels_under_a_trace_are_unknown_and_pass(transform):
    def checked(y):
        assert is_traced(y)
        check_labels(jnp.broadcast_to(y, (2,)), batch=2, classes=3)
        return y

    transform(checked)(jnp.asarray([99]) if transform is jax.vmap else jnp.asarray(99))


def test_shapes_and_dtypes_are_checked_under_a_trace_too():
    with pytest.raises(InputError, match="images have shape"):
        jax.jit(check_images)(IMAGES[0])
    with pytest.raises(InputError, match="images have dtype"):
        jax.jit(check_images)(IMAGES.astype(np.uint8))
    with pytest.raises(InputError, match="labels have shape"):
        jax.jit(lambda y: check_labels(y, batch=3))(np.zeros(2, np.int32))
    with pytest.raises(InputError, match="labels have dtype"):
        jax.jit(lambda y: check_labels(y, batch=2))(np.zeros(2, np.float32))


def test_one_traced_leaf_makes_a_tree_traced():
    seen = []

    @jax.jit
    def function(x):
        seen.append(is_traced({"a": [1.0, x]}, 2.0))
        seen.append(is_traced({"a": [1.0, IMAGES]}, "text", None))
        return x

    function(1.0)
    assert seen == [True, False]
    assert not is_traced()
    assert not is_traced(jnp.ones(2), 3)


def test_an_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)
