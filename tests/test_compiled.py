"""A long process frees its compiled programs before Linux refuses it another memory map."""

import jax
import jax.numpy as jnp
import pytest

from memdef_jax import compiled


@pytest.fixture
def granted(tmp_path, monkeypatch):
    """granted(n): Linux grants so many maps; the process has a hundred."""
    maps, limit = tmp_path / "maps", tmp_path / "limit"
    maps.write_text("7f00-7f01 r-xp\n" * 100)
    monkeypatch.setattr(compiled, "_MAPS", maps)
    monkeypatch.setattr(compiled, "_LIMIT", limit)
    return lambda number: limit.write_text(f"{number}\n")


def test_programs_are_freed_from_a_share_of_the_limit_on(granted):
    program = jax.jit(lambda x: jnp.sin(x) + 1)
    before = program(2.0)
    granted(301)
    assert not compiled.forget_programs()
    assert program._cache_size() == 1
    granted(300)
    assert compiled.forget_programs()
    assert program._cache_size() == 0
    assert program(2.0) == before


def test_where_there_is_no_limit_nothing_is_done(granted):
    assert not compiled.forget_programs()  # neither file
    granted("unlimited")
    assert not compiled.forget_programs(0.0)
