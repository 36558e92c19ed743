"""
What a shell's Tab key finds: the words for a parameter, and the script that asks for them.

Nothing is written and no value is read. Whatever fails gives no words, since an error would land in
the middle of what somebody types.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class
from click.types import StringParamType

from ..database import open_database
from ..limits import within
from ..providers import catalogue, provider_of
from ..values.projects import Projects

SHELLS: Final = ("bash", "zsh", "fish")
_SECONDS: Final = 2.0  # another program may have locked the database, or a server be far away
_FILES: Final = ("db", "from-file", "passphrase-file")
_FOLDERS: Final = ("key-dir",)
# Not click's: that one drops backslashes, splits names at spaces and expands `*` in them.
_BASH: Final = """\
%(complete_func)s() {
    local found IFS=$'\\n'
    COMPREPLY=()
    while read -r found; do
        case $found in
            file,*) compopt -o default ;;
            dir,*) compopt -o dirnames ;;
            plain,*) printf -v found %%q "${found#plain,}"; COMPREPLY+=("$found") ;;
        esac
    done < <(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -F %(complete_func)s %(prog_name)s
"""


class _Word(StringParamType):
    """Text of a parameter whose name says which words it takes."""

    def __init__(self, means: str) -> None:
        self.means = means

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        if self.means in (*_FILES, *_FOLDERS):
            kind = "dir" if self.means in _FOLDERS else "file"
            return [CompletionItem(incomplete, type=kind)]
        try:
            found = list(_words(self.means, ctx))
        except Exception:  # noqa: BLE001  # see above
            return []
        return [CompletionItem(word) for word in found if word.startswith(incomplete)]


def complete_each(command: click.Command) -> None:
    """Let each parameter of *command*, and of its commands, complete what its name says."""
    for param in command.params:
        # --from and --to of 'vault copy' take a project too.
        means = "project" if param.metavar == "PROJECT" else param.opts[0].lstrip("-")
        if means in ("provider", "field", "project", *_FILES, *_FOLDERS):
            param.type = _Word(means)
    if isinstance(command, click.Group):
        for each in inner(command).values():
            complete_each(each)


def inner(group: click.Group) -> dict[str, click.Command]:
    """The commands of a group, by name."""
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command}


def script(shell: str, name: str = "vault") -> str:
    """What makes *shell* complete the command of that *name*."""
    click_s = get_completion_class(shell)
    assert click_s
    complete = click_s(click.Command(name), {}, name, "_VAULT_COMPLETE")
    if shell == "bash":
        return _BASH % complete.source_vars()
    # Not its `source`: that of bash starts another program. An error would garble the line.
    text = ShellComplete.source(complete).strip()
    # As click has it, zsh completes from an installed file at the first call and not at the second.
    text = text.replace("$zsh_eval_context[-1] == loadautofunc", f"$funcstack[1] == _{name}")
    before, asked, after = text.partition(f"{shell}_complete ")
    return f"{before}{asked}{after.replace(f'{name})', f'{name} 2>/dev/null)', 1)}\n"


def _words(means: str, ctx: click.Context) -> Iterable[str]:
    if means == "provider":
        return [provider.name for provider in catalogue()]
    if means == "field":
        provider = provider_of(ctx.params.get("provider") or "")
        return [field.name for field in provider.fields]
    return within(_SECONDS, lambda: _projects(getattr(ctx.obj, "db", None)))


def _projects(path: str | None) -> list[str]:
    """As the tables call them: names, and the ids of those whose name is not enough."""
    database = open_database(path, read_only=True)
    try:
        found = Projects(database).names().values()
    finally:
        database.close_all()
    return [word for word in found if word.isprintable()]
