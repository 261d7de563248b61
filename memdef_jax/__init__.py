"""memdef_jax: train generative adversarial defenses in JAX and attack them honestly.

The floors of the package, each importing only from those below it::

    evaluation   threat models, robustness sweeps, diagnostics, report
    defenses     one file a defense: configuration, fit(), the pipeline, its attack surfaces
    training     state, SPMD step, loop, checkpoints, metrics   } these three know
    attacks      balls, objectives, one file an attack family   } nothing of
    data         sources, builders, batches, augmentation       } each other
    nn           Flax Linen modules and losses
"""

__version__ = "0.1.0"
