"""
Run a command with the chosen accounts' credentials in its environment, and nowhere else.

The command does not inherit any variable that could be a field of a chosen provider. It could be
another account's, and mixed with ours it would make a third.

An account with OAuth2 hands over an access token, which ends soon, as SMTP_OAUTH_ACCESS_TOKEN, say.
What could get others, the refresh token and the client's secret, is handed over by name alone.

A name is data: whoever can store a value could store one for provider `ld`, field `preload`. A
variable that changes how programs run is never given, nor taken out.

The command takes this process's place, so signals and the exit status are its own. Any program of
the same user can read its environment: hand over no more than the command needs.
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

from ..errors import (
    CannotStart,
    LibraryMissing,
    MixedAccount,
    TokenUnavailable,
    WrongArgument,
    typed_name,
)
from ..providers import Provider, catalogue, find, provider_of
from ..secret import Secret
from ..values.bundle import of_one_account, require_complete, require_same_account
from ..values.credential import AccessToken
from ..values.opening import open_row
from ..values.rows import Row, name
from ..values.tokens import FIELD
from ..vault import Vault

# Variables that make programs load other code, run other programs, read other settings, or trust
# and reach other hosts. A `*` stands for anything. Whole families are listed, since each release of
# a program may add to its own. Missing on purpose: what accounts are known by (AWS_*, NPM_TOKEN,
# CARGO_REGISTRY_TOKEN, DOCKER_*).
_STEERING: Final = (
    # the loader and the C library
    "LD_* DYLD_* GLIBC_* MALLOC_* GCONV_PATH GETCONF_DIR LOCPATH NLSPATH TZDIR LANG LC_*",
    "*SAN_OPTIONS *_LIBRARY_PATH *_PRELOAD",
    # shells, and where programs and settings are found
    "PATH PATHEXT HOME SHELL ENV IFS CDPATH PS4 BASH_* BASHOPTS SHELLOPTS PROMPT_COMMAND ZDOTDIR",
    "KSH_* ZSH_* FISH_* COMSPEC WINDIR SYSTEMROOT TMP TEMP TMPDIR XDG_* DBUS_* GIO_* GTK_* QT_*",
    "TERMINFO* TERMCAP",
    # languages and their tools
    "PYTHON* PIP_* VIRTUAL_ENV CONDA_* PERL* RUBY* GEM_* BUNDLE_* NODE_* NPM_CONFIG_* CLASSPATH",
    "JAVA_* _JAVA_* JDK_* MAVEN_* GRADLE_OPTS LUA_* PHP_INI_* PHPRC DOTNET_* CORECLR_* COR_*",
    "COMPLUS_* ERL_* ELIXIR_ERL_* R_LIBS* R_PROFILE* R_ENVIRON* RUSTC_* CARGO_BUILD_*",
    # programs that others start
    "GIT_* SSH_* SUDO_* RSYNC_* EDITOR VISUAL PAGER BROWSER *_EDITOR *_PAGER *_BROWSER *_ASKPASS",
    "*_RSH *_SSH MAKEFLAGS TAR_OPTIONS *_PASSCOMMAND *_PASSWORD_COMMAND *_EXTERNAL_DIFF ELECTRON_*",
    "CLOUDSDK_PYTHON* YARN_* BUN_* UV_* APT_CONFIG CONFIG_SITE ANSIBLE_* TF_CLI_* AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE CARGO_HOME RUSTUP_* CMAKE_* PKG_CONFIG* LISTEN_* POSIXLY_CORRECT",
    "MYSQL_HOME GST_* VK_* LIBGL_* GDK_* QML* GUILE_* JULIA_* TCL_* MONO_* SASL_* BOTO_CONFIG",
    "DOCKER_HOST DOCKER_CONFIG GRPC_*",
    # whom to trust, and through whom to connect
    "SSL_* SSLKEYLOGFILE OPENSSL_* GNUTLS_* NSS_* KRB5_* CURL_* WGETRC *_CA_BUNDLE *_CA_CERTS",
    "*_PROXY RES_OPTIONS LOCALDOMAIN HOSTALIASES",
    # which vault a command opens
    "OUTREACH_VAULT_*",
)
_CHANGES_PROGRAMS: Final = re.compile("|".join(map(fnmatch.translate, " ".join(_STEERING).split())))


class Environment(NamedTuple):
    """
    What a command gets: exactly the chosen accounts.

    Attributes:
        given: variables and their values.
        taken: variables that the command does not inherit: all that the chosen providers' fields
            could have, except those that change how programs run.
    """

    given: dict[str, Secret]
    taken: frozenset[str]


def environment(
    vault: Vault,
    project_id: str | None,
    providers: Iterable[str] = (),
    *,
    only: Collection[str] = (),
    tokens: bool = True,
) -> Environment:
    """
    The variables for a command: TWILIO_ACCOUNT_SID, SMTP_HOST, ..., each with the value that
        `Vault.get` gives.

    Args:
        providers: each must be complete. By default: every provider with a field in either scope.
        only: give just these variables.
        tokens: False gives what is stored: each grant whole, and no access token.
    Raises:
        MixedAccount: an account's fields come from two scopes, two fields share a variable, or a
            field's variable changes how programs run.
        TokenUnavailable, LibraryMissing: as `Vault.access_token`.
        IncompleteAccount, ProjectNotFound, UnreadableValue, KeyUnavailable: as `Vault.bundle`.
        ValueError: no field has a variable of *only*, or a value cannot be in an environment.
    """
    chosen = list(dict.fromkeys(providers))
    if project_id is not None:
        vault.rows.require_project(name("project_id", project_id))
    rows, live = dict[str, Row](), set[str]()
    for provider in chosen or vault.rows.providers(project_id):
        known = provider_of(provider)
        account = of_one_account(known, project_id, vault.rows.fields(provider, project_id))
        if chosen:
            require_complete(known, project_id, account)
        if tokens and (grant := known.grant_of(account)):
            live.add(variable(provider, FIELD))
            hidden = () if only else (grant.client_secret, grant.refresh_token)
            account = {field: row for field, row in account.items() if field not in hidden}
            of_token = account[grant.client_id]._replace(credential_type=FIELD)
            account[""] = of_token._replace(id="its access token")  # a row of no table
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
    for its_name in sorted(rows, key=live.__contains__):  # what a provider is asked for comes last
        row = rows[its_name]
        if its_name in live:
            token = _token(vault, row.provider, project_id)
            require_same_account(row, token)
            given[its_name] = token
        else:
            given[its_name] = open_row(vault.keys, row)
        if "\0" in given[its_name].reveal():
            raise WrongArgument(
                f"{its_name}: the value has a NUL, which no environment can hold",
                hint="leave it out: choose others with --provider or --only",
            )
    if lacking := set(only) - set(given):
        names = ", ".join(map(typed_name, sorted(lacking)))
        raise WrongArgument(
            f"{names}: no stored field has this variable",
            hint="'vault list' shows the stored fields; SMTP_HOST is that of smtp/host",
        )
    taken = {variable(known.name, FIELD) for known in _listed(chosen) if known.grant}
    return Environment(given, frozenset(taken.union(fields_by_variable(vault, chosen))))


def _token(vault: Vault, provider: str, project_id: str | None) -> AccessToken:
    try:
        return vault.access_token(provider, project_id)
    except (TokenUnavailable, LibraryMissing) as error:
        error.hint = f"{error.hint}; or leave it out: choose others with --provider or --only"
        raise


def fields_by_variable(
    vault: Vault, chosen: Collection[str] = ()
) -> dict[str, set[tuple[str, str]]]:
    """
    The provider and field of each variable; of these providers, by default of all.

    Fields are those of the catalogue, and those that anybody stored.
    """
    known = [
        (provider.name, field.name) for provider in _listed(chosen) for field in provider.fields
    ]
    found: dict[str, set[tuple[str, str]]] = {}
    for place in [*known, *vault.rows.places(chosen)]:
        # A row must not undo SSL_CERT_FILE.
        if not _CHANGES_PROGRAMS.match(its_name := variable(*place)):
            found.setdefault(its_name, set()).add(place)
    return found


def _listed(chosen: Collection[str]) -> Iterable[Provider]:
    return map(provider_of, chosen) if chosen else catalogue()


def _not_to_be_given(its_name: str, row: Row) -> MixedAccount:
    return MixedAccount(
        f"{its_name}: this variable changes how programs run, so no field is given under it:"
        f" {row.place} (row {row.id})",
        hint=f"remove it with '{_delete(row)}'; or leave it out: choose with --provider, or with"
        " --only of 'vault run'",
        rows={f"{row.provider}/{row.credential_type}": row.id},
    )


def _two_of_one_name(its_name: str, *rows: Row) -> MixedAccount:
    both = " and ".join(f"{row.place} (row {row.id})" for row in rows)
    unlikely = rows[0] if find(rows[1].provider) else rows[1]  # the catalogue's is the likely one
    hint = f"remove the wrong one, as with '{_delete(unlikely)}'"
    if rows[0].provider != rows[1].provider:
        hint += "; or choose the other provider with --provider"
    return MixedAccount(
        f"{its_name}: two fields have this variable: {both}",
        hint=hint,
        rows={f"{row.provider}/{row.credential_type}": row.id for row in rows},
    )


def _delete(row: Row) -> str:
    at = "" if row.project_id is None else f" --project {row.project_id}"
    return f"vault delete {row.provider} {row.credential_type}{at}"


def variable(provider: str, field: str) -> str:
    """
    The variable for a field: upper case, with underscores for all but letters and digits.

    A leading digit gets an underscore before it: no shell hands on such a variable (POSIX, 8.1).
    """
    made = re.sub(r"[^A-Z0-9_]", "_", f"{provider}_{field}".upper())
    return f"_{made}" if made[0].isdigit() else made


def launch(command: Sequence[str], variables: Environment, *, pristine: bool = False) -> int:
    """
    Become *command*, with *variables* in its environment as UTF-8.

    Args:
        pristine: leave out everything else.
    Returns:
        On Windows, which cannot do that, the exit status of the command.
    Raises:
        CannotStart: there is no such program, or it cannot be run.
    """
    program = _found(command[0])
    taken = {name.upper() for name in variables.taken | variables.given.keys()}
    if os.name == "nt":  # its execve starts a second process and leaves the terminal to both
        inherited = {} if pristine else os.environ
        kept = {name: value for name, value in inherited.items() if name.upper() not in taken}
        whole = [program, *command[1:]]
        try:
            done = subprocess.run(whole, env=kept | _texts(variables.given), check=False)  # noqa: S603
        except OSError as error:
            raise _cannot_start(command[0], Path(program), error) from None
        return done.returncode
    # As bytes, since Python would encode text by the locale.
    names = {name.encode() for name in taken}
    present = {} if pristine else os.environb
    ours = {name: value for name, value in present.items() if name not in names}
    # Python ignores these, and the command would go on to ignore them.
    before = {
        number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGPIPE, signal.SIGXFSZ)
    }
    try:
        os.execve(program, list(command), ours | _bytes(variables.given))  # noqa: S606
    except OSError as error:  # `from None`: its frames hold the credentials
        for number, handler in before.items():
            signal.signal(number, handler)
        raise _cannot_start(command[0], Path(program), error) from None
    return 0  # never: execve does not return


def _found(name: str) -> str:
    """
    The program that *name* means, with the present PATH: a pristine environment has none.

    As for env(1), what is there and cannot be run is that program if there is no other. The system
    says why when it is started.
    """
    if program := shutil.which(name):
        return program
    if os.path.dirname(name):  # noqa: PTH120
        return name
    for folder in os.get_exec_path() if name else ():
        if os.path.exists(path := os.path.join(folder, name)):  # noqa: PTH110, PTH118
            return path
    raise _not_there(name)


def _not_there(name: str) -> CannotStart:
    message = f"{typed_name(name)}: there is no such program"
    return CannotStart(message, found=False, hint="check its name, and PATH")


def _cannot_start(name: str, program: Path, error: OSError) -> CannotStart:
    """Why an existing program did not run. A missing interpreter is "no such file" as well."""
    if error.errno == errno.E2BIG:
        message = f"{name}: its arguments and environment are larger than this system allows"
        advice = "hand over fewer fields (--provider, --only), or nothing else (--pristine)"
        return CannotStart(message, found=True, hint=advice)
    if not os.path.exists(program):  # noqa: PTH110  # Path's own may raise
        if error.errno == errno.ENOENT:
            return _not_there(name)
        name = typed_name(name)
    if error.errno != errno.ENOENT:  # do not open it: a pipe would block
        fault, advice = f"{name}: it cannot be run: {error.strerror}", "check its name and its mode"
        return CannotStart(fault, found=True, hint=advice)
    interpreter = _interpreter(program)
    if interpreter.endswith("\r"):
        message = f"{name}: its first line has a Windows line end, and no interpreter has that name"
        advice = f"give it Unix line ends: sed -i 's/\\r$//' {name}"
        return CannotStart(message, found=False, hint=advice)
    what = f"interpreter, {interpreter}," if interpreter else "interpreter or loader"
    message = f"{name}: the program exists, but its {what} does not"
    return CannotStart(message, found=False, hint="install that, or check the first line")


def _interpreter(program: Path) -> str:
    """What a script's first line names; empty if there is no script to read."""
    try:
        with program.open("rb") as file:
            line = file.readline(256)
    except OSError:
        return ""
    if not line.startswith(b"#!"):
        return ""
    return line[2:].decode(errors="replace").removesuffix("\n").strip(" \t")


def _bytes(variables: Mapping[str, Secret]) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in _texts(variables).items()}


def _texts(variables: Mapping[str, Secret]) -> dict[str, str]:
    return {name: value.reveal() for name, value in variables.items()}
