"""
A question at the terminal. It takes all that is typed or pasted, or nothing.

A hidden question asks the terminal to mark a paste (bracketed paste), so that a line end inside it
belongs to the text. If the terminal cannot, only its speed tells a paste from typing.

When the kernel edits a line, it silently cuts it at 4,095 bytes (1,024 on macOS). So a hidden
question turns that off and edits the line itself. A visible one needs the kernel's echo, so it
refuses a line that may have been cut. Whatever is pasted after the answer is discarded: the shell
would run it as commands.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any, Final, NoReturn, Self

from ..errors import StorageError, WrongArgument
from ..secret import Secret
from ..values.sealing import MAX_VALUE_BYTES

# The longest line that the kernel edits, in bytes, without its end.
_CUT_AT: Final = 4095 if sys.platform == "linux" else 1023
_QUIET: Final = 0.1  # seconds to wait after a line end for the rest of a paste
_BEGIN, _END = b"\x1b[200~", b"\x1b[201~"  # the terminal puts these around a paste
Whole = Callable[[str], bool]


def ask(question: str, *, hidden: bool, whole: Whole | None = None, instead: str = "") -> Secret:
    """
    The answer typed at the terminal at standard input, without its last line end. Enter alone gives
    empty text.

    Args:
        question: shown on standard error, and again when a stopped command goes on.
        hidden: do not show the answer.
        whole: for an answer of several lines: tells whether all of them are there. Ctrl-D on an
            empty line ends it too.
        instead: for the error, what takes a text that is too long or has too many lines.
    Raises:
        EOFError: Ctrl-D before anything was typed, or the terminal is gone.
        WrongArgument: not UTF-8, too long, or followed by more. Nothing is left for the shell.
        StorageError: the terminal cannot be read.
    """
    if sys.platform == "win32":
        return _ask_console(question, hidden, whole)
    with _Terminal(hidden) as terminal:
        while True:
            with contextlib.suppress(_Continued):
                return _Answer(terminal, question, hidden, whole).whole_or_none(instead)


def ready(*files: int, seconds: float | None = None, writing: bool = False) -> list[int]:
    """
    Those files that can be read, or written. Waits until one can, or until time is up.

    `select` works with every terminal, but with no descriptor above 1,023. On macOS, kqueue and
    poll do not work with /dev/tty.
    """
    import selectors  # here: most commands never wait

    kind = selectors.DefaultSelector if max(files) > 1023 else selectors.SelectSelector
    with kind() as selector:
        for file in files:
            selector.register(file, selectors.EVENT_WRITE if writing else selectors.EVENT_READ)
        return [key.fd for key, _ in selector.select(seconds)]


def decoded(data: bytes | bytearray) -> Secret | None:
    """The UTF-8 text, or None. A decoder's error holds the text, so it ends here."""
    try:
        return Secret(data.decode())
    except UnicodeDecodeError:
        return None


class _Continued(Exception):
    """The command was stopped and goes on. Other programs may have used the terminal."""


if sys.platform == "win32":
    import getpass

    def _ask_console(question: str, hidden: bool, whole: Whole | None) -> Secret:
        """Windows does not cut such a line."""
        text = line = getpass.getpass(question) if hidden else input(question)
        while whole and line and not whole(text):
            line = getpass.getpass("")
            text += f"\n{line}" if line else ""
        return Secret(text)

