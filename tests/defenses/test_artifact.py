"""An exported defense gives the same logits and gradients where this package is not."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from memdef_jax.checks import InputError
from memdef_jax.defenses.artifact import describe, to_artifact
from tests.defenses.kinds import made

MARGIN = jnp.zeros(10).at[3].set(1.0).at[5].set(-1.0)
ELSEWHERE = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax import export

assert not any(name.startswith(("memdef_jax", "flax")) for name in sys.modules)
try:
    import memdef_jax
except ImportError:
    pass
else:
    raise SystemExit("memdef_jax can be imported here")
program = export.deserialize(bytearray(open("defense.stablehlo", "rb").read()))
x = np.load("x.npy")
y = jax.grad(lambda x: (program.call(x)[:, 3] - program.call(x)[:, 5]).sum())(jnp.asarray(x))
np.savez("found.npz", all=program.call(x), one=program.call(x[:1]), gradient=y)
"""


def test_the_program_runs_alone_for_any_batch_and_can_be_differentiated(defense, images, tmp_path):
    x = images[0]
    (tmp_path / "defense.stablehlo").write_bytes(to_artifact(defense, ("cpu",)))
    np.save(tmp_path / "x.npy", np.asarray(x), allow_pickle=False)
    command = [sys.executable, "-I", "-W", "error", "-c", ELSEWHERE]
    done = subprocess.run(
        command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz", allow_pickle=False) as found:
        logits = np.asarray(jax.jit(lambda x: defense(x))(x))
        np.testing.assert_allclose(found["all"], logits, atol=1e-4)
        np.testing.assert_allclose(found["one"], logits[:1], atol=1e-4)
        margin = jax.jit(jax.grad(lambda x: (defense(x) @ MARGIN).sum()))
        gradient = margin(x)
        assert jnp.abs(gradient).max() > 0
        np.testing.assert_allclose(found["gradient"], gradient, atol=1e-5)


_LONG = [pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ("mad_vae", "classifier")]


@pytest.mark.parametrize("kind", ["feature_denoiser", "hgd", *_LONG])
def test_every_other_kind_is_exported_alike(kind, images):
    defense = made(kind)
    program = export.deserialize(bytearray(to_artifact(defense, ("cpu",))))
    margin = jax.jit(jax.grad(lambda x: (defense(x) @ MARGIN).sum()))
    for x in (images[0], images[0][:1]):
        logits, gradient = np.asarray(jax.jit(lambda x: defense(x))(x)), np.asarray(margin(x))
        found = jax.jit(jax.grad(lambda x: (program.call(x) @ MARGIN).sum()))(x)
        close = {"rtol": 1e-3, "atol": 1e-4 * np.abs(logits).max()}
        np.testing.assert_allclose(program.call(x), logits, **close)
        assert np.abs(gradient).max() > 0
        close = {"rtol": 1e-3, "atol": 1e-3 * np.abs(gradient).max()}
        np.testing.assert_allclose(found, gradient, **close)


@pytest.mark.parametrize("platforms", [(), ("abacus",)])
def test_platforms_that_are_not_there_are_refused(defense, platforms):
    with pytest.raises(InputError, match=r"cannot be exported for; use some of cpu, cuda"):
        to_artifact(defense, platforms)


def test_the_description_says_what_goes_in_and_comes_out(defense):
    run = {"dataset": "digits", "fingerprint": "ab"}
    found = json.loads(describe(defense, "benign", run, ("cpu",)))
    assert found["image_shape"] == [28, 28, 1]
    assert (found["classes"], found["kind"], found["dataset"]) == (10, "memory_defense", "digits")
