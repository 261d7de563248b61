"""Threat models, robustness sweeps, diagnostics and report."""

from memdef_jax.evaluation.scrutiny.diagnostics import template_diagnostics
from memdef_jax.evaluation.scrutiny.examination import Examination
from memdef_jax.evaluation.statistics import wilson_interval
from memdef_jax.evaluation.sweeps.config import SUITES, SweepConfig
from memdef_jax.evaluation.sweeps.records import read_records
from memdef_jax.evaluation.sweeps.robustness import sweep
from memdef_jax.evaluation.sweeps.threats import THREATS, WORST

__all__ = [
    "SUITES",
    "THREATS",
    "WORST",
    "Examination",
    "SweepConfig",
    "read_records",
    "sweep",
    "template_diagnostics",
    "wilson_interval",
]
