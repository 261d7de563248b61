"""Quick compilation for a test module that trains: hardly optimised, and never the same twice."""

import contextlib

import jax


@contextlib.contextmanager
def quickly(folder):
    """Within the block, programs are compiled without most optimisations and kept in the folder."""
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
