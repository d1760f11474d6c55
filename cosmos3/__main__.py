"""`python -m cosmos3`: the command line."""

from cosmos3_core.cli import main

if __name__ == "__main__":
    main()
