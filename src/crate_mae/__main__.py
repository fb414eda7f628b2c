"""`python -m crate_mae` and the `crate-mae` command."""

from crate_mae.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    raise SystemExit(main())
