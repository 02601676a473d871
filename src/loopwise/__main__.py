"""`python -m loopwise` is the command line."""

from loopwise.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
