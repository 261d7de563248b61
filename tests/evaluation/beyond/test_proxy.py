"""The stand-in for people: it learns, goes on where it was stopped, and is asked batch by batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.data import Split, to_float
from memdef_jax.data.dataset import make_dataset
from memdef_jax.evaluation.beyond import proxy

EPOCHS, STEPS = 6, 12


@pytest.fixture(scope="module")
def halves():
    """Noisy 8x8 images, bright on the left (class 0) or on the right (class 1)."""
    rng = np.random.default_rng(0)

    def split(size):
        labels = rng.integers(0, 2, size).astype(np.int32)
        bright = (np.arange(8) >= 4) == labels[:, None]
        pixels = rng.integers(0, 120, (size, 8, 8)) + 100 * bright[:, None, :]
        return Split(pixels[..., None].astype(np.uint8), labels)

    return make_dataset("halves", ("left", "right"), split(200), split(60), "handmade")


@pytest.fixture(scope="module")
def trained(halves, tmp_path_factory):
    """(folder, the proxy as an uninterrupted training leaves it)."""
    folder = tmp_path_factory.mktemp("whole") / "proxy"
    return folder, proxy.fit_proxy(halves, folder, architecture="e", epochs=EPOCHS)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)


def test_it_learns_classes_that_can_be_told_apart(halves, trained):
    _, model = trained
    assert proxy.accuracy(model, halves.test) > 0.95
    logits = model(jnp.asarray(to_float(halves.test.images)))
    assert proxy.accuracy(model, halves.test) == np.mean(logits.argmax(-1) == halves.test.labels)


def test_a_stopped_training_goes_on_and_gives_the_same(
    halves, trained, tmp_path, notes, monkeypatch
):
    folder, whole = trained
    monkeypatch.setattr(proxy, "_SAVE_EVERY", 5)
    with pytest.raises(ConnectionResetError):
        proxy.fit_proxy(
            halves, tmp_path, architecture="e", epochs=EPOCHS, reporter=notes(fail_at=8)
        )
    reporter = notes()
    again = proxy.fit_proxy(halves, tmp_path, architecture="e", epochs=EPOCHS, reporter=reporter)
    assert reporter.started == [("proxy", 5, STEPS, 100)]
    same(again, whole)
    reporter = notes()
    same(proxy.fit_proxy(halves, folder, architecture="e", epochs=EPOCHS, reporter=reporter), whole)
    assert reporter.started == [("proxy", STEPS, STEPS, 100)]


def test_what_does_not_fit_is_refused(halves, trained, tmp_path):
    folder, _ = trained
    for settings, sentence in (
        ({"architecture": "f"}, "classifier 'f' is unknown"),
        ({"epochs": 0}, "epochs 0 is below 1"),
        ({"seed": -1}, "seed -1 is negative"),
    ):
        with pytest.raises(InputError, match=sentence):
            proxy.fit_proxy(halves, tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="holds another run: seed was 1 there and is 2 now"):
        proxy.fit_proxy(halves, folder, architecture="e", epochs=EPOCHS, seed=2)


def test_answers_are_the_classes_of_the_largest_logits(halves, trained):
    _, model = trained
    images = to_float(halves.test.images)[:7]
    expected = np.argmax(model(jnp.asarray(images)), axis=-1)
    found = proxy.answers(model, images)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)
