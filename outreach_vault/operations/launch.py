"""
A command with credentials in its environment, and nowhere else: those of the accounts that were chosen, and no others.

Whatever variable could be a field of a chosen provider is taken out of the environment that the command inherits. What stood
there could be another account's, and together with ours a third one's.

A name is data: whoever may store a value could store one for provider `ld`, field `preload`. No variable that changes how programs
run is ever given, and none is taken out either.

The command takes this process's place, so signals and its exit status are its own. Any program that runs
as the same user can read a process's environment: hand over no more than the command needs.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import CannotStart, MixedAccount, WrongArgument, typed_name
from ..providers import catalogue, find, provider_of
from ..secret import Secret
from ..values.bundle import of_one_account, require_complete
from ..values.opening import open_row
from ..values.rows import Row, name
from ..vault import Vault

# Variables that make programs load other code, run other programs, read other settings, or trust and reach other hosts. A `*` stands
# for anything. Whole families are named, since each release of a program may add to its own; what is left out is what accounts are
# known by (AWS_*, NPM_TOKEN, CARGO_REGISTRY_TOKEN, DOCKER_*).
_STEERING: Final = (
    # the loader and the C library
    "LD_* DYLD_* GLIBC_* MALLOC_* GCONV_PATH GETCONF_DIR LOCPATH NLSPATH TZDIR LANG LC_* *SAN_OPTIONS *_LIBRARY_PATH *_PRELOAD",
    # shells, and where programs and settings are found
    "PATH PATHEXT HOME SHELL ENV IFS CDPATH PS4 BASH_* BASHOPTS SHELLOPTS PROMPT_COMMAND ZDOTDIR KSH_* ZSH_* FISH_* COMSPEC WINDIR",
    "SYSTEMROOT TMP TEMP TMPDIR XDG_* DBUS_* GIO_* GTK_* QT_* TERMINFO* TERMCAP",
    # languages and their tools
    "PYTHON* PIP_* VIRTUAL_ENV CONDA_* PERL* RUBY* GEM_* BUNDLE_* NODE_* NPM_CONFIG_* JAVA_* _JAVA_* JDK_* CLASSPATH MAVEN_* GRADLE_OPTS",
    "LUA_* PHP_INI_* PHPRC DOTNET_* CORECLR_* COR_* COMPLUS_* ERL_* ELIXIR_ERL_* R_LIBS* R_PROFILE* R_ENVIRON* RUSTC_* CARGO_BUILD_*",
    # programs that others start
    "GIT_* SSH_* SUDO_* RSYNC_* EDITOR VISUAL PAGER BROWSER *_EDITOR *_PAGER *_BROWSER *_ASKPASS *_RSH *_SSH MAKEFLAGS TAR_OPTIONS",
    "*_PASSCOMMAND *_PASSWORD_COMMAND *_EXTERNAL_DIFF ELECTRON_* CLOUDSDK_PYTHON* YARN_* BUN_* UV_* APT_CONFIG CONFIG_SITE ANSIBLE_*",
    "TF_CLI_* AWS_CONFIG_FILE AWS_SHARED_CREDENTIALS_FILE CARGO_HOME RUSTUP_* CMAKE_* PKG_CONFIG* LISTEN_* POSIXLY_CORRECT MYSQL_HOME",
    "GST_* VK_* LIBGL_* GDK_* QML* GUILE_* JULIA_* TCL_* MONO_* SASL_* BOTO_CONFIG DOCKER_HOST DOCKER_CONFIG GRPC_*",
    # whom to trust, and through whom to connect
    "SSL_* SSLKEYLOGFILE OPENSSL_* GNUTLS_* NSS_* KRB5_* CURL_* WGETRC *_CA_BUNDLE *_CA_CERTS *_PROXY RES_OPTIONS LOCALDOMAIN HOSTALIASES",
    # which vault a command opens
    "OUTREACH_VAULT_*",
)
_CHANGES_PROGRAMS: Final = re.compile("|".join(map(fnmatch.translate, " ".join(_STEERING).split())))


class Environment(NamedTuple):
    """
    What a command is given: exactly the accounts that were chosen.

    Attributes:
        given: variables and their values.
        taken: all variables that the chosen providers' fields could have, but for those that change how programs run; none is inherited.
    """

    given: dict[str, Secret]
    taken: frozenset[str]


def environment(
    vault: Vault,
    project_id: str | None,
    providers: Iterable[str] = (),
    *,
    only: Collection[str] = (),
) -> Environment:
    """
    The variables for a command: TWILIO_ACCOUNT_SID, SMTP_HOST, ..., each with the value that `Vault.get` gives.

    Args:
        providers: these, each of which must be complete; by default each that has a field in either scope.
        only: of the variables just these.
    Raises:
        IncompleteAccount, MixedAccount, ProjectNotFound, UnreadableValue, KeyUnavailable: there is no
            environment at all then; MixedAccount also where two fields have one name as a variable, or one has the
            name of a variable that changes how programs run. ValueError: a variable of *only* is not there, or a value
            cannot be in an environment.
    """
    chosen = list(dict.fromkeys(providers))
    if project_id is not None:
        vault.rows.require_project(name("project_id", project_id))
    rows: dict[str, Row] = {}
    for provider in chosen or vault.rows.providers(project_id):
        known = provider_of(provider)
        account = of_one_account(known, project_id, vault.rows.fields(provider, project_id))
        if chosen:
            require_complete(known, project_id, account)
        for row in account.values():
            its_name = variable(row.provider, row.credential_type)
            if only and its_name not in only:
                continue
            if _CHANGES_PROGRAMS.match(its_name):
                raise _not_to_be_given(its_name, row)
            if its_name in rows:
                raise _two_of_one_name(its_name, rows[its_name], row)
            rows[its_name] = row
    given: dict[str, Secret] = {}
    for its_name, row in rows.items():
        given[its_name] = open_row(vault.keys, row)
        if "\0" in given[its_name].reveal():
            raise WrongArgument(
                f"{its_name}: the value has a NUL character, which no environment can hold"
            )
    if lacking := set(only) - set(given):
        raise WrongArgument(
            f"{', '.join(map(typed_name, sorted(lacking)))}: no stored field has this name as a variable"
        )
    return Environment(given, _possible(vault, chosen))


def _possible(vault: Vault, chosen: Collection[str]) -> frozenset[str]:
    """The variables of each field of these providers (by default of all) that is in the catalogue, or stored for anybody."""
    listed = map(provider_of, chosen) if chosen else catalogue()
    known = [(provider.name, field.name) for provider in listed for field in provider.fields]
    stored = vault.rows.places(chosen)
    names = (variable(provider, field) for provider, field in [*known, *stored])
    return frozenset(
        its_name for its_name in names if not _CHANGES_PROGRAMS.match(its_name)
    )  # a row must not undo SSL_CERT_FILE


def _not_to_be_given(its_name: str, row: Row) -> MixedAccount:
    return MixedAccount(
        f"{its_name}: this variable changes how programs run, so no field is given under it: {row.place} (row {row.id});"
        " the command was not started",
        hint=f"remove it, as '{_delete(row)}'; or leave it out: --provider or --only for what the command needs",
        rows={f"{row.provider}/{row.credential_type}": row.id},
    )


def _two_of_one_name(its_name: str, *rows: Row) -> MixedAccount:
    both = " and ".join(f"{row.place} (row {row.id})" for row in rows)
    other = (
        rows[0] if find(rows[1].provider) else rows[1]
    )  # what the catalogue knows is rather meant
    return MixedAccount(
        f"{its_name}: two fields have this name as a variable: {both}; the command was not started",
        hint=f"remove the one that is not meant, as '{_delete(other)}'"
        + (
            "; or choose the other provider with --provider"
            if rows[0].provider != rows[1].provider
            else ""
        ),
        rows={f"{row.provider}/{row.credential_type}": row.id for row in rows},
    )


def _delete(row: Row) -> str:
    at = "" if row.project_id is None else f" --project {row.project_id}"
    return f"vault delete {row.provider} {row.credential_type}{at}"


def variable(provider: str, field: str) -> str:
    """
    The name of a field as a variable: upper case, and an underscore for what is no letter, digit or underscore.

    An underscore comes first where that begins with a digit: no shell hands on a variable named so (POSIX, 8.1).
    """
    made = re.sub(r"[^A-Z0-9_]", "_", f"{provider}_{field}".upper())
    return f"_{made}" if made[0].isdigit() else made


def launch(command: Sequence[str], variables: Environment, *, pristine: bool = False) -> int:
    """
    Become *command*, with *variables* in its environment as UTF-8.

    Args:
        pristine: with nothing else in it.
    Returns:
        On Windows, which cannot do that, the exit status of the command.
    Raises:
        CannotStart: there is no such program, or it cannot be run.
    """
    program = shutil.which(command[0])  # with the PATH of now: a pristine environment has none
    if program is None and not (os.path.dirname(command[0]) and os.path.exists(command[0])):  # noqa: PTH110, PTH120  # as env(1) has it
        raise CannotStart(
            f"{typed_name(command[0])}: there is no such program",
            found=False,
            hint="look at its name, and at PATH",
        )
    program = program or command[0]
    taken = {name.upper() for name in variables.taken | variables.given.keys()}
    if os.name == "nt":  # its execve starts a second process and leaves the terminal to both
        kept = (
            {}
            if pristine
            else {name: value for name, value in os.environ.items() if name.upper() not in taken}
        )
        return subprocess.run(
            [program, *command[1:]], env=kept | _texts(variables.given), check=False
        ).returncode  # noqa: S603
    # As bytes, since Python would spell text as the locale has it.
    names = {name.encode() for name in taken}
    ours = (
        {}
        if pristine
        else {name: value for name, value in os.environb.items() if name not in names}
    )
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(
            number, signal.SIG_DFL
        )  # Python ignores these, and what is ignored stays so in the command
    try:
        os.execve(
            program,
            list(command),
            ours
            | {name.encode(): value.encode() for name, value in _texts(variables.given).items()},
        )  # noqa: S606
    except OSError as error:
        raise _cannot_start(
            command[0], Path(program), error
        ) from None  # its frames hold what was to be handed over
    return 0  # never: execve does not come back


def _cannot_start(name: str, program: Path, error: OSError) -> CannotStart:
    """Why a program that is there was not run. The system says of a missing interpreter that there is no such file."""
    if error.errno == errno.E2BIG:
        return CannotStart(
            f"{name}: its arguments and its environment together are larger than this system allows", found=True,
            hint="hand over fewer fields (--provider, --only), or nothing else (--pristine)",
        )  # fmt: skip
    if error.errno != errno.ENOENT:  # a pipe must not be opened: it would wait
        return CannotStart(f"{name}: it cannot be run: {error.strerror}", found=True)
    interpreter = _interpreter(program)
    if interpreter.endswith("\r"):
        return CannotStart(
            f"{name}: its first line ends as on Windows, so there is no interpreter of that name", found=False,
            hint=f"give it Unix line ends: sed -i 's/\\r$//' {name}",
        )  # fmt: skip
    what = (
        f"its interpreter, {interpreter}, is not there"
        if interpreter
        else "its interpreter or loader is not there"
    )
    return CannotStart(
        f"{name}: the program is there, and {what}",
        found=False,
        hint="install that, or look at the first line",
    )


def _interpreter(program: Path) -> str:
    """What a script's first line names; empty for what is no script, or cannot be read."""
    try:
        with program.open("rb") as file:
            line = file.readline(256)
    except OSError:
        return ""
    return (
        line[2:].decode(errors="replace").removesuffix("\n").strip(" \t")
        if line.startswith(b"#!")
        else ""
    )


def _texts(variables: Mapping[str, Secret]) -> dict[str, str]:
    return {name: value.reveal() for name, value in variables.items()}
