"""`python -m vargen` is the command `vargen`."""

from vargen.commands.main import main

if __name__ == "__main__":
    main()
