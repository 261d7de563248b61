"""Latency: what is timed, in which order, and what is made of the seconds."""

import dataclasses
import importlib
import json

import jax
import numpy as np
import pytest
import tyro

from memdef_jax.checks import InputError
from memdef_jax.defenses import MemoryDefense
from memdef_jax.evaluation.papers import latency
from memdef_jax.nn import Decoder, Encoder
from memdef_jax.nn.autoencoder import architecture
from tests.evaluation import handmade


class Stage:
    """Calls that take as many seconds as they are told, and the clock that sees them pass."""

    def __init__(self, **lasting):
        self.now, self.order, self.count = 0.0, [], 0
        self.calls = {name: lambda n=name, s=s: self.play(n, s) for name, s in lasting.items()}

    def play(self, name, seconds):
        self.order.append(name)
        self.count += 1
        self.now += seconds(self.count) if callable(seconds) else seconds

    def clock(self):
        return self.now


def test_each_call_is_charged_its_own_seconds_and_not_those_of_the_warm_up():
    stage = Stage(a=lambda count: 100.0 if count <= 6 else 1.0, b=2.5, c=4.0)
    seconds = latency.measure(stage.calls, repeats=5, warm_up=2, clock=stage.clock)
    np.testing.assert_allclose(seconds["a"], np.full(5, 1.0))
    np.testing.assert_allclose(seconds["b"], np.full(5, 2.5))
    np.testing.assert_allclose(seconds["c"], np.full(5, 4.0))


def test_rounds_are_interleaved_and_begin_with_another_call_each_time():
    stage = Stage(a=1.0, b=1.0, c=1.0)
    latency.measure(stage.calls, repeats=3, warm_up=1, clock=stage.clock)
    assert "".join(stage.order) == "abc" + "abc" + "bca" + "cab"


def test_the_ratio_is_that_of_the_medians():
    seconds = {
        "without_memory": np.array([1.0, 2.0, 3.0, 2.0, 900.0]),
        "with_memory": np.array([0.0, 5.0, 6.0, 7.0, 7.0]),
        "pipeline": np.array([8.0, 9.0, 10.0, 11.0, 12.0]),
    }
    found = latency.summarise(seconds, images=10)
    assert found["ratio"] == 6.0 / 2.0
    for name, values in seconds.items():
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        route = found["routes"][name]
        assert (route["lower_quartile"], route["median"]) == (low, middle)
        assert (route["upper_quartile"], route["repeats"]) == (high, 5)
    assert found["paper_ratio"] == pytest.approx(0.00619208 / 0.00171196)
    assert found["device"] == jax.devices()[0].device_kind
    assert json.loads(json.dumps(found)) == found
    header, lines = latency.as_table(found)
    assert {len(line) for line in lines} == {len(header)}
    assert lines[1][1:] == ["6000.000", "5000.000-7000.000", "6.192"]
    assert lines[-1][1] == "3.00"


@pytest.mark.parametrize("counts", [{"repeats": 0}, {"warm_up": 0}])
def test_counts_below_one_are_refused(counts):
    (name,) = counts
    with pytest.raises(InputError, match=f"{name} 0 is below 1; use 1 or more"):
        latency.measure({}, **counts)


def test_the_routes_are_the_defense_and_the_same_layers_without_its_memory(template, shown):
    x = shown[0][:3]
    calls = latency.routes(template, x)
    assert list(calls) == list(latency.ROUTES)
    whole, routed = calls["pipeline"](), calls["with_memory"]()
    np.testing.assert_allclose(whole, routed, atol=1e-4)
    stack, arch = template.variables["stack"], architecture((28, 28, 1))
    encoder, decoder = (
        {kind: stack[kind]["autoencoder"][name] for kind in ("params", "batch_stats")}
        for name in ("encoder", "decoder")
    )

    @jax.jit
    def without_memory(defense, x):
        z = Encoder(arch).apply(encoder, x)
        return defense.classify(Decoder(arch).apply(decoder, z))

    expected = without_memory(template, x)
    np.testing.assert_allclose(calls["without_memory"](), expected, atol=1e-3)


def test_a_defense_without_memory_and_no_images_are_refused(template):
    spec = dataclasses.replace(template.spec, memory_rows=0)
    plain = MemoryDefense(spec, template.variables)
    with pytest.raises(InputError, match="has memory_rows 0"):
        latency.routes(plain, latency.images_of(template, 1))
    with pytest.raises(InputError, match="images 0 is below 1"):
        latency.images_of(template, 0)


def test_the_program_writes_what_it_prints(digits, pair, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run = tmp_path / "run"
    handmade.write_run(run, digits, pair)
    program = importlib.import_module("eval.latency").main
    arguments = ["--run", run, "--images", "3", "--repeats", "4", "--warm-up", "1"]
    tyro.cli(program, args=[str(a) for a in arguments])
    out = capsys.readouterr().out
    found = json.loads((run / "latency.json").read_text())
    assert found["images"] == 3
    assert {route["repeats"] for route in found["routes"].values()} == {4}
    for line in latency.as_table(found)[1]:
        for text in line:
            assert text in out
    assert str(run / "latency.json") in out
