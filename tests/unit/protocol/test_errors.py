import re
from collections.abc import Iterator

import pytest

from arc_protocol import errors
from arc_protocol.errors import ArcError, InvalidCommand
from arc_protocol.messages.errors import error_body

# docs/protocol.md, Errors: the protocol's codes, and the framework's own answers
STATUSES = {
    400: {
        *("INVALID_COMMAND", "INVALID_STATE_TRANSITION", "INVALID_ENVELOPE"),
        "COMMAND_TARGET_ID_INVALID",
    },
    401: {"UNAUTHORIZED"},
    403: {"FORBIDDEN"},
    404: {
        *("COMMAND_NOT_FOUND", "LEASE_NOT_FOUND", "COMMAND_TARGET_NOT_FOUND"),
        *("DEPLOYMENT_NOT_FOUND", "NOT_FOUND"),
    },
    405: {"METHOD_NOT_ALLOWED"},
    408: {"REQUEST_TIMEOUT"},
    409: {
        *("CONFLICT", "COMMAND_TARGET_AMBIGUOUS", "LEASE_LOST"),
        *("IDEMPOTENCY_KEY_REUSED", "IDEMPOTENCY_KEY_UNKNOWN"),
    },
    410: {"COMMAND_EXPIRED"},
    413: {"PAYLOAD_TOO_LARGE"},
    416: {"RANGE_NOT_SATISFIABLE"},
    422: {"NO_COMMAND_TARGETS"},
    429: {"RATE_LIMITED", "QUOTA_EXCEEDED"},
    431: {"HEADERS_TOO_LARGE"},
    500: {
        *("STORAGE_OPERATION_FAILED", "KV_OPERATION_FAILED", "SERIALIZATION_FAILED"),
        "COMMANDS_ERROR",
    },
    501: {"OPERATION_NOT_SUPPORTED"},
    502: {"TRANSPORT_DISPATCH_FAILED", "TRANSPORT_DISPATCH_REJECTED"},
    503: {"UNAVAILABLE"},
}


def below(kind: type[ArcError]) -> Iterator[type[ArcError]]:
    """The error classes of the module below `kind`, depth first, as written."""
    for inner in kind.__subclasses__():
        if inner.__module__ == errors.__name__:
            yield inner
            yield from below(inner)


def test_the_tree_in_the_docstring_is_the_classes() -> None:
    lines = re.findall(r"^    ([│ ]*)[├└]── (\w+)(.*)$", errors.__doc__ or "", re.MULTILINE)
    drawn: list[tuple[str, int]] = []
    inherited: dict[int, tuple[str, str]] = {}
    for indent, name, rest in lines:
        depth = len(indent) // 4 + 1
        kind = getattr(errors, name)
        status, code = inherited.get(depth - 1, ("", ""))
        status = (re.findall(r"\b[45]\d\d\b", rest) or [status])[0]
        code = (re.findall(r"\b[A-Z][A-Z_]{3,}\b", rest) or [code])[0]
        inherited[depth] = (status, code)
        drawn.append((name, depth))

        assert str(kind.http_status) == status, name
        assert kind.code == code or not re.search(r"[A-Z_]{4,}", rest), name
        assert kind.retryable == ("retryable" in rest), name

    def real(kind: type[ArcError], depth: int) -> Iterator[tuple[str, int]]:
        for inner in kind.__subclasses__():
            if inner.__module__ == errors.__name__:
                yield inner.__name__, depth
                yield from real(inner, depth + 1)

    assert drawn == list(real(ArcError, 1))


def test_every_code_has_the_status_of_the_protocol() -> None:
    leaves = [
        kind for kind in below(ArcError) if not kind.__subclasses__() or kind.code != "BAD_REQUEST"
    ]
    found: dict[int, set[str]] = {}
    for kind in leaves:
        found.setdefault(kind.http_status, set()).add(kind.code)

    assert found == STATUSES


def test_what_may_go_well_the_next_time_is_retryable_and_nothing_else() -> None:
    retryable = {kind.code for kind in below(ArcError) if kind.retryable}

    assert retryable == {
        *("REQUEST_TIMEOUT", "RATE_LIMITED", "COMMANDS_ERROR", "STORAGE_OPERATION_FAILED"),
        *("KV_OPERATION_FAILED", "TRANSPORT_DISPATCH_FAILED", "UNAVAILABLE", "QUOTA_EXCEEDED"),
    }


@pytest.mark.parametrize("kind", list(below(ArcError)))
def test_an_error_becomes_a_body_with_all_that_the_protocol_asks_for(kind: type[ArcError]) -> None:
    body = error_body(kind("what went wrong", command_id="cmd_1", field=None))

    assert body.code == kind.code
    assert body.message == "what went wrong"
    assert body.http_status_code == kind.http_status
    assert body.retryable == kind.retryable
    assert body.context == {"command_id": "cmd_1"}


def test_an_error_without_context_has_none_in_its_body() -> None:
    assert error_body(errors.LeaseLost("gone", field=None)).context is None


def test_what_an_error_echoes_of_a_request_has_its_controls_escaped() -> None:
    body = error_body(
        InvalidCommand("no such target: a\0b\x1b[2J\u202e\x9bü\nit ended", target="a\0b", tries=2)
    )

    assert body.message == "no such target: a\\x00b\\x1b[2J\\u202e\\x9bü\nit ended"
    assert body.context == {"target": "a\\x00b", "tries": 2}
