import base64
import json
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_protocol.codec import decode, encode, utc
from arc_protocol.errors import InvalidCommand
from arc_protocol.messages.agents import AgentRegistration, HandlerInfo
from arc_protocol.messages.base import CommandTarget, Timestamp
from arc_protocol.messages.bodies import CommandResponse, InlineBody, decode_base64
from arc_protocol.messages.commands import CreateCommandRequest, UploadCompleteRequest
from arc_protocol.messages.leases import LeaseRequest


def create(**changes: Any) -> bytes:
    """A create request with some fields changed."""
    params = {"mode": "inline", "inlineBase64": ""}
    return json.dumps({"deploymentId": "d", "command": "c", "params": params, **changes}).encode()


def agent_with_schema(schema: str) -> bytes:
    """An agent's registration with a handler whose paramsSchema is that JSON."""
    handler = '{"name":"n","paramsSchema":%s}' % schema  # noqa: UP031
    return ('{"deploymentId":"d","version":"","hostname":"","handlers":[%s]}' % handler).encode()  # noqa: UP031


def refusal(data: bytes, kind: Any) -> InvalidCommand:
    """The error that decoding raises."""
    with pytest.raises(InvalidCommand) as raised:
        decode(data, kind)
    return raised.value


# Base64


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("", b""),
        ("QQ==", b"A"),
        ("QUI=", b"AB"),
        ("QUJD", b"ABC"),
        ("QUJDRA==", b"ABCD"),
        ("+/+/", b"\xfb\xff\xbf"),
        ("AA==", b"\0"),
        ("/w==", b"\xff"),
    ],
)
def test_canonical_base64_is_decoded(text: str, data: bytes) -> None:
    assert decode_base64(text) == data
    assert InlineBody(inline_base64=text).data() == data
    assert InlineBody.of(data).inline_base64 == text


@pytest.mark.parametrize(
    "text",
    [
        *("Q", "QQ", "QQ=", "QQ===", "Q===", "====", "=", "=QQ=", "QQ=A", "QUJD="),  # padding
        *("QR==", "QUJ=", "QUJDRB==", "//==", "///="),  # bits that should be zero
        *("-_-_", "Q-==", "Q_=="),  # the URL alphabet
        *("QQ==\n", "\nQQ==", "Q Q=", "QQ\n=", "QU JD", "QUJD\n", "QUJD\r\n\r\n"),  # white space
        *("QQ==QQ==", "QQ==QUJD"),  # two in one
        *("QQ==\0", "\0\0\0\0", "éQQ=", "ＱＱ==", "Q*==", "QUJ,"),  # other characters
    ],
)
def test_any_other_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="base64"):
        decode_base64(text)


@given(st.binary(max_size=100))
def test_bytes_survive_base64(data: bytes) -> None:
    assert InlineBody.of(data).data() == data


@given(st.text(alphabet="ABZaz09+/=-_ \n", max_size=12))
def test_what_is_accepted_is_what_an_encoder_writes(text: str) -> None:
    try:
        data = decode_base64(text)
    except ValueError:
        return
    assert base64.b64encode(data).decode() == text


