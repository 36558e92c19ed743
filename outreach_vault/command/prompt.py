"""
A question at the terminal: all that is typed or pasted comes in, or none of it.

A hidden question has the terminal mark what is pasted (bracketed paste), so that a line end in it
is one of the text. From a terminal that does not, a paste is known by its speed alone.

The kernel's own editing of a line cuts it at 4,095 bytes (1,024 on macOS) and says nothing. So a hidden question does
without it and edits the line itself. A visible one keeps it, for its echo, and refuses a line that may have been cut.
What was pasted beyond the answer is taken away, since the shell would run it as commands.
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

_CUT_AT: Final = 4095 if sys.platform == "linux" else 1023  # bytes of a line that the kernel edits, less its end
_QUIET: Final = 0.1  # seconds after a line end in which the rest of a pasted text comes
_BEGIN, _END = b"\x1b[200~", b"\x1b[201~"  # what the terminal puts around a paste
Whole = Callable[[str], bool]


def ask(question: str, *, hidden: bool, whole: Whole | None = None, instead: str = "") -> Secret:
    """
    What is typed at the terminal at standard input, less the line end at its end; empty text for Enter alone.

    Args:
        question: shown on standard error. When the command was stopped and goes on, it is asked anew.
        hidden: the answer is not shown.
        whole: for an answer of several lines: whether the text is all there. Ctrl-D on an empty line ends it too.
        instead: what takes a text that is too long or has too many lines.
    Raises:
        EOFError: Ctrl-D before anything was typed, or the terminal is gone.
        WrongArgument: not UTF-8, too long, or it goes on after its end. None of it is left for the shell.
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
    Those that can be read, or written, as soon as one can or when the time is over.

    `select` takes no descriptor above 1,023, but every terminal: kqueue and poll of macOS no /dev/tty.
    """
    import selectors  # here: most commands wait for nothing

    kind = selectors.DefaultSelector if max(files) > 1023 else selectors.SelectSelector
    with kind() as selector:
        for file in files:
            selector.register(file, selectors.EVENT_WRITE if writing else selectors.EVENT_READ)
        return [key.fd for key, _ in selector.select(seconds)]


def decoded(data: bytes | bytearray) -> Secret | None:
    """As UTF-8. Here, since the error of a decoder holds what it decodes."""
    try:
        return Secret(data.decode())
    except UnicodeDecodeError:
        return None


class _Continued(Exception):
    """The command was stopped and goes on: others had the terminal meanwhile."""


if sys.platform == "win32":
    import getpass

    def _ask_console(question: str, hidden: bool, whole: Whole | None) -> Secret:
        """Asked for so, no line is cut."""
        text = line = getpass.getpass(question) if hidden else input(question)
        while whole and line and not whole(text):
            line = getpass.getpass("")
            text += f"\n{line}" if line else ""
        return Secret(text)

else:
    import termios

    # Those that stop or end a process unless somebody sees to them.
    _ENDING: Final = ("TERM", "HUP", "QUIT", "TSTP", "CONT", "INT", "USR1", "USR2", "ALRM", "VTALRM", "PROF", "XCPU", "ABRT")
    _SIGNALS: Final = tuple(getattr(signal, f"SIG{name}") for name in _ENDING)

    class _Terminal:
        """
        The terminal at standard input. It is put back at the end, and before a signal has its effect.

        Signals meanwhile write into a pipe, which a wait for the terminal waits for too, so that one which comes
        just before the wait is not lost.
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
            # What is ignored stays so, as under nohup.
            self._handlers = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
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
            """By default what was typed before is thrown away, as getpass does."""
            while True:
                try:
                    return termios.tcsetattr(0, when, mode)
                except termios.error as error:
                    if error.args[0] != errno.EINTR:
                        raise StorageError(f"the terminal cannot be used: {error.args[1]}") from error

        def read(self) -> bytes:
            """The next bytes; none where the terminal is gone, or for Ctrl-D on an empty line that the kernel edits."""
            while True:
                if self._heard in ready(self._input, self._heard):
                    self._obey()
                try:
                    return os.read(self._input, 1024)
                except BlockingIOError:  # somebody else had it, while this command was stopped
                    continue
                except OSError as error:
                    raise StorageError(f"the terminal cannot be read: {error.strerror}") from error

        def has_more(self, seconds: float = _QUIET) -> bool:
            return bool(ready(self._input, seconds=seconds))

        def show(self, text: str) -> None:
            """Where it can be seen: standard error may go to a file."""
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
            """As if it came now; what ends the process does not come back."""
            handler = self._handlers.get(signal.Signals(number))
            if callable(handler):
                handler(number, None)
            elif handler is not None:
                signal.signal(number, handler)
                os.kill(os.getpid(), number)

        def _put_back(self) -> None:
            with contextlib.suppress(StorageError, OSError):  # the terminal is gone
                self.set(self.found)
                self.show(self.off)  # after what waits while another program has the terminal

        def _listen(self) -> None:
            for number in self._handlers:
                signal.signal(number, lambda *_: None)

        def _came(self) -> bytes:
            with contextlib.suppress(BlockingIOError):
                return os.read(self._heard, 64)
            return b""

    def _opened_anew() -> int:
        """
        The terminal at standard input by a descriptor of our own, from which a read never waits.

        A command that is stopped just before a read would wait there when it goes on, deaf to signals. The descriptor
        that there is has its settings in common with other programs.
        """
        try:
            return os.open(os.ttyname(0), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:  # a terminal of another container has no name here
            return os.dup(0)

    class _Answer:
        """What is typed: whole lines, the present one with all of a paste, bytes not looked at yet."""

        def __init__(self, terminal: _Terminal, question: str, hidden: bool, whole: Whole | None) -> None:
            self.terminal, self.question, self.hidden, self.whole = terminal, question, hidden, whole
            self.lines, self.line, self.ahead, self.last = bytearray(), bytearray(), bytearray(), 0
            self.pasting = self.cut = False
            self.mode, self.keys = _mode(terminal.found, hidden)

        def whole_or_none(self, instead: str) -> Secret:
            try:
                self.terminal.set(self.mode, termios.TCSADRAIN if self.hidden else termios.TCSAFLUSH)
                if self.hidden and self.terminal.has_more(0):
                    self._take_away()
                    print("vault: what was typed before the question is thrown away", file=sys.stderr, flush=True)
                self.terminal.show(self.question + self.terminal.on)
                problem, goes_on = self._read(), self._take_away()
                if not self.whole and (goes_on or self.lines.lstrip().startswith(b"-----BEGIN ")):
                    # A PEM text goes on after its first line, however late the rest of it comes.
                    problem = problem or "more than one line was given"
                elif goes_on:
                    problem = problem or "there is more after the end of the text"
                del self.lines[-1:]  # its line end
                text = None if problem else decoded(self.lines)
                if self.hidden:
                    print(file=sys.stderr, flush=True)
            finally:
                for part in (self.lines, self.line, self.ahead):
                    part.clear()  # the frames of an error, which may be shown, hold none of it
            if text is None:
                raise WrongArgument(f"{problem}{instead and f'; {instead}'}" if problem else "not UTF-8 text")
            return text

        def _fill(self) -> bool:
            """Whether anything came."""
            before = len(self.ahead)
            self.ahead += self.terminal.read()
            return len(self.ahead) > before

        def _read(self) -> str:
            """Read to the end of the answer; what is wrong with it."""
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
            """Whether this byte ends the answer. In a paste none does, and none is a key."""
            last, self.last = self.last, byte
            key = None if self.pasting else self.keys.get(byte)
            if key == "VEOF":
                if not self.lines and not self.line:
                    raise EOFError
                return not self.line
            if key == "VERASE":  # a whole character of UTF-8
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
            """Whether the text is whole. What was pasted after its end is left in the line."""
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
            """Take away what follows, a paste to its end; whether it is more than line ends."""
            self.ahead[:0] = self.line
            more = pasting = False
            while True:
                more = more or bool(self.ahead.strip(b"\r\n"))
                begin, end = self.ahead.rfind(_BEGIN), self.ahead.rfind(_END)
                pasting = begin > end if begin != end else pasting
                del self.ahead[:-5]  # what is left may be a part of a mark
                if not (pasting or self.terminal.has_more()) or not self._fill():
                    self.ahead.clear()
                    return more

    def _mode(found: list[Any], hidden: bool) -> tuple[list[Any], dict[int, str]]:
        """How the terminal is set for a question, and the keys that we see to."""
        mode, characters = [*found[:6], list(found[6])], found[6]
        if not hidden:
            mode[0] |= termios.ICRNL
            mode[3] |= termios.ICANON | termios.ECHO | termios.ISIG
            return mode, {}
        # Each byte as it was sent: no flow control, no eighth bit cut, no line end made of another.
        mode[0] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR | termios.ISTRIP | termios.IXON)
        mode[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
        mode[3] |= termios.ISIG
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        keys = {name: characters[getattr(termios, name)] for name in ("VEOF", "VERASE", "VKILL", "VWERASE")}
        none = bytes([os.fpathconf(0, "PC_VDISABLE") & 0xFF])
        return mode, {key[0]: name for name, key in keys.items() if isinstance(key, bytes) and key != none}
