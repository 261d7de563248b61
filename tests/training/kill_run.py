"""A whole tiny training in children that die at random: kill_run.py FOLDER KILLS SEED.

The first child trains in FOLDER/whole. The others train in FOLDER/0, or go on there, and end by
SIGKILL at a random one of their writes, at once or some milliseconds later; where one comes to the
end all the same, the next begins in FOLDER/1, and so on until KILLS have died and the last has
ended. What only Python does is of no interest: after a kill nothing but the disk is left.

Children are forked after the imports and before JAX has begun anything, which spares most of the
time that a process takes to start.
"""

import json
import os
import pathlib
import random
import signal
import sys
import threading
import time
import traceback

from memdef_jax import data
from memdef_jax.defenses import MemoryDefenseConfig, SelectorConfig, StackConfig, examples, fit

# A classifier, adversarial examples in parts, one trained on them, the stack, two defenses.
CONFIG = MemoryDefenseConfig(
    selector=SelectorConfig(
        recipe="offline", benign_epochs=1, epochs=1, batch_size=8, attack_steps=1
    ),
    stack=StackConfig(epochs=1, batch_size=8, memory_rows=20),
    train_size=48,
    save_every=2,
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def watch_writes(folder, at, wait):
    """Count this process's changes below a folder; at the given one, arrange its end."""
    seen = []

    def die():
        time.sleep(wait)
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, arguments):
        if event not in CHANGES and not (event == "open" and (arguments[2] or 0) & WRITES):
            return
        if not str(arguments[0]).startswith(str(folder)):
            return
        seen.append(event)
        if len(seen) == at:
            if not wait:
                die()
            threading.Thread(target=die, daemon=True).start()

    sys.addaudithook(hook)
    return seen


def child(digits, folder, at, wait):
    """Train; print how many changes that took; never return."""
    status = 1
    try:
        examples.PART = 16
        seen = watch_writes(folder, at, wait)
        fit(CONFIG, digits, folder)
        print(json.dumps({"folder": folder.name, "writes": len(seen)}), flush=True)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def life(digits, folder, at=None, wait=0.0):
    """Whether a child came to the end; False where it was killed as arranged."""
    number = os.fork()
    if number == 0:
        child(digits, folder, at, wait)
    status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    if status == -signal.SIGKILL and at:
        print(json.dumps({"folder": folder.name, "killed": at, "wait": wait}), flush=True)
        return False
    if status:
        sys.exit(f"a child ended with {status}")
    return True


def main(root, kills, seed):
    draw, digits = random.Random(seed), data.load("digits")
    life(digits, root / "whole")
    place, died, ended = 0, 0, True
    while died < kills or not ended:
        wait = draw.choice([0.0, draw.uniform(0.0, 0.05)])
        at = draw.randint(1, 120) if died < kills else None
        ended = life(digits, root / str(place), at, wait)
        died, place = died + (not ended), place + ended


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