# Timestamps


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01T09:30:00Z", datetime(2026, 3, 1, 9, 30, tzinfo=UTC)),
        ("2026-03-01T09:30:00.1Z", datetime(2026, 3, 1, 9, 30, 0, 100_000, tzinfo=UTC)),
        ("2026-03-01T09:30:00.123Z", datetime(2026, 3, 1, 9, 30, 0, 123_000, tzinfo=UTC)),
        ("2026-03-01T09:30:00.123456Z", datetime(2026, 3, 1, 9, 30, 0, 123_456, tzinfo=UTC)),
        ("2026-03-01T09:30:00.123456789Z", datetime(2026, 3, 1, 9, 30, 0, 123_457, tzinfo=UTC)),
        (
            "2026-03-01T09:30:00.123456789+00:00",
            datetime(2026, 3, 1, 9, 30, 0, 123_457, tzinfo=UTC),
        ),
        ("2026-03-01T09:30:00-00:00", datetime(2026, 3, 1, 9, 30, tzinfo=UTC)),
        ("2026-03-01T09:30:00+05:45", datetime(2026, 3, 1, 3, 45, tzinfo=UTC)),
        ("2026-03-01T23:30:00-12:00", datetime(2026, 3, 2, 11, 30, tzinfo=UTC)),
        ("2026-03-01t09:30:00z", datetime(2026, 3, 1, 9, 30, tzinfo=UTC)),
        ("2026-03-01 09:30:00Z", datetime(2026, 3, 1, 9, 30, tzinfo=UTC)),
        ("2024-02-29T00:00:00Z", datetime(2024, 2, 29, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_a_timestamp_with_any_offset_is_read(text: str, moment: datetime) -> None:
    assert utc(decode(json.dumps(text).encode(), Timestamp)) == moment


@pytest.mark.parametrize(
    "value",
    [
        *("2026-03-01T09:30:00", "2026-03-01T09:30:00.5", "2026-03-01 09:30:00"),  # no offset
        *("2026-03-01", "2026-03-01T09:30Z", "09:30:00Z", "", "now", "2026-W09-7T00:00:00Z"),
        *("2026-02-29T00:00:00Z", "2026-13-01T00:00:00Z", "2026-04-31T00:00:00Z"),  # no such day
        *("2026-03-01T24:00:00Z", "2026-03-01T09:60:00Z", "2026-03-01T09:30:61Z"),
        *("0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "-2026-03-01T09:30:00Z"),
        *("2026-03-01T09:30:00.Z", "2026-03-01T09:30:00,5Z", "2026-03-01T09:30:00+24:00"),
        *("2026-03-01T09:30:00+00", " 2026-03-01T09:30:00Z", "2026-03-01T09:30:00Z "),
        *("２０２６-03-01T09:30:00Z", "2026-03-01T09:30:00Z\0"),
        *(1772357400, 1772357400.5, True, {}, []),
    ],
)
def test_anything_else_is_no_timestamp(value: Any) -> None:
    error = refusal(create(deadline=value), CreateCommandRequest)

    assert error.context["field"] == "deadline"


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-12:00"])
def test_an_instant_outside_the_calendar_is_refused_when_it_is_used(text: str) -> None:
    moment = decode(json.dumps(text).encode(), Timestamp)

    with pytest.raises(InvalidCommand, match="outside the years 1 to 9999"):
        utc(moment)


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_timestamp_is_written_with_z_and_no_or_six_digits(moment: datetime) -> None:
    text = encode(moment).decode()

    assert re.fullmatch(r'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z"', text)
    assert decode(text.encode(), Timestamp) == moment


def test_an_instant_with_another_offset_is_written_with_z_too() -> None:
    moment = datetime.fromisoformat("2026-03-01T09:30:00+02:00")

    assert encode(utc(moment)) == b'"2026-03-01T07:30:00Z"'
    assert utc(moment).utcoffset() == timedelta(0)


# Names


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "a" * 256,
        "db:vacuum",
        "postgres/health",
        "größe",
        "日本",
        "😀" * 256,
        "a b",
        "a\u00a0b",
        "👩\u200d🚒",
        "می\u200cخواهم",
    ],
)
def test_a_name_may_have_any_printable_characters(name: str) -> None:
    assert decode(create(command=name), CreateCommandRequest).command == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "Expected `str` of length >= 1"),
        ("a" * 257, "Expected `str` of length <= 256"),
        ("a" * 1_000_000, "Expected `str` of length <= 256"),
        ("a\0b", "must not contain control or invisible characters"),
        ("a\nb", "must not contain control or invisible characters"),
        ("a\n", "must not contain control or invisible characters"),
        ("\x1b[31m", "must not contain control or invisible characters"),
        ("a\x7f", "must not contain control or invisible characters"),
        ("a\x85", "must not contain control or invisible characters"),
        ("\x9b31m", "must not contain control or invisible characters"),
        ("db\u202e7", "must not contain control or invisible characters"),
        ("db\u20667\u2069", "must not contain control or invisible characters"),
        ("db-7\u200b", "must not contain control or invisible characters"),
        ("db\u2028-7", "must not contain control or invisible characters"),
        ("\ufeffdb-7", "must not contain control or invisible characters"),
        ("db-7\U000e0041", "must not contain control or invisible characters"),
    ],
)
def test_a_bad_name_is_refused_wherever_it_stands(name: str, reason: str) -> None:
    target = {"resourceId": name, "resourceType": "daemon"}
    for field, data, kind in (
        ("command", create(command=name), CreateCommandRequest),
        ("deploymentId", create(deploymentId=name), CreateCommandRequest),
        ("resourceId", json.dumps(target).encode(), CommandTarget),
        (
            "target.resourceId",
            json.dumps({"deploymentId": "d", "target": target}).encode(),
            LeaseRequest,
        ),
    ):
        error = refusal(data, kind)
        assert error.message == f"{field}: {reason}"
        assert error.context["field"] == field