else:
    import termios

    # The signals that stop or end a process which does not handle them.
    _ENDING: Final = "TERM HUP QUIT TSTP CONT INT USR1 USR2 ALRM VTALRM PROF XCPU ABRT"
    _SIGNALS: Final = tuple(getattr(signal, f"SIG{name}") for name in _ENDING.split())

    class _Terminal:
        """
        The terminal at standard input. Its settings are restored at the end, and before a signal
        takes effect.

        Until then a signal writes to a pipe. Each wait for the terminal also waits for that pipe,
        so a signal just before it is not lost.
        """

        def __init__(self, hidden: bool) -> None:
            marks = hidden and os.environ.get("TERM", "") not in ("", "dumb")
            self.on, self.off = ("\x1b[?2004h", "\x1b[?2004l") if marks else ("", "")

        def __enter__(self) -> Self:
            self.found: list[Any] = termios.tcgetattr(0)
            self._input = _opened_anew()
            self._heard, self._told = os.pipe()
            for end in (self._heard, self._told):
                os.set_blocking(end, False)
            handlers = {number: signal.getsignal(number) for number in _SIGNALS}
            # An ignored signal stays ignored, as under nohup.
            ignored = [number for number in _SIGNALS if handlers[number] == signal.SIG_IGN]
            self._handlers = {n: handlers[n] for n in _SIGNALS if n not in ignored}
            self._wakeup = signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
            self._listen()
            return self

        def __exit__(self, *_: object) -> None:
            self._put_back()
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup)
            came = self._came()
            for end in (self._input, self._heard, self._told):
                os.close(end)
            for late in came:
                self._take_effect(late)

        def set(self, mode: list[Any], when: int = termios.TCSAFLUSH) -> None:
            """By default discard what was typed before, as getpass does."""
            while True:
                try:
                    return termios.tcsetattr(0, when, mode)
                except termios.error as error:
                    if error.args[0] != errno.EINTR:
                        why = error.args[1]
                        raise StorageError(f"the terminal cannot be used: {why}") from error

        def read(self) -> bytes:
            """
            The next bytes; empty if the terminal is gone, or after Ctrl-D on an empty line that the
            kernel edits.
            """
            while True:
                if self._heard in ready(self._input, self._heard):
                    self._obey()
                try:
                    return os.read(self._input, 1024)
                except BlockingIOError:  # another program read it while this one was stopped
                    continue
                except OSError as error:
                    raise StorageError(f"the terminal cannot be read: {error.strerror}") from error

        def has_more(self, seconds: float = _QUIET) -> bool:
            return bool(ready(self._input, seconds=seconds))

        def show(self, text: str) -> None:
            """At the terminal, even if standard error goes to a file."""
            if sys.stderr.isatty():
                print(text, end="", file=sys.stderr, flush=True)
            else:
                with contextlib.suppress(OSError), open(os.ttyname(0), "w") as shown:
                    shown.write(text)

        def _obey(self) -> NoReturn:
            self._put_back()
            while came := self._came():
                for number in came:
                    self._take_effect(number)
            self._listen()
            raise _Continued

        def _take_effect(self, number: int) -> None:
            """As if the signal came now. Does not return if it ends the process."""
            handler = self._handlers.get(signal.Signals(number))
            if callable(handler):
                handler(number, None)
            elif handler is not None:
                signal.signal(number, handler)
                os.kill(os.getpid(), number)

        def _put_back(self) -> None:
            with contextlib.suppress(StorageError, OSError):  # the terminal is gone
                self.set(self.found)
                # After `set`, which waits while another program has the terminal.
                self.show(self.off)

        def _listen(self) -> None:
            for number in self._handlers:
                signal.signal(number, lambda *_: None)

        def _came(self) -> bytes:
            with contextlib.suppress(BlockingIOError):
                return os.read(self._heard, 64)
            return b""

    def _opened_anew() -> int:
        """
        The terminal at standard input, through our own descriptor, on which a read never waits.

        A command stopped just before a read would later wait in it, deaf to signals. Other programs
        share the settings of standard input itself.
        """
        try:
            return os.open(os.ttyname(0), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:  # the terminal of another container has no name here
            return os.dup(0)

    class _Answer:
        """What was typed: finished lines, the current one with all of a paste, unread bytes."""

        def __init__(
            self, terminal: _Terminal, question: str, hidden: bool, whole: Whole | None
        ) -> None:
            self.terminal, self.question = terminal, question
            self.hidden, self.whole = hidden, whole
            self.lines, self.line, self.ahead, self.last = bytearray(), bytearray(), bytearray(), 0
            self.pasting = self.cut = False
            self.mode, self.keys = _mode(terminal.found, hidden)

        def whole_or_none(self, instead: str) -> Secret:
            try:
                when = termios.TCSADRAIN if self.hidden else termios.TCSAFLUSH
                self.terminal.set(self.mode, when)
                if self.hidden and self.terminal.has_more(0):
                    self._take_away()
                    discarded = "vault: what was typed before the question was discarded"
                    print(discarded, file=sys.stderr, flush=True)
                self.terminal.show(self.question + self.terminal.on)
                problem, goes_on = self._read(), self._take_away()
                if not self.whole and (goes_on or self.lines.lstrip().startswith(b"-----BEGIN ")):
                    # A PEM text has more lines, however late they come.
                    problem = problem or "more than one line was given"
                elif goes_on:
                    problem = problem or "there is more after the end of the text"
                del self.lines[-1:]  # its line end
                text = None if problem else decoded(self.lines)
                if self.hidden:
                    print(file=sys.stderr, flush=True)
            finally:
                for part in (self.lines, self.line, self.ahead):
                    part.clear()  # an error's frames may be shown, so they must not hold it
            if text is None:
                problem = f"{problem}{instead and f'; {instead}'}" if problem else "not UTF-8 text"
                raise WrongArgument(problem)
            return text

        def _fill(self) -> bool:
            """Read more; whether anything came."""
            before = len(self.ahead)
            self.ahead += self.terminal.read()
            return len(self.ahead) > before

        def _read(self) -> str:
            """Read to the end of the answer; the text says what is wrong with it."""
            size, ended = 0, False
            while not ended:
                if not self._fill():
                    raise EOFError
                size += len(self.ahead)
                while self.ahead and not ended:
                    ended = self._take(self.ahead.pop(0))
                if not self.pasting and len(self.lines) + len(self.line) > MAX_VALUE_BYTES + 1:
                    return f"longer than {MAX_VALUE_BYTES} bytes"
            if not self.hidden and size > _CUT_AT:
                return "the terminal may have cut the line"
            return "a part of the paste is missing" if self.cut else ""

        def _take(self, byte: int) -> bool:
            """Whether this byte ends the answer. In a paste, no byte does so or acts as a key."""
            last, self.last = self.last, byte
            key = None if self.pasting else self.keys.get(byte)
            if key == "VEOF":
                if not self.lines and not self.line:
                    raise EOFError
                return not self.line
            if key == "VERASE":  # a whole UTF-8 character
                while self.line and self.line.pop() & 0xC0 == 0x80:
                    pass
            elif key == "VWERASE":
                self.line[:] = re.sub(rb"\S+\s*\Z", b"", self.line)
            elif key == "VKILL":
                self.line.clear()
            elif byte not in b"\r\n":
                self.line.append(byte)
                if self.line.endswith((_BEGIN, _END)):
                    begins = self.line.endswith(_BEGIN)
                    del self.line[-len(_END) :]
                    self.cut, self.pasting = self.cut or self.pasting == begins, begins
                    return not begins and self.line.endswith(b"\n") and self._end_line()
            elif (last, byte) != (13, 10):
                self.line += b"\n"
                return not self.pasting and self._end_line()
            return False

        def _end_line(self) -> bool:
            """Whether the text is whole. What was pasted after its end stays in the line."""
            while self.line:
                size = self.line.index(b"\n") + 1
                self.lines += self.line[:size]
                del self.line[:size]
                if self.whole is None:
                    return True
                if not self.lines.strip():  # Enter alone, or a text that begins with an empty line
                    if not self.line and not self.ahead and not self.terminal.has_more():
                        return True
                elif self.whole(self.lines[:-1].decode(errors="replace")):
                    return True
            return False

        def _take_away(self) -> bool:
            """Discard the rest, to the end of a paste. True if it was more than line ends."""
            self.ahead[:0] = self.line
            more = pasting = False
            while True:
                more = more or bool(self.ahead.strip(b"\r\n"))
                begin, end = self.ahead.rfind(_BEGIN), self.ahead.rfind(_END)
                pasting = begin > end if begin != end else pasting
                del self.ahead[:-5]  # the rest may be a part of a mark
                if not (pasting or self.terminal.has_more()) or not self._fill():
                    self.ahead.clear()
                    return more

    def _mode(found: list[Any], hidden: bool) -> tuple[list[Any], dict[int, str]]:
        """The settings of the terminal for a question, and the keys that we handle ourselves."""
        mode, characters = [*found[:6], list(found[6])], found[6]
        if not hidden:
            mode[0] |= termios.ICRNL
            mode[3] |= termios.ICANON | termios.ECHO | termios.ISIG
            return mode, {}
        # Each byte as sent: no flow control, no eighth bit stripped, no line end changed.
        mode[0] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR | termios.ISTRIP | termios.IXON)
        mode[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
        mode[3] |= termios.ISIG
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        names = ("VEOF", "VERASE", "VKILL", "VWERASE")
        keys = [(characters[getattr(termios, name)], name) for name in names]
        none = bytes([os.fpathconf(0, "PC_VDISABLE") & 0xFF])
        return mode, {k[0]: name for k, name in keys if isinstance(k, bytes) and k != none}
