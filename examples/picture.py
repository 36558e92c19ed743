"""
The picture of the README, recorded from a real run: messages go out while the key is rotated.

Writes `docs/rotation.svg`; run it with `make picture`. The parts are those of `demo.py`: the real
`vault` command, a second process that sends, an SMTP server. A line stands where it happened: a
message under `$ vault rotate` was taken by the server while that command ran.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import demo
from smtp_server import SmtpServer

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "rotation.svg"
SHOWN = 3  # messages before, while and after the key is rotated
TRIES = 20
TITLE = "A key is rotated while messages go out"
TOLD = (
    "A terminal. A program sends messages for two projects: one has an account of its own, the"
    " other uses everyone's. The command 'vault rotate' puts every value under a new key. Messages"
    " go out before it, while it runs and after it. None fails."
)
COLOURS = {"note": "#9aa4b2", "mail": "#7ee2a8", "command": "#ffffff", "output": "#d5dbe3"}
LINE, COLUMN, MARGIN, COLUMNS = 20, 8.43, 18, 72


class Line(NamedTuple):
    """One line of the recording. Its *kind* is one of COLOURS."""

    kind: str
    text: str


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="vault-picture-"))
    try:
        PICTURE.write_text(drawn(recorded(folder)), "utf-8")
    finally:
        shutil.rmtree(folder)
    print(PICTURE)


def recorded(folder: Path) -> list[Line]:
    """Run it in *folder*. Raises DemoFailed if a message was not sent."""
    with SmtpServer(folder, demo.PASSWORDS) as server, contextlib.redirect_stdout(io.StringIO()):
        run = demo.Demo(folder, server)
        for step in (demo.copy_database, demo.init, demo.store_accounts, demo.send_one_each):
            step(run)
        demo.store_more(run)
        with demo.sender(run) as log:
            for _ in range(TRIES):  # a fast machine may rotate between two messages
                before = _some(run, log)
                begun = len(server.accepted)
                said = run.vault("rotate")
                meanwhile = _lines(run, begun)
                after = _some(run, log)
                if len(meanwhile) >= SHOWN:
                    break
        if failed := [line for line in log.read_text().splitlines() if line[:5] != "sent "]:
            raise demo.DemoFailed(f"a message was not sent: {failed[0]}")
    return [
        Line("note", "# Project A has an account of its own, project B uses everyone's."),
        *before[-SHOWN:],
        Line("command", "$ vault rotate"),
        *meanwhile[:SHOWN],
        # Without its advice on standard error, which is wider than the picture.
        *(Line("output", line) for line in said.splitlines() if not line.startswith("vault: ")),
        *after[:SHOWN],
        Line("note", "# Messages that failed before, meanwhile and after: 0"),
    ]


def _some(run: demo.Demo, log: Path) -> list[Line]:
    begun = len(run.server.accepted)
    demo.wait_for(lambda: len(run.server.accepted) - begun >= SHOWN, "the sender sends", log)
    return _lines(run, begun)


def _lines(run: demo.Demo, begun: int) -> list[Line]:
    """What the server took since then: which account logged in, and for which project."""
    names = {run.own: "project A", run.plain: "project B"}
    return [
        Line("mail", f"  mail sent for {names[to.partition('@')[0]]} from {took.account}")
        for took in run.server.accepted[begun:]
        for to in took.recipients
    ]


def drawn(lines: Sequence[Line]) -> str:
    """
    The lines as an SVG of plain text. They appear one after another, at an even pace that is not
    the run's; all at once for whoever wants less motion.
    """
    width, height = round(COLUMNS * COLUMN + 2 * MARGIN), len(lines) * LINE + 2 * MARGIN
    rules = "".join(f".{kind}{{fill:{colour}}}" for kind, colour in COLOURS.items())
    texts = "\n".join(
        f'<text class="{line.kind}" x="{MARGIN}" y="{MARGIN + LINE * number + 15}"'
        f' style="animation-delay:{number * 0.4:.1f}s">{escape(line.text, quote=False)}</text>'
        for number, line in enumerate(lines)
    )
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"
 height="{height}" role="img" aria-labelledby="title told">
<title id="title">{escape(TITLE)}</title>
<desc id="told">{escape(TOLD, quote=False)}</desc>
<style>
text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre}}
{rules}.command{{font-weight:bold}}
@media (prefers-reduced-motion:no-preference){{text{{animation:show .1s both}}}}
@keyframes show{{from{{opacity:0}}}}
</style>
<rect width="100%" height="100%" rx="8" fill="#12161d"/>
<g xml:space="preserve">
{texts}
</g>
</svg>
"""


if __name__ == "__main__":
    main()