@pytest.mark.parametrize("field", ["idempotencyKey", "targetResourceId"])
def test_keys_and_target_ids_may_be_empty_but_not_long_or_with_controls(field: str) -> None:
    assert b'""' in encode(decode(create(**{field: ""}), CreateCommandRequest))
    for value in ("a" * 257, "a\0b", "a\n", "\x9b"):
        assert refusal(create(**{field: value}), CreateCommandRequest).context["field"] == field


# What is wrong is named


@pytest.mark.parametrize(
    ("data", "kind", "field", "message"),
    [
        (b"[]", UploadCompleteRequest, None, "body: Expected `object`, got `array`"),
        (b"null", UploadCompleteRequest, None, "body: Expected `object`, got `null`"),
        (b"{}", UploadCompleteRequest, "size", "size: is required"),
        (b'{"size":-1}', UploadCompleteRequest, "size", "size: Expected `int` >= 0"),
        (b'{"size":1.0}', UploadCompleteRequest, "size", "size: Expected `int`, got `float`"),
        (b'{"size":"1"}', UploadCompleteRequest, "size", "size: Expected `int`, got `str`"),
        (b'{"size":true}', UploadCompleteRequest, "size", "size: Expected `int`, got `bool`"),
        (b'{"size":null}', UploadCompleteRequest, "size", "size: Expected `int`, got `null`"),
        (
            b'{"size":9223372036854775808}',
            UploadCompleteRequest,
            "size",
            "size: Expected `int` <= 9223372036854775807",
        ),
        (
            create(params={"inlineBase64": ""}),
            CreateCommandRequest,
            "params.mode",
            "params.mode: is required",
        ),
        (
            create(params={"mode": "Inline"}),
            CreateCommandRequest,
            "params.mode",
            "params.mode: Invalid value 'Inline'",
        ),
        (
            create(params={"mode": "storage", "size": -1}),
            CreateCommandRequest,
            "params.size",
            "params.size: Expected `int` >= 0",
        ),
        (
            create(params=None),
            CreateCommandRequest,
            "params",
            "params: Expected `object`, got `null`",
        ),
        (
            b'{"status":"error","code":"C","message":"m","details":{"a":1}}',
            CommandResponse,
            "details",
            "details: Expected `str | null`, got `object`",
        ),
        (
            b'{"deploymentId":"d","target":{"resourceId":"a","resourceType":"Daemon"}}',
            LeaseRequest,
            "target.resourceType",
            "target.resourceType: Invalid enum value 'Daemon'",
        ),
        (
            b'{"deploymentId":"d","waitSeconds":1e999}',
            LeaseRequest,
            "waitSeconds",
            "waitSeconds: Number out of range",
        ),
    ],
)
def test_a_wrong_shape_is_refused_with_the_field(
    data: bytes, kind: Any, field: str | None, message: str
) -> None:
    error = refusal(data, kind)

    assert error.message == message
    assert error.context["field"] == field


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b" ", b"{", b'{"size":1', b'{"size":1} x', b'{"size":1}{"size":1}', b"{'size':1}"),
        *(b'{"size":01}', b'{"size":+1}', b'{"size":1_0}', b'{"size":0x1}', b'{"size":.5}'),
        *(b'{"size":1,"x":NaN}', b'{"size":1,"x":Infinity}', b'{"size":1,"x":-Infinity}'),
        *(b'{"size":1,}', b'{"size":1,"x":[1,]}', b'{"size":1 /* no */}', b"\xef\xbb\xbf{}"),
        *(b'{"size":1,"x":"\n"}', b'{"size":1,"x":"\0"}', b'{"size":1,"x":"\\x"}', b"\0"),
    ],
)
def test_what_is_not_json_is_refused(data: bytes) -> None:
    assert refusal(data, UploadCompleteRequest).message.startswith("body: not valid JSON: ")


@pytest.mark.parametrize(
    "data",
    [
        b'{"size":1,"x":"\xff"}',
        b'{"size":1,"\xff":1}',
        b'{"size":1,"x":"\xc0\x80"}',
        b'{"size":1,"x":"\xed\xa0\x80"}',
        '{"size":1}'.encode("utf-16"),
        '{"size":1,"x":"é"}'.encode("latin-1"),
    ],
)
def test_what_is_not_utf8_is_refused_even_where_nobody_looks(data: bytes) -> None:
    for form in (data, bytearray(data), memoryview(data)):
        assert refusal(form, UploadCompleteRequest).message == "body: not valid UTF-8"


def test_half_of_a_surrogate_pair_is_refused() -> None:
    for text in ('"\\ud800"', '"\\udc00"', '"\\ud800x"'):
        with pytest.raises(InvalidCommand):
            decode(create().replace(b'"c"', text.encode()), CreateCommandRequest)
    assert decode(create(command="😀"), CreateCommandRequest).command == "😀"


