"""
Begins the command, and has words where it cannot be loaded: for `vault`, and for `python -m
outreach_vault`.

Nothing is loaded here that Python has not loaded for itself.
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
            "look whether its files can be read and this process may open more (ulimit -n); if "
            "so, install outreach_vault anew"
        )
        if (
            isinstance(error, MemoryError)
            or "failed to map segment" in what
            or os.strerror(12) in what
        ):
            what, hint = (
                "there is too little memory",
                "end another program, or raise this one's memory limit",
            )
        try:
            if sys.stderr is not None:
                sys.stderr.write(f"vault: error: {what}\nvault: hint: {hint}\n")
        finally:
            sys.exit(15)


if __name__ == "__main__":
    main()
