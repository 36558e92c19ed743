"""The command about logins: `login`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from ..limits import on_thread
from ..providers.grants import PRESETS
from ..secret import Secret
from .group import Where, chosen_project, cli, project_option
from .names import known_provider
from .notes import note_account, scope_of
from .terminal import note, plain, read_value
from .values import ask_for

if TYPE_CHECKING:  # loading them takes a tenth of a second, and `vault --help` needs none
    from ..operations.login import Plan
    from ..providers.oauth import Device


@cli.command()
@click.argument("provider")
@project_option
@click.option(
    "--preset",
    type=click.Choice([preset.name for preset in PRESETS]),
    help="A mail service whose URLs are known.",
)
@click.option("--tenant", metavar="T", help="The organisation at microsoft365: its id or domain.")
@click.option("--device", is_flag=True, help="Log in on another machine, with a code.")
@click.option("--user", metavar="NAME", help="The name to log in with.")
@click.option("--host", metavar="HOST", help="The mail server, for another service.")
@click.option("--port", metavar="N", help="Its port.")
@click.option("--client-id", metavar="ID", help="The id of the application at the service.")
@click.option("--from-file", metavar="F", help="Read the application's secret from a file.")
@click.option("--from-env", metavar="NAME", help="Take it from an environment variable.")
@click.option("--scope", metavar="TEXT", help="What the tokens are to be for.")
@click.option("--authorization-url", metavar="URL", help="The service's login page.")
@click.option("--device-url", metavar="URL", help="Where it gives out codes for --device.")
@click.option("--token-url", metavar="URL", help="Where it gives out tokens.")
@click.option(
    "--callback",
    metavar="URL",
    help="The redirect URI that the application has at the service. Default: that of the preset,"
    " else http://127.0.0.1/callback. Without a port, any free one is taken.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="For how long to wait for the login. Default: 300; with a code, as long as that lasts.",
)
@click.pass_obj
def login(
    where: Where,
    provider: str,
    project: str | None,
    preset: str | None,
    tenant: str | None,
    device: bool,
    user: str | None,
    host: str | None,
    port: str | None,
    client_id: str | None,
    from_file: str | None,
    from_env: str | None,
    scope: str | None,
    authorization_url: str | None,
    device_url: str | None,
    token_url: str | None,
    callback: str | None,
    wait: float | None,
) -> None:
    """
    Log in to an account with OAuth2, in a browser, and store it.

    What is stored already need not be given again: after the first time, 'vault login PROVIDER' is
    enough. At a terminal the command asks for the rest. The application's secret is never an
    argument.
    """
    from ..operations import login as work

    if from_file is not None and from_env is not None:
        raise click.UsageError("give --from-file or --from-env, not both")
    if (device_url if not device else authorization_url or callback) is not None:
        raise click.UsageError(
            "--device-url is only for --device; --authorization-url and --callback are not"
        )
    with where.open() as vault:
        known, project = known_provider(provider), chosen_project(vault, project)
        grant = known.grant
        options = {"user": user, "host": host, "port": port}
        if grant:
            options |= {grant.client_id: client_id, grant.scope: scope, grant.token_url: token_url}
        fields = {name: Secret(text) for name, text in options.items() if text is not None}
        if unknown := [name for name in fields if known.field(name) is None]:
            raise click.UsageError(f"{provider} has no field {', '.join(unknown)}")
        secret = None
        if from_file is not None or from_env is not None:
            secret = read_value("", from_file, from_env)
            os.environ.pop(from_env or "", None)  # the browser's process gets the rest
        plan = work.plan(
            vault,
            provider,
            project,
            work.Given(
                fields,
                next((each for each in PRESETS if each.name == preset), None),
                tenant,
                device_url if device else authorization_url,
                callback,
                secret,
                device,
            ),
        )
        done = work.login(
            vault, _asked(plan), show_page=_show_page, show_device=_show_device, seconds=wait
        )
        at = f"{provider} ({scope_of(project, {})})"
        note(f"logged in; stored {', '.join(done.stored)} of {at}")
        if done.removed:
            note(f"removed {', '.join(done.removed)}, which this account does not need now")
        at = f" --project {project}" if project else ""
        if (password := grant and grant.instead_of) in done.removed:
            note(f"'vault undo {provider} {password}{at}' puts it back, if the history keeps it")
        note_account(vault, provider, project)
        note(f"next: 'vault check {provider}{at}'")


def _asked(plan: Plan) -> Plan:
    """With what only the operator knows."""
    if not (plan.lacking or plan.asks_secret):
        return plan
    name = plan.provider.name
    if sys.stdin is None or not sys.stdin.isatty():
        if plan.lacking:
            lacking = ", ".join(field.name for field in plan.lacking)
            raise click.UsageError(
                f"{name}: {lacking}: not known, and there is no terminal to ask at; give options"
            )
        return plan.answered({})
    fields = [field._replace(required=True) for field in plan.lacking]
    if plan.asks_secret:
        fields += filter(None, [plan.provider.field(plan.grant.client_secret)])
    return plan.answered({field.name: ask_for(name, field) for field in fields})


def _show_page(url: str, port: int) -> None:
    note("log in on this page:")
    click.echo(plain(url), err=True)
    if _may_open():
        on_thread(lambda: _open(url, port))
    else:
        _say_by_hand(port)


def _open(url: str, port: int) -> None:
    """On a thread: a browser named by BROWSER may stay in the foreground."""
    import webbrowser

    if not webbrowser.open(url):
        _say_by_hand(port)


def _say_by_hand(port: int) -> None:
    note(
        "no browser can be opened here: open the page by hand, on another machine after"
        f" 'ssh -L {port}:127.0.0.1:{port}' to this one; or press Ctrl-C and use --device"
    )


def _may_open() -> bool:
    """Not where a text browser would take the terminal, or one would open where nobody sits."""
    if os.environ.get("BROWSER") or sys.platform == "win32":
        return True
    if sys.platform == "darwin":
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _show_device(device: Device) -> None:
    note(f"open {device.url} on any machine, and enter the code {device.user_code}")
    note(f"waiting for the login, for {device.seconds // 60 or 1} minutes at most")
