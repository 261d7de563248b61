"""`defenses.fit` on 48 digits in a process of its own, to be killed: fit_run.py FOLDER RECIPE."""

import pathlib
import sys

from memdef_jax import data
from memdef_jax.defenses import MemoryDefenseConfig, SelectorConfig, StackConfig, examples, fit


class Printing:
    def start(self, stage, done, total, items_per_step):
        print("start", stage, done, total, flush=True)

    def update(self, step, metrics):
        print("update", step, flush=True)

    def note(self, text):
        print("note", text, flush=True)


def main(folder, recipe):
    examples.PART = 16
    config = MemoryDefenseConfig(
        selector=SelectorConfig(
            recipe=recipe, benign_epochs=1, epochs=1, batch_size=8, attack_steps=1
        ),
        stack=StackConfig(epochs=1, batch_size=8, memory_rows=20),
        train_size=48,
        save_every=2,
    )
    fit(config, data.load("digits"), pathlib.Path(folder), reporter=Printing())
    print("end", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
