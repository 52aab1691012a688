"""Draw, measure and compare: python scripts/evaluate.py run --model NAME --method METHOD --num-images N. See --help."""

from vargen.commands.evaluate import command
from vargen.commands.main import guarded

if __name__ == "__main__":
    guarded(command)
