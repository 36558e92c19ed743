"""
Starts the command, as `vault` and as `python -m outreach_vault`, and says why if it cannot be
loaded. So this loads only what Python itself has loaded already.
"""

import os
import sys


def main() -> None:
    try:
        from .command.cli import main as command

        command()
    except (MemoryError, OSError, ImportError) as error:
        what = f"a part of it cannot be loaded: {error}"
        hint = (
            "check that its files can be read and that this process may open more (ulimit -n);"
            " if so, install outreach_vault again"
        )
        if (
            isinstance(error, MemoryError)
            or "failed to map segment" in what
            or os.strerror(12) in what
        ):
            what, hint = (
                "there is too little memory",
                "close another program, or raise this one's memory limit",
            )
        try:
            if sys.stderr is not None:
                sys.stderr.write(f"vault: error: {what}\nvault: hint: {hint}\n")
        finally:
            sys.exit(15)


if __name__ == "__main__":
    main()
