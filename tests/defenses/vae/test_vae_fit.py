"""Training of Defense-VAE and MAD-VAE from end to end, on a few digits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.defenses import (
    ClassifierConfig,
    DefenseVAEConfig,
    MADVAEConfig,
    Mixture,
    VAEConfig,
    fit,
    load_run,
    preset,
)
from memdef_jax.defenses.vae import mad_vae
from memdef_jax.defenses.vae.vae_losses import Terms

MIXTURE = Mixture(attacks=("fgsm", "cw"), rounds=1, cw_steps=2, images=8)
PARTS = {
    "classifier": ClassifierConfig(architecture="e", epochs=1, batch_size=8),
    "mixture": MIXTURE,
    "vae": VAEConfig(latent_size=4, epochs=1, batch_size=8, learning_rate=1e-3),
    "train_size": 16,
    "save_every": 1,
}
TINY = DefenseVAEConfig(**PARTS, end_to_end_epochs=1, variants=("vae", "rec", "e2e"))


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


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """(folder, defenses) of a whole Defense-VAE."""
    folder = tmp_path_factory.mktemp("defense_vae") / "run"
    return folder, fit(TINY, digits, folder)


def same(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), one, other))


def test_the_objectives_of_mad_vae_are_the_papers():
    config = MADVAEConfig()
    terms = {name: config.terms(name) for name in mad_vae.VARIANTS}
    assert terms["vanilla"] == Terms()
    assert terms["identity"] == Terms(identity=True)
    assert terms["classification"] == Terms(classification=0.01)
    assert terms["proximity_distance"] == Terms(proximity=0.01, distance=1e-5)
    assert terms["combined"] == Terms(classification=0.1, proximity=0.01, distance=1e-5)


def test_the_variants_share_what_the_paper_shares(trained):
    _, found = trained
    assert list(found) == ["vae", "rec", "e2e"]
    parts = {name: defense.variables for name, defense in found.items()}
    for variables in parts.values():
        assert same(variables["undefended"], parts["vae"]["undefended"])
    assert same(parts["vae"]["classifier"], parts["vae"]["undefended"])
    assert same(parts["rec"]["vae"], parts["vae"]["vae"])
    assert not same(parts["rec"]["classifier"], parts["vae"]["classifier"])
    for part in ("vae", "classifier"):
        assert not same(parts["e2e"][part], parts["rec"][part])


def test_the_run_is_read_as_it_was_trained(trained, images):
    folder, found = trained
    again = load_run(folder)
    assert list(again) == list(found)
    for name, defense in found.items():
        assert again[name].kind == "defense_vae"
        np.testing.assert_array_equal(again[name](images[0]), defense(images[0]))


def test_a_training_stopped_anywhere_ends_alike(trained, digits, tmp_path):
    config = dataclasses.replace(TINY, variants=("vae", "rec"))
    for stage in ("adversarial examples", "vae", "rec"):
        with pytest.raises(Interrupted):
            fit(config, digits, tmp_path / "run", reporter=Stopping(stage))
    found = fit(config, digits, tmp_path / "run")
    for name, defense in found.items():
        assert same(defense.variables, trained[1][name].variables), name


@pytest.mark.exhaustive
def test_with_the_classifier_and_examples_of_another_run_it_ends_alike(trained, digits, tmp_path):
    fewer = dataclasses.replace(MIXTURE, attacks=("cw",))
    config = dataclasses.replace(TINY, mixture=fewer, variants=("vae",))
    alone = fit(config, digits, tmp_path / "alone")["vae"]
    with pytest.raises(Interrupted):  # nothing of these is made anew
        fit(config, digits, tmp_path / "run", like=trained[0], reporter=Stopping("vae"))
    both = tmp_path / "run"
    assert sorted(p.name for p in (both / "examples").iterdir()) == ["cw_0"]
    assert same(fit(config, digits, both)["vae"].variables, alone.variables)


def test_pairs_can_be_made_in_the_step(digits, tmp_path):
    mixture = dataclasses.replace(MIXTURE, streamed=True)
    config = dataclasses.replace(TINY, mixture=mixture, variants=("e2e_scratch",))
    found = fit(config, digits, tmp_path / "run")
    assert not (tmp_path / "run" / "examples").exists()
    assert bool(jnp.isfinite(found["e2e_scratch"](jnp.zeros((1, 28, 28, 1)))).all())


def test_each_objective_of_mad_vae_gives_another_purifier(digits, tmp_path):
    # The others' terms are those of "combined"; each objective takes seconds to compile.
    names = ("identity", "combined")
    config = MADVAEConfig(**PARTS, classification_epochs=1, variants=names)
    found = fit(config, digits, tmp_path / "run")
    assert list(found) == list(names)
    assert {defense.kind for defense in found.values()} == {"mad_vae"}
    purifiers = [defense.variables["vae"] for defense in found.values()]
    assert not same(*purifiers)
    for defense in found.values():
        assert same(defense.variables["classifier"], defense.variables["undefended"])


@pytest.mark.parametrize("kind", ["defense_vae", "mad_vae"])
def test_presets_have_the_papers_settings_and_small_ones(kind):
    paper, quick = (preset(name, (28, 28, 1), 60_000, kind) for name in ("paper", "quick"))
    three = len(paper.mixture.eps) * len(paper.mixture.attacks)
    assert paper.mixture.per_image == three == {"defense_vae": 12, "mad_vae": 9}[kind]
    assert paper.mixture.images is None
    assert quick.mixture.per_image == 3
    shown = quick.mixture.images * quick.vae.epochs
    assert shown == {"defense_vae": 18_000, "mad_vae": 8000}[kind]
    few = preset("quick", (28, 28, 1), 1000, kind)
    assert few.mixture.images == 1000
    assert few.mixture.images * few.vae.epochs == shown
    assert (
        type(paper).__name__ == {"defense_vae": "DefenseVAEConfig", "mad_vae": "MADVAEConfig"}[kind]
    )
    with pytest.raises(InputError, match="preset 'robust' is unknown; use one of quick, paper"):
        preset("robust", (28, 28, 1), kind=kind)


@pytest.mark.parametrize(
    ("config", "change", "sentence"),
    [
        (DefenseVAEConfig, {"variants": ()}, "use some of vae, rec, e2e, e2e_scratch"),
        (MADVAEConfig, {"variants": ("vae",)}, "use some of identity, vanilla"),
        (DefenseVAEConfig, {"end_to_end_weight": 0.0}, "end_to_end_weight"),
        (DefenseVAEConfig, {"end_to_end_epochs": 0}, "end_to_end_epochs 0 is below 1"),
        (MADVAEConfig, {"proximity_weight": -1.0}, "proximity_weight"),
        (MADVAEConfig, {"seed": -1}, "seed -1 is negative"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(config, change, sentence):
    with pytest.raises(InputError, match=sentence):
        config(**change)


def test_other_settings_are_refused_in_the_same_folder(trained, digits):
    other = dataclasses.replace(TINY, end_to_end_weight=2.0)
    with pytest.raises(InputError, match=r"end_to_end_weight was 1\.0 there and is 2\.0 now"):
        fit(other, digits, trained[0])
