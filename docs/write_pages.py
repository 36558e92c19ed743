"""
Writes what is installed beside the command, from the command itself: a man page for `vault` and for
each of its commands, and the completion scripts of bash, zsh and fish. Run it with `make pages`.

Not click-man: it cuts each NAME short, puts the day into the page, and does not escape text.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Final

import click

from outreach_vault.command.cli import cli
from outreach_vault.command.completing import SHELLS, inner, script

ROOT: Final = Path(__file__).resolve().parent.parent
SHARE: Final = ROOT / "share"
# Where each shell looks, by the command's name.
PLACES: Final = {
    "bash": "bash-completion/completions/{}",
    "zsh": "zsh/site-functions/_{}",
    "fish": "fish/vendor_completions.d/{}.fish",
}
ENVIRONMENT: Final = {
    "OUTREACH_VAULT_DB": "The database, where --db does not say.",
    "OUTREACH_VAULT_DB_FILE": "A file whose first line says it instead; not both.",
    "OUTREACH_VAULT_KEYS": "Where keys live, as a URL, where --keys does not say.",
    "OUTREACH_VAULT_KEY_DIR": "A key directory, where --key-dir does not say.",
    "OUTREACH_VAULT_KEYRING_TIMEOUT": "How many seconds a call to the OS keyring, or to another"
    " key store with a server, may take. It is 10 if this is not set.",
}
FILES: Final = {
    "~/.config/Samsara/samsara.db": "The desktop app's own database on Linux.",
    "~/Library/Application Support/Samsara/samsara.db": "The same on macOS.",
}


def main() -> None:
    wanted = pages()
    for path in SHARE.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    print(f"{len(wanted)} files are in {SHARE}", file=sys.stderr)


def pages() -> dict[Path, str]:
    """The text of each file, by its path."""
    found = {SHARE / "man" / "man1" / f"{name}.1": text for name, text in _man(cli, "vault", None)}
    for shell in SHELLS:
        for name in ("vault", "outreach-vault"):
            found[SHARE / PLACES[shell].format(name)] = script(shell, name)
    return found


def _man(
    command: click.Command, name: str, above: click.Context | None
) -> Iterator[tuple[str, str]]:
    context = click.Context(command, info_name=name, parent=above, **command.context_settings)
    title = context.command_path.replace(" ", "-")
    yield title, "\n".join(_page(command, context, title)) + "\n"
    for word, each in _below(command):
        yield from _man(each, word, context)


def _page(command: click.Command, context: click.Context, title: str) -> Iterator[str]:
    told, _, statuses = cleandoc(command.help or "").partition("Exit status:")
    first, *_ = " ".join(told.split()).split(". ")
    yield f'.TH {title.upper()} 1 "" outreach_vault "outreach_vault"'
    yield f".SH NAME\n{_text(title)} \\- {_text(first[:1].lower() + first[1:].rstrip('.'))}"
    yield f".SH SYNOPSIS\n.B {_text(context.command_path)}"
    yield _text(" ".join(command.collect_usage_pieces(context)))
    yield ".SH DESCRIPTION"
    yield "\n.PP\n".join(_text(" ".join(part.split())) for part in told.strip().split("\n\n"))
    records = [param.get_help_record(context) for param in command.get_params(context)]
    yield from _terms("OPTIONS", [each for each in records if each and each[1]])
    if below := _below(command):
        helps = [(f"{context.command_path} {word}", each.help or "") for word, each in below]
        yield from _terms("COMMANDS", [(word, text.split("\n\n")[0]) for word, text in helps])
    if context.parent is None:
        listed = re.findall(r"(\d+) (.+?)(?=, \d+ |\.$)", " ".join(statuses.split()))
        yield from _terms("EXIT STATUS", listed)
        yield from _terms("ENVIRONMENT", list(ENVIRONMENT.items()))
        yield from _terms("FILES", list(FILES.items()))
    examples = list(dict.fromkeys(_examples(context.command_path)))[:4]
    if examples:
        yield ".SH EXAMPLES\n.EX"
        yield from (_text(f"$ {example}") for example in examples)
        yield ".EE"
    others = [each.command_path.replace(" ", "-") for each in _around(command, context)]
    if others:
        yield ".SH SEE ALSO\n" + ",\n".join(f".BR {_text(other)} (1)" for other in others)


def _around(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    """The groups that the command is in, and its own commands."""
    if context.parent:
        yield from _around(click.Command(""), context.parent)
        yield context.parent
    for word, each in _below(command):
        yield click.Context(each, info_name=word, parent=context)


def _below(command: click.Command) -> list[tuple[str, click.Command]]:
    return sorted(inner(command).items()) if isinstance(command, click.Group) else []


def _examples(path: str) -> Iterator[str]:
    """What the pages show of that command; a test runs them."""
    names = ("values", "keys", "import-export", "operators")
    for page in ("README.md", *(f"docs/{name}.md" for name in names)):
        for line in re.findall(r"^\$ (.+)$", (ROOT / page).read_text("utf-8"), re.M):
            if re.search(rf"(?:^|\| |\w=\S+ ){path}(?: |$)", line):
                yield line


def _terms(title: str, terms: list[tuple[str, str]]) -> Iterator[str]:
    if terms:
        yield f".SH {title}"
    for term, text in terms:
        bold = re.sub(r"(?<!\S)(\\-[^ ,]+|~[^,]*|[a-z][^ ,]*)", r"\\fB\1\\fR", _text(term))
        yield f".TP\n{bold}\n{_text(' '.join(text.split()))}"


def _text(text: str) -> str:
    """*text* as roff takes it: a hyphen is one, and no line is a request."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    return rf"\&{escaped}" if escaped.startswith(".") else escaped


if __name__ == "__main__":
    main()
