"""The program `python -m train.prepare`."""

import subprocess
import sys

import train.prepare
from memdef_jax.data import load


def test_it_prints_what_it_prepared(small_mnist, tmp_path, capsys):
    small_mnist.write(tmp_path / "raw")
    train.prepare.main("mnist", raw_dir=str(tmp_path / "raw"), verify=True)
    out = capsys.readouterr().out
    info = load("mnist").info
    for word in (info.fingerprint, str(tmp_path / "raw"), "40 images", "20 images", "28x28x1"):
        assert word in out


def test_a_refusal_is_one_sentence_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "train.prepare", "mnist", "--raw-dir", str(tmp_path / "no")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: raw_dir {tmp_path / 'no'} is not a folder; give the one that holds the files."
    ]
