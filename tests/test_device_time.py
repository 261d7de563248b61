"""How a trace is read: no time twice, and products told from the rest."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.device_time import is_product, operations, own_seconds
from memdef_jax.checks import InputError


def test_the_time_of_an_operation_is_without_that_of_those_within_it():
    events = [
        ("while", 0.0, 10e9),
        ("dot", 1e9, 4e9),
        ("add", 2e9, 3e9),
        ("dot", 5e9, 7e9),
        ("copy", 10e9, 11e9),
    ]
    found = sorted(own_seconds(reversed(events)))
    assert found == [("add", 1), ("copy", 1), ("dot", 2), ("dot", 2), ("while", 5)]
    assert sum(seconds for _, seconds in found) == 11


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("conv_general_dilated.4", True),
        ("dot_general.1", True),
        ("gemm_fusion_dot.7", True),
        ("custom-call [nvjet_tst_128x64_64x8_2x1_v_bz_NNT]", True),
        ("cudnn-conv-bias-activation [sm90_xmma_fprop_implicit_gemm_f32f32]", True),
        ("cudnn-conv [void cudnn::ops::nchwToNhwcKernel]", False),
        ("convert_fusion", False),
        ("loop_multiply_fusion", False),
        ("MemcpyD2D", False),
    ],
)
def test_products_are_told_from_conversions_and_changes_of_layout(name, product):
    assert is_product(name) == product


def test_a_trace_names_the_operations_of_a_program(tmp_path):
    @jax.jit
    def program(x):
        return jnp.tanh(x @ x).sum()

    x = jnp.ones((256, 256))
    program(x).block_until_ready()
    with jax.profiler.trace(tmp_path):
        program(x).block_until_ready()
    found = operations(tmp_path)
    assert any(map(is_product, found))
    assert all(seconds > 0 for seconds in found.values())
    with pytest.raises(InputError, match="no trace is in"):
        operations(tmp_path / "another")
