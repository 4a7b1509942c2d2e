"""Arguments as they are typed, and the params they become."""

from __future__ import annotations

import io
import os
import socket
import sys
from pathlib import Path

import pytest

from arc_client.cli.arguments import (
    CHECKED_BYTES,
    ConnectionOptions,
    check_json,
    check_writable,
    params_body,
)
from arc_client.errors import ConfigurationError, InvalidParams


def read(text: str | None, *, is_raw: bool = False) -> bytes:
    """The params that an argument means."""
    with params_body(text, is_raw=is_raw) as body:
        return body.data()


class Stdin:
    """A stdin with bytes in it."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def test_json_is_sent_as_it_was_typed() -> None:
    assert read('{"a":  1}') == b'{"a":  1}'
    assert read('"ü"') == '"ü"'.encode()


def test_nothing_is_an_empty_object() -> None:
    assert read(None) == b"{}"


@pytest.mark.parametrize("text", ["-", "@-"])
def test_a_dash_is_stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b" [1]\n"))

    assert read(text) == b" [1]\n"


def test_an_at_sign_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_bytes(b"[1]")

    assert read(f"@{file}") == b"[1]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, b}', "--params is not JSON: line 1 column 10: Expecting property name"),
        ("[1,\n 2,,\n 3]", "line 2 column 4"),
        ("", "--params is empty"),
        ("hello", "line 1 column 1: Expecting value"),
        ("[NaN]", "is not JSON"),
        ('"\\ud800"', "is not JSON"),
        ("[" * 10_000 + "]" * 10_000, "nested too deeply"),
    ],
)
def test_what_is_not_json_is_refused_with_the_position(text: str, message: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        read(text)

    assert message in refused.value.message


def test_the_mistake_is_shown_with_a_mark_under_it() -> None:
    with pytest.raises(InvalidParams) as refused:
        read('{"a": ' + "1" * 50 + ', b, "c": ' + "2" * 50 + "}")

    text, mark = refused.value.message.split("\n")[1:]
    assert text[mark.index("^")] == "b"
    assert len(text) < 70


def test_the_text_of_a_file_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text('{"secret" 1}')

    with pytest.raises(
        InvalidParams, match=r"p\.json is not JSON: line 1 column 11(?s:.*)--raw$"
    ) as refused:
        read(f"@{file}")

    assert "secret" not in refused.value.message
    assert refused.value.message.endswith("\nTo send it as it is: --raw")


def test_bytes_that_are_not_utf8_are_counted() -> None:
    with pytest.raises(InvalidParams, match="p is not UTF-8 at byte 3"):
        check_json(b'"a\xff"', "p")


def test_raw_params_may_be_anything(tmp_path: Path) -> None:
    file = tmp_path / "p"
    file.write_bytes(b"\xff\x00")

    assert read(f"@{file}", is_raw=True) == b"\xff\x00"
    assert read("hello", is_raw=True) == b"hello"


def test_a_large_file_is_not_looked_into(tmp_path: Path) -> None:
    file = tmp_path / "p"
    file.write_bytes(b"\xff" * (CHECKED_BYTES + 1))

    assert len(read(f"@{file}")) == CHECKED_BYTES + 1


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidParams, match="cannot read no/such/file"):
        read("@no/such/file")


def test_what_is_given_counts_before_the_environment(tmp_path: Path) -> None:
    environ = {
        "ARC_SERVER_URL": "http://env",
        "ARC_TOKEN_FILE": "/env/token",
        "ARC_TOKEN": "t",
        "ARC_CA_FILE": "",
    }

    assert ConnectionOptions().client_options(environ) == {
        "server_url": "http://env",
        "token_file": Path("/env/token"),
        "token": None,
        "ca_file": None,
        "allow_http": False,
        "allow_hosts": [],
    }
    given = ConnectionOptions("http://given", tmp_path / "token").client_options(environ)
    assert given["server_url"] == "http://given"
    assert given["token_file"] == tmp_path / "token"
    assert given["token"] is None


def test_a_token_may_be_in_the_environment_itself() -> None:
    options = ConnectionOptions("https://h").client_options(
        {"ARC_TOKEN": "t", "ARC_TOKEN_FILE": ""}
    )

    assert (options["token"], options["token_file"]) == ("t", None)


def test_options_of_a_command_count_before_those_of_arc() -> None:
    outer = ConnectionOptions("http://outer", Path("outer"), Path("ca"))

    assert ConnectionOptions("http://inner").over(outer) == ConnectionOptions(
        "http://inner", Path("outer"), Path("ca")
    )


def test_without_a_server_it_says_how_to_name_one() -> None:
    with pytest.raises(ConfigurationError, match="--server URL or set ARC_SERVER_URL"):
        ConnectionOptions().client_options({})


def test_where_a_result_cannot_be_written_is_said_beforehand(tmp_path: Path) -> None:
    check_writable(tmp_path / "new")
    check_writable(Path("/dev/null"))
    with pytest.raises(ConfigurationError, match="is a directory"):
        check_writable(tmp_path)
    with pytest.raises(ConfigurationError, match="there is no directory"):
        check_writable(tmp_path / "no" / "file")


def test_special_files_can_be_written_and_what_cannot_is_refused(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with open(reader), open(writer, "w"), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))

        check_writable(Path(f"/dev/fd/{writer}"))
        for bad in (tmp_path / "socket", Path("/dev/fd/9999"), Path("/proc/version/x")):
            with pytest.raises(ConfigurationError, match="cannot write to"):
                check_writable(bad)
