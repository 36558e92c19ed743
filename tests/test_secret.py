from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
import traceback
from collections.abc import Callable

import pytest

from outreach_vault import Secret

TEXT = "correct-horse-battery-staple"
SHORT_AND_LONG = ["x", TEXT, "y" * 10_000, ""]


@dataclasses.dataclass
class Account:
    user: str
    password: Secret


@pytest.mark.parametrize("text", SHORT_AND_LONG)
def test_only_reveal_gives_the_text(text: str) -> None:
    secret = Secret(text)
    assert secret.reveal() == text
    # One width for all: the length is a fact too.
    assert (str(secret), repr(secret)) == (
        "********",
        "Secret('********')",
    )


def test_containers_and_tracebacks_show_the_mask() -> None:
    secret = Secret(TEXT)
    shown = [f"{[secret]} {(secret,)} {Account('robot', secret)}", "%s %r" % (secret, secret)]  # noqa: UP031  # the spelling is under test
    try:
        raise ValueError(secret)
    except ValueError as error:
        shown += traceback.TracebackException.from_exception(error, capture_locals=True).format()
    assert TEXT not in "".join(shown)
    assert "'********'" in shown[0]


@pytest.mark.parametrize(
    "use",
    [
        lambda secret: f"{secret}",
        lambda secret: f"{secret:>40}",
        lambda secret: "{}".format(secret),  # noqa: UP032  # the spelling is under test
        lambda secret: format(secret),
        lambda secret: json.dumps({"password": secret}),
        *(
            lambda secret, protocol=protocol: pickle.dumps(secret, protocol)
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
        copy.copy,
        copy.deepcopy,
        lambda secret: copy.deepcopy([secret]),
        lambda secret: dataclasses.asdict(Account("robot", secret)),
        lambda secret: vars(secret),
        lambda secret: "" + secret,
        list,
        bytes,
        hash,
        lambda secret: {secret},
    ],
)
def test_ways_to_spread_the_text_are_refused_without_showing_it(
    use: Callable[[Secret], object],
) -> None:
    with pytest.raises(TypeError) as caught:
        use(Secret(TEXT))
    assert TEXT not in "".join(traceback.format_exception(caught.value))


def test_equal_texts_are_equal_and_nothing_else_is() -> None:
    assert Secret(TEXT) == Secret(TEXT)
    assert Secret(TEXT) != Secret(TEXT + "x")
    assert Secret("é\U0001f511") == Secret("é\U0001f511")
    assert Secret("\ud800") == Secret("\ud800")  # not encodable as UTF-8, and still comparable
    assert Secret("\ud800") != Secret("?")


@pytest.mark.parametrize("other", [TEXT, TEXT.encode(), None, 0, [TEXT]])
def test_a_secret_never_equals_plain_text(other: object) -> None:
    assert Secret(TEXT) != other
    assert not Secret(TEXT) == other  # noqa: SIM201  # the other operator


def test_logging_shows_the_mask(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(TEXT)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("adapter").debug("password %s, %r, %s", secret, secret, {"p": secret})
        try:
            raise RuntimeError(secret)
        except RuntimeError:
            logging.getLogger("adapter").exception("failed with %s", secret)
    assert TEXT not in caplog.text
    assert caplog.text.count("********") == 5


def test_a_secret_takes_no_further_attributes() -> None:
    with pytest.raises(AttributeError):
        Secret(TEXT).note = "x"  # type: ignore[attr-defined]
