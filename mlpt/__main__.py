"""`python -m mlpt` is the console script `mlpt`."""

from mlpt.cli import main

if __name__ == "__main__":
    main()
