"""The Slurm script of docs/batch_jobs.md: bash reads it, and the command in it takes its flags.

Two launchers of torchrun in place of two nodes have run it; processes that share a run are in test_eval_processes.py.
"""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from vargen.commands import evaluate

ROOT = Path(__file__).parent.parent


@pytest.fixture
def script():
    (found,) = re.findall(r"```text\n(#!/bin/bash.*?)```", (ROOT / "docs" / "batch_jobs.md").read_text(), re.DOTALL)
    return found


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_reads_the_script(script):
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_its_command_is_one(script):
    (words,) = re.findall(r"evaluate (run .*)", script.replace("\\\n", " "))
    with pytest.raises(ValueError, match="there is no reference VIRTUAL_imagenet256_labeled"):  # all else is in order
        evaluate.command(shlex.split(words))
