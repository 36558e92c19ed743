"""
The `vault` command: parse, one call, print, exit status. It holds no rule that a library user would miss.

Data goes to standard output, everything else to standard error. Secrets come by hidden prompt, standard
input, a file or the environment, never as an argument, which every user of the machine can read.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from .. import errors
from ..files import os_error
from . import database, keys, programs, providers, values  # noqa: F401  # each adds its commands to the group
from .group import STATUSES, UNSAID, cli, words_of
from .terminal import fail, take_over_output, warn


def main() -> NoReturn:
    _no_core_dumps()
    warnings.showwarning = lambda message, *_: warn(str(message))
    gc.freeze()  # what is loaded stays, so no collection has to look through it: a tenth of `vault list` (measured)
    outputs = take_over_output()
    status = run(sys.argv[1:])
    problems = [output.problem for output in outputs if output.problem]
    if problems and status == 0:
        status = UNSAID
        if any(problem.errno != errno.EPIPE for problem in problems):  # as `vault list | head -1`, whose reader has what it wants
            fail(f"it is done, and its words could not be written: {problems[0].strerror}", None, status)
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run the command; its exit status. Never a traceback: its lines could hold a value."""
    try:
        return cli.main(list(arguments), prog_name="vault", standalone_mode=False) or 0
    except click.ClickException as error:
        return fail(words_of(error), f"'{_command(error)} --help' shows how it is called", error.exit_code)
    except click.Abort:
        return fail("aborted", None, STATUSES[click.Abort])
    except errors.VaultError as error:
        status = next(STATUSES[cls] for cls in type(error).__mro__ if cls in STATUSES)
        return fail(str(error), error.hint, status)
    except errors.WrongArgument as error:
        return fail(str(error), None, STATUSES[errors.WrongArgument])
    except OSError as error:
        if not isinstance(error.errno, int):  # not the system's own, so nobody knows what its texts hold
            return _bug(error)
        fault = os_error(Path(os.fsdecode(error.filename or "the system")), OSError(error.errno, os.strerror(error.errno)))
        return fail(str(fault), fault.hint, STATUSES[errors.StorageError])
    except MemoryError:
        return fail("there is too little memory", "end some program, or raise the limit of this one", STATUSES[errors.StorageError])
    except ImportError:  # of what is loaded when it is needed
        raise  # what began the command has the words
    except SystemExit as end:  # shell completion ends so
        return 2 if end.code else 0
    except Exception as error:  # noqa: BLE001  # the last line of defence, and it says so
        return _bug(error)


def _no_core_dumps() -> None:
    """A dump of this process would hold keys and values; children inherit the limit."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _bug(error: Exception) -> int:
    """Where it happened, and nothing of what it was about: an unforeseen text could hold a value."""
    import traceback

    frame = traceback.extract_tb(error.__traceback__)[-1]
    return fail(
        f"a bug: {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}", "please report this line; SECURITY.md says where", 1
    )


def _command(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context else "vault"
