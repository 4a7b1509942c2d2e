"""The beginning of an id names a thing as long as it names one alone."""

from __future__ import annotations

import pytest

from arc_runtime.terminal.prefixes import PrefixError, id_of

IDS = ["tok_1f2e3d", "tok_1f2e99", "tok_77aa", "tok_77aa01"]


@pytest.mark.parametrize(
    ("prefix", "found"),
    [("tok_1f2e3", "tok_1f2e3d"), ("tok_1f2e99", "tok_1f2e99"), ("tok_77aa", "tok_77aa")],
)
def test_a_prefix_of_one_id_alone_names_it(prefix: str, found: str) -> None:
    assert id_of(prefix, IDS, "token") == found


def test_a_prefix_of_several_ids_lists_them() -> None:
    with pytest.raises(PrefixError) as refused:
        id_of("tok_1f2e", IDS, "token")

    assert str(refused.value) == (
        "tok_1f2e is the beginning of 2 tokens; give more of the id:\ntok_1f2e3d\ntok_1f2e99"
    )
    assert refused.value.matches == ("tok_1f2e3d", "tok_1f2e99")


def test_many_ids_are_listed_in_part() -> None:
    with pytest.raises(PrefixError, match=r"of 20 tokens(?s:.)*tok_100007\nand 12 more$"):
        id_of("tok_1000", [f"tok_1000{n:02}" for n in range(20)], "token")


@pytest.mark.parametrize("prefix", ["", "tok_9", "1f2e3"])
def test_a_prefix_of_no_id_is_refused(prefix: str) -> None:
    with pytest.raises(PrefixError, match=r"^no such token: "):
        id_of(prefix, IDS, "token")


def test_a_prefix_of_a_few_characters_is_refused_even_if_it_names_one() -> None:
    with pytest.raises(PrefixError, match="too short"):
        id_of("tok_", ["tok_1f2e3d"], "token")
