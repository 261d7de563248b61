"""Which data an evaluation reads for a run."""

import types

import numpy as np
import pytest
from PIL import Image

from memdef_jax import data
from memdef_jax.checks import InputError
from memdef_jax.evaluation.program import Where, load_dataset
from memdef_jax.training.run import open_run


def test_images_are_gray_again_where_the_run_had_them_gray(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        (tmp_path / "pictures" / part / "one").mkdir(parents=True)
        picture = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        picture.save(tmp_path / "pictures" / part / "one" / "0.png")
    name = f"folder:{tmp_path / 'pictures'}"
    trained_on = data.load(name, gray=True, image_size=4)
    folder = tmp_path / "run"
    open_run(folder, {"dataset": name, "fingerprint": trained_on.info.fingerprint})

    def of(*shape):
        return {"one": types.SimpleNamespace(spec=types.SimpleNamespace(image_shape=shape))}

    found = load_dataset(folder, of(4, 4, 1), Where(dataset=name))
    np.testing.assert_array_equal(found.test.images, trained_on.test.images)
    with pytest.raises(InputError, match="give the data it was trained on"):
        load_dataset(folder, of(4, 4, 3), Where(dataset=name))
