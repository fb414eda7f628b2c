"""`python -m crate_mae` and the `crate-mae` command."""

import signal

from crate_mae import cli

__all__ = ["main"]


def main() -> int:
    """The exit status of the command that this process was started for."""
    status = cli.main()
    if status == cli.INTERRUPTED:  # once more would only make libraries stumble on their way out
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
