"""Draw, measure and compare: python scripts/evaluate.py run --model NAME --method METHOD --num-images N. See --help."""

from vargen.commands.main import door

if __name__ == "__main__":
    door("evaluate")