@pytest.mark.parametrize("depth", [20_000, 1_000_000])  # CPython 3.13 goes to 10,000
@pytest.mark.parametrize(("left", "right"), [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_is_refused_wherever_it_stands(depth: int, left: str, right: str) -> None:
    nested = f"{left * depth}1{right * depth}"

    unknown = refusal(b'{"size":1,"x":%s}' % nested.encode(), UploadCompleteRequest)
    known = refusal(agent_with_schema('{"a":%s}' % nested), AgentRegistration)  # noqa: UP031

    assert unknown.message == known.message == "body: nested too deeply"


def test_a_schema_that_could_be_read_but_not_written_is_refused() -> None:
    schema = "[" * 99 + "]" * 99
    assert decode(agent_with_schema('{"a":%s}' % schema), AgentRegistration)  # noqa: UP031

    error = refusal(agent_with_schema('{"a":[%s]}' % schema), AgentRegistration)  # noqa: UP031

    assert error.message == "handlers[0]: paramsSchema is nested more than 100 levels deep"
    with pytest.raises(ValueError, match="nested"):
        HandlerInfo(name="n", params_schema={"a": json.loads(f"[{schema}]")})


@pytest.mark.parametrize(
    "number",
    [
        *("9" * 1_000_000, "-" + "9" * 1_000_000, "1" + "0" * 1_000_000 + ".5"),
        *("0." + "0" * 1_000_000, "1e" + "9" * 1_000_000, "1e-" + "9" * 1_000_000),
        *("1E+400", "18446744073709551616"),
    ],
    ids=["int", "negative", "float", "small", "huge", "tiny", "1E+400", "2**64"],
)
def test_a_number_without_end_takes_no_time_and_does_no_harm(number: str) -> None:
    started = time.process_time()

    for template, kind in (
        ('{"size":1,"x":%s}', UploadCompleteRequest),
        ('{"size":%s}', UploadCompleteRequest),
        ('{"deploymentId":"d","waitSeconds":%s}', LeaseRequest),
        ('{"deploymentId":"d","maxLeases":%s}', LeaseRequest),
        ('{"deploymentId":"d","version":"","hostname":"","handlers":[],"x":%s}', AgentRegistration),
    ):
        try:
            encode(decode((template % number).encode(), kind))
        except InvalidCommand as error:
            assert len(error.message) < 300  # noqa: PT017

    assert time.process_time() - started < 2


def test_an_error_does_not_repeat_a_long_value() -> None:
    for params in ({"mode": "x" * 1_000_000}, {"mode": "x" * 1_000_000, "inlineBase64": ""}):
        assert len(refusal(create(params=params), CreateCommandRequest).message) < 300


def test_of_two_fields_with_one_name_the_last_counts() -> None:
    assert decode(b'{"size":1,"size":2}', UploadCompleteRequest).size == 2


def test_field_names_are_case_sensitive() -> None:
    assert refusal(b'{"Size":1}', UploadCompleteRequest).context["field"] == "size"


@given(st.binary(max_size=200))
def test_no_bytes_at_all_make_decoding_fail_in_another_way(data: bytes) -> None:
    for kind in (CreateCommandRequest, LeaseRequest, CommandResponse, AgentRegistration):
        try:
            decode(data, kind)
        except InvalidCommand as error:
            assert error.message  # noqa: PT017


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["deploymentId", "command", "params", "deadline", "maxAttempts", "target", "status"]
        ),
        json_values | st.fixed_dictionaries({"mode": st.just("inline"), "inlineBase64": st.text()}),
    )
)
def test_no_json_at_all_makes_decoding_fail_in_another_way(document: dict[str, Any]) -> None:
    data = json.dumps(document).encode()
    for kind in (CreateCommandRequest, LeaseRequest, CommandResponse):
        try:
            encode(decode(data, kind))
        except InvalidCommand as error:
            assert error.message  # noqa: PT017


@pytest.mark.parametrize(
    "signature",
    ['"a.b"', '"a.b.c.d"', '"a.b.c="', '"a. b.c"', '"a.b.c\\n"', f'"a.b.{"c" * 4093}"', "7"],
)
def test_a_signature_that_is_none_is_refused_by_its_field(signature: str) -> None:
    body = (
        '{"deploymentId": "d", "command": "c", "params": {"mode": "inline", "inlineBase64": ""},'
        f' "signature": {signature}}}'
    )

    with pytest.raises(InvalidCommand) as refused:
        decode(body.encode(), CreateCommandRequest)

    assert refused.value.context["field"] == "signature"
