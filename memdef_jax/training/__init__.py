"""State, SPMD step, loop, checkpoints and metrics; knows no data and no attack."""

from memdef_jax.training.loop import Reporter, Silent, Stage, TrainingDiverged, train
from memdef_jax.training.resident import Gathered, Scan, scanned
from memdef_jax.training.state import (
    AXIS,
    LossFn,
    Metrics,
    Step,
    TrainState,
    check_batch,
    make_mesh,
    make_step,
    process_rows,
    put_batch,
    replicate,
    shard,
    step_batch,
)
from memdef_jax.training.validation import History, Validation

__all__ = [
    "AXIS",
    "Gathered",
    "History",
    "LossFn",
    "Metrics",
    "Reporter",
    "Scan",
    "Silent",
    "Stage",
    "Step",
    "TrainState",
    "TrainingDiverged",
    "Validation",
    "check_batch",
    "make_mesh",
    "make_step",
    "process_rows",
    "put_batch",
    "replicate",
    "scanned",
    "shard",
    "step_batch",
    "train",
]
