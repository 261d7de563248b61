"""Threat models, robustness sweeps, diagnostics and report."""

from memdef_jax.evaluation.config import SUITES, SweepConfig
from memdef_jax.evaluation.diagnostics import template_diagnostics
from memdef_jax.evaluation.examination import Examination
from memdef_jax.evaluation.records import read_records
from memdef_jax.evaluation.robustness import sweep
from memdef_jax.evaluation.statistics import wilson_interval
from memdef_jax.evaluation.threats import THREATS, WORST

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
