"""Draw, measure and compare: python scripts/evaluate.py run --model NAME --method METHOD --num-images N. See --help."""

from vargen.cli import guarded
from vargen.eval.command import command

if __name__ == "__main__":
    guarded(command)
