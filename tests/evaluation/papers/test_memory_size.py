"""Error against memory size: two handmade stacks over one classifier-A, measured and drawn."""

import dataclasses
import importlib
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from PIL import Image

from memdef_jax import attacks, data
from memdef_jax.checks import InputError
from memdef_jax.defenses import MemoryDefense, MemoryDefenseConfig, store
from memdef_jax.evaluation.papers import memory_size, stacks
from tests.evaluation import handmade

COUNT, EPS = 12, 0.1


def with_rows(defense, rows):
    """The defense with every so-many-th row of its memory."""
    stack = defense.variables["stack"]
    auto = stack["params"]["autoencoder"]
    auto = {**auto, "memory": auto["memory"][:: len(auto["memory"]) // rows]}
    stack = {**stack, "params": {**stack["params"], "autoencoder": auto}}
    spec = dataclasses.replace(defense.spec, memory_rows=rows)
    return MemoryDefense(spec, {**defense.variables, "stack": stack})


@pytest.fixture(scope="module")
def start(template):
    """start(*arguments): the program, with stacks that are handed out in place of trained."""

    def fit(config, dataset, folder, reporter):
        trained = {"benign": with_rows(template, config.stack.memory_rows)}
        handmade.write_run(folder, dataset, trained)
        return trained

    program = importlib.import_module("eval.memory_size")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacks, "fit", fit)
        patch.setattr(stacks, "open_run", lambda folder, description: None)
        yield lambda *arguments: tyro.cli(program.main, args=[str(a) for a in arguments])


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    return [
        "--run", folder, "--dataset", "digits", "--rows", "20", "10", "--train-size", "128",
        "--epochs", "1", "--attacks", "fgsm", "--eps", EPS, "--count", COUNT,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(start, arguments):
    """The folder after the program has run."""
    start(*arguments)
    return arguments[1]


def stored(trained, rows):
    return store.load(trained / "digits" / f"memory_rows={rows}" / "defenses" / "benign")


@pytest.fixture(scope="module")
def numbers(trained):
    return json.loads((trained / "memory_size.json").read_text())["digits"]


def test_sizes_come_in_order_over_one_classifier_a(trained, numbers):
    assert [size["rows"] for size in numbers] == [10, 20]
    one, other = (stored(trained, rows) for rows in (10, 20))
    assert (one.spec.memory_rows, other.spec.memory_rows) == (10, 20)
    mine, theirs = (d.variables["selector"]["params"]["Dense_1"]["kernel"] for d in (one, other))
    np.testing.assert_array_equal(mine, theirs)


def test_errors_are_those_of_the_deployed_reconstruction(trained, numbers, digits):
    selected = jax.jit(lambda selector, x: selector(x))
    split = digits.test[:COUNT]
    x, y = data.to_float(jnp.asarray(split.images)), jnp.asarray(split.labels)
    for size in numbers:
        defense = stored(trained, size["rows"])
        attack = attacks.FGSM(eps=EPS, early_stop=False)
        for name, images in (("clean", x), ("fgsm", attack(defense.selector, x, y))):
            slots = jnp.argmax(selected(defense.selector, images), axis=-1)
            rebuilt = handmade.rebuild(defense, images, slots)
            expected = np.square(np.asarray(images, np.float64) - rebuilt).reshape(COUNT, -1)
            np.testing.assert_allclose(size["errors"][name], expected.mean(axis=1), rtol=1e-4)


def test_percentiles_are_numpys(numbers):
    for size in numbers:
        assert set(size["errors"]) == {"clean", "fgsm"}
        for name, values in size["errors"].items():
            values = np.sort(values)
            # linear interpolation between the two largest of 12: 0.99 * 11 = 10.89
            by_hand = values[10] + 0.89 * (values[11] - values[10])
            assert size["percentile_99"][name] == pytest.approx(by_hand)
            assert size["median"][name] == pytest.approx(np.median(values))


def test_the_table_and_the_figure_show_every_size(trained, numbers):
    sizes = [
        memory_size.SizeErrors(s["rows"], {k: np.array(v) for k, v in s["errors"].items()})
        for s in numbers
    ]
    header, lines = memory_size.as_table(sizes)
    assert header == ["rows", "clean p99", "fgsm p99", "clean median", "fgsm median"]
    assert [line[0] for line in lines] == ["10", "20"]
    for line, size in zip(lines, numbers, strict=True):
        assert float(line[1]) == pytest.approx(1e3 * size["percentile_99"]["clean"], abs=0.006)
        assert float(line[4]) == pytest.approx(1e3 * size["median"]["fgsm"], abs=0.006)
    assert memory_size.as_json(sizes) == numbers
    one = Image.open(io.BytesIO((trained / "memory_size.png").read_bytes()))
    two = Image.open(io.BytesIO(memory_size.draw({"digits": sizes, "$other$": sizes[:1]})))
    assert one.format == two.format == "PNG"
    assert two.width > 1.5 * one.width


@pytest.mark.parametrize(
    ("rows", "change", "sentence"),
    [
        ((), {}, r"memory sizes \(\) cannot be compared"),
        ((0, 10), {}, r"memory sizes \(0, 10\) cannot be compared; give one or more above 0"),
        ((10, 15), {}, "memory rows 15 are not divisible by the 10 classes"),
        ((10,), {"eps": 25}, r"eps 25 is outside \[0, 1\]"),
        ((10,), {"attacks": ("deepfool",)}, "attack 'deepfool' is unknown"),
        ((10,), {"count": 999}, "999 samples asked of a split of 360"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(
    digits, tmp_path, rows, change, sentence
):
    folder = tmp_path / "sizes"
    with pytest.raises(InputError, match=sentence):
        memory_size.memory_sizes(
            MemoryDefenseConfig(), rows, digits, folder, **{"count": COUNT, **change}
        )
    assert not folder.exists()
