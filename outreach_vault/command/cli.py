"""
The `vault` command, from start to exit status. Each command parses, makes one call and prints; the
rules are in the library.

Data goes to standard output, everything else to standard error. A secret comes from a hidden
prompt, standard input, a file or the environment. It is never an argument: every user of the
machine can read those.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

import click

from .. import errors
from ..files import os_error
from .group import STATUSES, UNSAID, cli, see_help, words_of
from .output import take_over_output
from .terminal import fail, warn

# The module that adds each command. Loaded with the others, `vault get` took 14% longer.
_HOMES: Final = {
    **dict.fromkeys(("accounts", "copy", "move"), "accounts"),
    **dict.fromkeys(
        ("backup", "copy-to", "doctor", "init", "migrate", "roles", "status"), "database"
    ),
    **dict.fromkeys(("config", "due", "history", "undo"), "history"),
    **dict.fromkeys(("keys", "rotate"), "keys"),
    **dict.fromkeys(("export", "import"), "portable"),
    **dict.fromkeys(("completion", "run"), "programs"),
    **dict.fromkeys(("login",), "login"),
    **dict.fromkeys(("projects",), "projects"),
    **dict.fromkeys(("check", "providers"), "providers"),
    **dict.fromkeys(("delete", "get", "label", "list", "set", "which"), "values"),
}
cli.homes = MappingProxyType({name: f"{__package__}.{home}" for name, home in _HOMES.items()})


def main() -> NoReturn:
    _no_core_dumps()
    warnings.showwarning = lambda message, *_: warn(str(message))
    # The modules stay loaded, so no collection need look through them: 10% of `vault list`.
    gc.freeze()
    outputs = take_over_output()
    status = run(sys.argv[1:])
    problems = [output.problem for output in outputs if output.problem]
    if problems and status == 0:
        status = UNSAID
        # Say nothing if the reader went away, as `head -1` does: it has what it wants.
        if any(problem.errno != errno.EPIPE for problem in problems):
            reason = problems[0].strerror
            fail(f"the work is done, but its output could not be written: {reason}", None, status)
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status. Shows no traceback: it could hold a value."""
    try:
        if "_VAULT_COMPLETE" in os.environ:  # a shell's Tab key
            from .completing import complete_each

            complete_each(cli)
        return cli.main(list(arguments), prog_name="vault", standalone_mode=False) or 0
    except click.ClickException as error:
        return fail(words_of(error), see_help(getattr(error, "ctx", None)), error.exit_code)
    except click.Abort as abort:
        hint = str(abort) or "nothing is half done: the same command can be run again"
        return fail("aborted", hint, STATUSES[click.Abort])
    except errors.VaultError as error:
        status = next(STATUSES[cls] for cls in type(error).__mro__ if cls in STATUSES)
        return fail(str(error), error.hint, status)
    except errors.WrongArgument as error:
        return fail(str(error), error.hint, STATUSES[errors.WrongArgument])
    except OSError as error:
        if not isinstance(error.errno, int):  # not from the system: its text could hold anything
            return _bug(error)
        fault = os_error(
            Path(os.fsdecode(error.filename or "the system")),
            OSError(error.errno, os.strerror(error.errno)),
        )
        return fail(str(fault), fault.hint, STATUSES[errors.StorageError])
    except MemoryError:
        return fail(
            "there is too little memory",
            "close another program, or raise this one's memory limit",
            STATUSES[errors.StorageError],
        )
    except ImportError:  # a module that is loaded only when needed
        raise  # __main__ says what to do
    except SystemExit as end:  # shell completion ends this way
        return 2 if end.code else 0
    except Exception as error:  # noqa: BLE001  # the last line of defence
        return _bug(error)


def _no_core_dumps() -> None:
    """A dump of this process would hold keys and values. Children inherit the limit."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _bug(error: Exception) -> int:
    """Say only where it happened: the text of an unforeseen error may hold a value."""
    import traceback

    frame = traceback.extract_tb(error.__traceback__)[-1]
    return fail(
        f"a bug: {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}",
        "please report this line; SECURITY.md says where",
        1,
    )
