"""The commands about other programs: `run`, and `completion` for shells."""

from __future__ import annotations

import re

import click

from .. import errors
from ..errors import near
from .completing import SHELLS, script
from .group import NO_PROGRAM, STATUSES, Where, chosen_project, cli, project_option
from .names import unrepeated
from .terminal import fail, print_text


@cli.command(
    "run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@project_option
@click.option(
    "--provider",
    "chosen",
    metavar="NAME",
    multiple=True,
    help="Only this provider's fields. All required ones must be stored.",
)
@click.option(
    "--only", metavar="VARIABLE", multiple=True, help="Only this variable, such as SMTP_HOST."
)
@click.option(
    "--pristine", is_flag=True, help="Nothing else in the command's environment, not even PATH."
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def run_(
    where: Where,
    project: str | None,
    chosen: tuple[str, ...],
    only: tuple[str, ...],
    pristine: bool,
    command: tuple[str, ...],
) -> int:
    """
    Run a command with credentials in its environment.

    The variables are TWILIO_ACCOUNT_SID, SMTP_HOST, and so on. Each value is the project's own,
    else the global one. An account with OAuth2 gives an access token that lasts, as
    SMTP_OAUTH_ACCESS_TOKEN; its refresh token and client secret only if --only names them. The
    command inherits no variable that a field of a chosen provider could have. It does not start if
    a value cannot be read, if there is no access token, if the fields of one account come from two
    scopes, if a field's variable changes how programs run (LD_PRELOAD, GIT_SSH_COMMAND,
    SSL_CERT_FILE, ...), or if the project is unknown.
    """
    from ..operations.launch import environment, launch

    # Before any value is opened. What was typed may be one, so it is not repeated.
    if command[0].startswith("-"):
        options = (name for option in run_.params for name in option.opts)
        raise click.UsageError(
            f"there is no such option{near(command[0], options)}; put the command to run after '--'"
        )
    if re.match(r"[A-Za-z_]\w*=", command[0]):
        raise click.UsageError(
            "NAME=VALUE is not a command; 'vault run -- env NAME=VALUE ...' sets a variable,"
            " but every user can read it"
        )
    if any(re.fullmatch(r"\w+", name) is None for name in only):
        raise click.UsageError("--only: give the name of a variable, such as SMTP_HOST")
    with where.open() as vault, unrepeated(vault, *chosen):
        project = chosen_project(vault, project)
        variables = environment(vault, project, chosen, only=only)
    try:
        return launch(command, variables, pristine=pristine)
    except errors.CannotStart as error:
        return fail(
            str(error), error.hint, STATUSES[errors.CannotStart] if error.found else NO_PROGRAM
        )


@cli.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """
    Print a script that lets SHELL complete this command.

    For bash and zsh, put `eval "$(vault completion bash)"` into ~/.bashrc or ~/.zshrc. For fish,
    write it to ~/.config/fish/completions/vault.fish.
    """
    print_text(script(shell).rstrip("\n"))
