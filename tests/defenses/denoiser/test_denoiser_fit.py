"""Training of the denoisers from end to end, on a few digits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from memdef_jax.attacks import FGSM, PGD
from memdef_jax.checks import InputError
from memdef_jax.defenses import (
    ClassifierConfig,
    DenoiserConfig,
    ExamplesConfig,
    FeatureDenoiserConfig,
    HGDConfig,
    LossNetworkConfig,
    fit,
    load_run,
    preset,
)
from memdef_jax.defenses.denoiser import loss_network
from memdef_jax.nn import torch_layout, vgg
from memdef_jax.nn.vgg import VGG16Features

PARTS = {
    "classifier": ClassifierConfig(architecture="e", epochs=1, batch_size=8),
    "examples": ExamplesConfig(images=8, pgd_steps=2),
    "train_size": 16,
    "save_every": 1,
}
TINY = FeatureDenoiserConfig(
    **PARTS,
    loss_network=LossNetworkConfig(
        width=1 / 64, images=8, epochs=1, batch_size=8, layers=("pool1",)
    ),
    denoiser=DenoiserConfig(epochs=2, batch_size=8),
    variants=("perceptual", "pixel"),
)


class Interrupted(Exception):
    pass


@dataclasses.dataclass
class Stopping:
    """A reporter that ends the training in a stage."""

    stage: str
    at: int = 1
    now: str = ""

    def start(self, stage, done, total, items_per_step):
        self.now = stage

    def update(self, step, metrics):
        if (self.now, step) == (self.stage, self.at):
            raise Interrupted

    def note(self, text):
        pass


def same(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), one, other))


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """(folder, defenses) of a whole feature-map denoiser, stopped once on the way.

    Its loss network has four convolutions instead of thirteen, which take long to compile.
    """
    folder = tmp_path_factory.mktemp("denoiser") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg, "BLOCKS", ((64, 1), (64, 0), (64, 0), (64, 0), (64, 3)))
        with pytest.raises(Interrupted):
            fit(TINY, digits, folder, reporter=Stopping("pixel", at=2))
        return folder, fit(TINY, digits, folder)


def test_the_defaults_are_the_papers():
    config = FeatureDenoiserConfig()
    assert config.classifier.architecture == "lenet"
    assert config.loss_network.layers == ("relu5_3", "pool3", "pool2")
    assert config.denoiser == DenoiserConfig(
        width=1.0, epochs=100, batch_size=128, learning_rate=1e-3, weight_decay=1e-5
    )
    assert config.examples.attack("fgsm") == FGSM(eps=0.2, early_stop=False)
    assert config.examples.attack("pgd") == PGD(eps=0.2, step_size=0.1, steps=100, early_stop=False)
    for kind in ("feature_denoiser", "hgd"):
        assert preset("paper", (28, 28, 1), kind=kind).examples.images is None
        assert preset("quick", (28, 28, 1), 1437, kind=kind).examples.images == 1437


def test_the_variants_share_the_classifier_and_the_beginning(trained):
    _, found = trained
    assert list(found) == ["perceptual", "pixel"]
    one, other = (found[name].variables for name in found)
    assert same(one["classifier"], other["classifier"])
    assert not same(one["denoiser"], other["denoiser"])


def test_the_run_says_which_loss_network_it_had(trained):
    folder, _ = trained
    run = json.loads((folder / "run.json").read_text())["run"]
    assert run["loss_network"] == "VGG-16 of width 0.015625, trained on digits"
    assert (folder / "loss_network").is_dir()


def test_the_run_is_read_as_it_was_trained(trained):
    folder, found = trained
    again = load_run(folder)
    assert list(again) == list(found)
    for name, defense in found.items():
        assert (again[name].kind, again[name].spec) == ("feature_denoiser", defense.spec)
        assert same(again[name].variables, defense.variables)


def test_a_training_that_was_stopped_ends_like_one_that_was_not(trained, digits, tmp_path):
    # And a variant does not depend on which others are trained.
    found = fit(dataclasses.replace(TINY, variants=("pixel",)), digits, tmp_path / "run")
    assert not (tmp_path / "run" / "loss_network").exists()
    assert same(found["pixel"].variables, trained[1]["pixel"].variables)


def test_an_hgd_is_trained_by_what_the_classifier_sees(digits, tmp_path):
    config = HGDConfig(
        **PARTS,
        denoiser=DenoiserConfig(width=1 / 64, epochs=1, batch_size=8),
        variants=("logits",),
    )
    found = fit(config, digits, tmp_path / "run")
    assert found["logits"].kind == "hgd"
    noise = found["logits"].variables["denoiser"]["params"]["noise"]["kernel"]
    assert float(jnp.abs(noise).max()) > 0  # it was zero
    statistics = jax.tree.leaves(found["logits"].variables["denoiser"]["batch_stats"])
    assert any(float(jnp.abs(leaf).max()) > 0 for leaf in statistics)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(path, like): a file of a whole VGG-16 in torch's layout, with the dense layers it also has.

    All zeros but the biases, so that it is written quickly.
    """
    like = jax.eval_shape(VGG16Features().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    found = {
        f"features.{name}": np.full(shape, len(shape) == 1, np.float16)
        for name, shape in torch_layout.names(like).items()
    }
    found["features.0.weight"][5, 2, 1, 0] = 7
    found["classifier.6.bias"] = np.zeros(1000, np.float16)
    path = tmp_path_factory.mktemp("weights") / "vgg16.safetensors"
    save_file(found, path)
    return path, found


def test_a_loss_network_is_read_from_a_file(weights):
    path, _ = weights
    config = LossNetworkConfig(weights=str(path))
    params = loss_network.imported(config)
    assert params["0"]["kernel"].shape == (3, 3, 3, 64)
    assert params["0"]["kernel"][1, 0, 2, 5] == 7
    np.testing.assert_array_equal(params["28"]["bias"], np.ones(512))
    words = loss_network.described(config, "mnist")
    assert words.startswith("VGG-16 of vgg16.safetensors, SHA-256 ")


def test_the_first_layer_of_a_file_that_does_not_fit_is_named(weights, tmp_path):
    _, content = weights
    narrow = {**content, "features.10.weight": content["features.10.weight"][:, :64]}
    for found, sentence in (
        (narrow, r"features\.10\.weight of .* is \[256, 64, 3, 3\] and \[256, 128, 3, 3\] here"),
        ({"features.0.bias": content["features.0.bias"]}, r"has no array features\.0\.weight"),
    ):
        path = tmp_path / "other.safetensors"
        save_file({name: np.ascontiguousarray(array) for name, array in found.items()}, path)
        with pytest.raises(InputError, match=sentence):
            loss_network.imported(LossNetworkConfig(weights=str(path)))


@pytest.mark.parametrize(
    ("config", "change", "sentence"),
    [
        (FeatureDenoiserConfig, {"variants": ()}, "use some of perceptual, pixel, wide"),
        (HGDConfig, {"variants": ("pixel",)}, "use some of logits, features"),
        (FeatureDenoiserConfig, {"wide_width": 0.0}, "wide_width"),
        (HGDConfig, {"seed": -1}, "seed -1 is negative"),
        (HGDConfig, {"save_every": 0}, "save_every 0 is below 1"),
        (LossNetworkConfig, {"layers": ("fc7",)}, "VGG-16 has no feature map 'fc7'"),
        (LossNetworkConfig, {"weights": "a.npz", "width": 0.5}, "use width 1"),
        (LossNetworkConfig, {"images": 0}, "images 0 is below 1"),
        (ExamplesConfig, {"attacks": ("cw",)}, "use some of fgsm, pgd"),
        (ExamplesConfig, {"eps": 2.0}, r"outside \[0, 1\]"),
        (ExamplesConfig, {"images": 0}, "images 0 is below 1"),
        (ExamplesConfig, {"pgd_steps": 0}, "steps 0"),
        (DenoiserConfig, {"epochs": 0}, "epochs 0 is below 1"),
        (DenoiserConfig, {"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(config, change, sentence):
    with pytest.raises(InputError, match=sentence):
        config(**change)


def test_images_of_other_sizes_are_refused_before_any_work(digits, tmp_path):
    info = dataclasses.replace(digits.info, image_shape=(32, 32, 1))
    with pytest.raises(InputError, match="--gray --image-size 28"):
        fit(TINY, dataclasses.replace(digits, info=info), tmp_path / "run")
    assert not (tmp_path / "run").exists()
