"""`python -m steepest` is `steepest`: what torchrun starts."""

from steepest.cli import main

if __name__ == "__main__":
    main()
