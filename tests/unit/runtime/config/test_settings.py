import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from arc_runtime.config.settings import SettingsError, load, reference


def described(text: str, **constraints: Any) -> msgspec.Meta:
    return msgspec.Meta(description=text, **constraints)


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The base of the sections below."""


class Level(StrEnum):
    LOW = "low"
    HIGH = "high"


class Leases(Section, frozen=True):
    max_seconds: Annotated[int, described("The longest lease.", ge=1, le=3600)] = 3600
    ratio: Annotated[float, described("A share.", ge=0)] | None = None


class Deployment(Section, frozen=True):
    id: Annotated[str, described("Its name.")]
    leases: Leases = Leases()


class Config(Section, frozen=True):
    listen: Annotated[str, described("Host and port.")] = "127.0.0.1:8080"
    leases: Leases = Leases()
    data_dir: Annotated[Path, described("Where data lies.")] = Path("data")
    ca_file: Annotated[Path | None, described("A CA | or none.")] = None
    is_strict: Annotated[bool, described("Whether it is.")] = False
    grace_seconds: Annotated[float, described("A while.", ge=0)] = 35.0
    hosts: Annotated[tuple[str, ...], described("Who may.")] = ()
    ports: Annotated[list[int], described("Which.")] = []
    level: Annotated[Level, described("How much.")] = Level.LOW
    format: Annotated[Literal["auto", "json"], described("Which form.")] = "auto"
    labels: Annotated[dict[str, int], described("Free ones.")] = {}
    deployments: Annotated[tuple[Deployment, ...], described("All of them.")] = ()


class Loader:
    """Loads Config from a file's text, an environment and overrides."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "arc.yaml"

    def __call__(
        self,
        content: str | bytes = "",
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Config:
        self.file.write_bytes(content.encode() if isinstance(content, str) else content)
        return load(
            Config,
            prefix="ARC_SERVER",
            file=self.file,
            environ=environ or {},
            overrides=overrides or {},
            **options,
        )

    def refused(self, *arguments: Any) -> SettingsError:
        """The error that loading raises."""
        with pytest.raises(SettingsError) as raised:
            self(*arguments)
        return raised.value


@pytest.fixture
def loading(tmp_path: Path) -> Loader:
    return Loader(tmp_path)


def test_without_anything_the_defaults_stand() -> None:
    assert load(Config, prefix="ARC_SERVER", file=None, environ={}) == Config()


@pytest.mark.parametrize("content", ["", "# only a comment\n", "leases:\n", "---\n", "\ufeff{}"])
def test_an_empty_file_or_section_changes_nothing(loading: Loader, content: str) -> None:
    assert loading(content) == Config()


def test_the_file_is_overridden_by_the_environment_and_that_by_the_command_line(
    loading: Loader,
) -> None:
    content = "leases: {max_seconds: 1, ratio: 0.5}\nlisten: a\ndata_dir: /file\n"
    environ = {"ARC_SERVER_LEASES_MAX_SECONDS": "2", "ARC_SERVER_LISTEN": "b"}

    config = loading(content, environ, {"listen": "c", "data_dir": None})

    assert config.leases == Leases(max_seconds=2, ratio=0.5)
    assert config.listen == "c"
    assert config.data_dir == Path("/file")


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("LISTEN", "127.0.0.1:0", "listen", "127.0.0.1:0"),
        ("LISTEN", "", "listen", ""),
        ("LISTEN", "12", "listen", "12"),
        ("DATA_DIR", "/var/lib/arc", "data_dir", Path("/var/lib/arc")),
        ("CA_FILE", "", "ca_file", None),
        ("IS_STRICT", "true", "is_strict", True),
        ("IS_STRICT", "False", "is_strict", False),
        ("GRACE_SECONDS", "1.5", "grace_seconds", 1.5),
        ("GRACE_SECONDS", "2", "grace_seconds", 2.0),
        ("HOSTS", "a, b,,c", "hosts", ("a", "b", "c")),
        ("HOSTS", '["a,b", "c"]', "hosts", ("a,b", "c")),
        ("HOSTS", "[a, b]", "hosts", ("a", "b")),
        ("HOSTS", "", "hosts", ()),
        ("PORTS", "1,2", "ports", [1, 2]),
        ("LEVEL", "high", "level", Level.HIGH),
        ("FORMAT", "json", "format", "json"),
        ("LABELS", '{"a": 1}', "labels", {"a": 1}),
        ("LABELS", "a: 1", "labels", {"a": 1}),
        ("DEPLOYMENTS", "[{id: x}]", "deployments", (Deployment(id="x"),)),
    ],
)
def test_a_variable_is_read_as_its_type(
    loading: Loader, variable: str, text: str, field: str, value: object
) -> None:
    assert getattr(loading("", {f"ARC_SERVER_{variable}": text}), field) == value


@pytest.mark.parametrize(
    ("variable", "text", "key"),
    [
        ("LEASES_MAX_SECONDS", "soon", "leases.max_seconds"),
        ("LEASES_MAX_SECONDS", "", "leases.max_seconds"),
        ("LEASES_MAX_SECONDS", "1.0", "leases.max_seconds"),
        ("LEASES_MAX_SECONDS", "9" * 5000, "leases.max_seconds"),
        ("LEASES_MAX_SECONDS", "0", "leases.max_seconds"),
        ("GRACE_SECONDS", "nan", "grace_seconds"),
        ("GRACE_SECONDS", "inf", "grace_seconds"),
        ("GRACE_SECONDS", "1m", "grace_seconds"),
        ("IS_STRICT", "yes", "is_strict"),
        ("IS_STRICT", "1", "is_strict"),
        ("LEVEL", "middle", "level"),
        ("FORMAT", "xml", "format"),
        ("PORTS", "1,x", "ports"),
        ("HOSTS", "[a", "hosts"),
        ("LABELS", "a", "labels"),
        ("LABELS", "{b: 1, a: b}", "labels.a"),
        ("DATA_DIR", "", "data_dir"),
        ("DEPLOYMENTS", "[{id: x, ids: y}]", "deployments[0].ids"),
        ("DEPLOYMENTS", "[{}]", "deployments[0].id"),
    ],
)
def test_a_bad_variable_is_refused_with_its_key_and_its_name(
    loading: Loader, variable: str, text: str, key: str
) -> None:
    error = loading.refused("", {f"ARC_SERVER_{variable}": text})

    assert error.key == key
    assert error.source == f"the environment variable ARC_SERVER_{variable}"
    assert str(error).startswith(f"{key}: ")
    assert str(error).endswith(f"(from the environment variable ARC_SERVER_{variable})")


def test_a_refused_value_is_not_quoted(loading: Loader) -> None:
    error = loading.refused("", {"ARC_SERVER_LEASES_MAX_SECONDS": "hunter2"})

    assert "hunter2" not in str(error)


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ("leases: {max_seconds: 0}", "leases.max_seconds", "Expected int, 1 to 3600 ("),
        ("leases: {max_seconds: 3601}", "leases.max_seconds", "Expected int, 1 to 3600 ("),
        ("leases: {max_seconds: '5'}", "leases.max_seconds", "Expected int, 1 to 3600, not text"),
        (
            "leases: {max_seconds: true}",
            "leases.max_seconds",
            "Expected int, 1 to 3600, not true",
        ),
        ("leases: {max_second: 5}", "leases.max_second", "unknown key; did you mean max_seconds?"),
        ("leases: 5", "leases", "Expected mapping, not a number"),
        ("lease: {}", "lease", "unknown key; did you mean leases?"),
        ("zebra: 1", "zebra", "unknown key"),
        ("leases: {ratio: .nan}", "leases.ratio", "Expected a finite number"),
        ("leases: {ratio: .inf}", "leases.ratio", "Expected a finite number"),
        ("hosts: a", "hosts", "Expected list of text, not text"),
        ("hosts: [a, 1]", "hosts[1]", "Expected text, not a number"),
        ("level: middle", "level", 'Expected "low" or "high" ('),
        ("format: xml", "format", 'Expected "auto" or "json" ('),
        ("listen: null", "listen", "Expected text, not nothing"),
        ("listen: 2026-01-01", "listen", "Expected text, not a date"),
        ('data_dir: "a\\0b"', "data_dir", "Expected a path"),
        ("deployments: [{id: a}, {id: b, leases: {max: 1}}]", "deployments[1].leases.max", "unk"),
    ],
)
def test_a_bad_file_is_refused_with_the_key_and_the_file(
    loading: Loader, content: str, key: str, message: str
) -> None:
    error = loading.refused(content)

    assert str(error).startswith(f"{key}: {message}")
    assert str(error).endswith(f"(from {loading.file})")
    assert (error.key, error.source) == (key, str(loading.file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "must be a mapping of keys"),
        ("just text", "must be a mapping of keys"),
        ("listen: a\nlisten: b\n", "line 2, column 1: the same key twice"),
        ("leases:\n  ratio: 1\n  ratio: 2\n", "line 3, column 3: the same key twice"),
        ("hosts: &all [a]\nlabels: *all\n", "line 2, column 9: aliases are not supported"),
        ("a: &a {x: 1}\nb: {<<: *a}\n", "line 2, column 9: aliases are not supported"),
        ("1: a\n", "line 1, column 1: keys must be text"),
        ("? [a]\n: b\n", "line 1, column 3: keys must be text"),
        ("yes: a\n", "line 1, column 1: keys must be text"),
        ("listen: [", "line 1, column 10: "),
        ("listen: !!python/object/apply:os.getcwd []", "line 1, column 9: could not determine"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: but found another document"),
        ("listen: a\tb: c\n\t- d", "line"),
        ("listen: 2026-02-30", "not YAML: "),
        ("listen: " + "9" * 5000, "not YAML: "),
        ("listen: \x00", "not YAML: "),
        ("[" * 5_000, "nested too deeply"),
        (b"listen: \xff\xfe", "not UTF-8 at byte 8"),
        (b"\xff\xfel\0i\0", "not UTF-8 at byte 0"),
        ("#" * (1024 * 1024 + 1), "larger than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_plain_yaml_is_refused(
    loading: Loader, content: str | bytes, message: str
) -> None:
    error = loading.refused(content)

    assert str(error).startswith(f"{loading.file}: {message}")
    assert error.key is None


def test_a_file_that_would_grow_without_bound_is_refused_at_once(loading: Loader) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)
    )
    started = time.process_time()

    error = loading.refused(bomb)

    assert "aliases are not supported" in str(error)
    assert time.process_time() - started < 5


def test_a_file_that_is_missing_or_a_directory_is_refused(tmp_path: Path) -> None:
    for file, reason in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(SettingsError, match=reason) as raised:
            load(Config, prefix="ARC_SERVER", file=file, environ={})
        assert raised.value.source == str(file)


def test_an_unknown_variable_of_the_prefix_is_refused(loading: Loader) -> None:
    error = loading.refused("", {"ARC_SERVER_LEASES_MAX_SECOND": "1"})

    assert str(error) == (
        "ARC_SERVER_LEASES_MAX_SECOND: unknown environment variable;"
        " did you mean ARC_SERVER_LEASES_MAX_SECONDS?"
    )


def test_variables_of_others_and_ignored_ones_are_left_alone(loading: Loader) -> None:
    environ = {"ARC_SERVERS": "x", "ARC_AGENT_X": "x", "PATH": "x", "ARC_SERVER_URL": "http://x"}

    assert loading("", environ, ignore=("ARC_SERVER_URL",)) == Config()


def test_what_kubernetes_sets_for_a_service_of_our_name_is_left_alone(loading: Loader) -> None:
    environ = {
        "ARC_SERVER_SERVICE_HOST": "10.0.0.1",
        "ARC_SERVER_SERVICE_PORT": "80",
        "ARC_SERVER_SERVICE_PORT_HTTP": "80",
        "ARC_SERVER_PORT": "tcp://10.0.0.1:80",
        "ARC_SERVER_PORT_80_TCP": "tcp://10.0.0.1:80",
        "ARC_SERVER_PORT_80_TCP_ADDR": "10.0.0.1",
    }

    assert loading("", environ) == Config()


def test_an_override_is_read_like_a_variable_and_named_as_the_command_line(
    loading: Loader,
) -> None:
    assert loading("", {}, {"leases.max_seconds": "9"}).leases.max_seconds == 9
    assert loading("", {}, {"leases.max_seconds": 9}).leases.max_seconds == 9
    assert loading("", {}, {"data_dir": Path("/x")}).data_dir == Path("/x")
    assert str(loading.refused("", {}, {"leases.max_seconds": 0})) == (
        "leases.max_seconds: Expected int, 1 to 3600 (from the command line)"
    )
    assert str(loading.refused("", {}, {"leases.max_second": 0})) == (
        "leases.max_second: unknown key; did you mean leases.max_seconds? (from the command line)"
    )


def test_a_section_that_is_no_section_is_the_files_fault(loading: Loader) -> None:
    error = loading.refused("leases: 5", {"ARC_SERVER_LEASES_RATIO": "1"})

    assert str(error) == f"leases: Expected a section of keys (from {loading.file})"


def test_two_keys_with_one_variable_are_a_mistake_in_the_class() -> None:
    one = msgspec.defstruct("One", [("b_c", int, 1)], frozen=True)
    other = msgspec.defstruct("Other", [("c", int, 1)], frozen=True)
    outer = msgspec.defstruct("Outer", [("a_b", other, other()), ("a", one, one())], frozen=True)

    with pytest.raises(TypeError, match=r"a\.b_c and a_b\.c have the same variable X_A_B_C"):
        reference(outer, "X")


def test_a_section_whose_default_is_not_its_classs_is_a_mistake_in_the_class() -> None:
    outer = msgspec.defstruct("Outer", [("leases", Leases, Leases(max_seconds=1))], frozen=True)

    with pytest.raises(TypeError, match=r"leases: a section's default must be Leases\(\)"):
        load(outer, prefix="X", file=None, environ={})


def test_the_reference_shows_every_key_with_its_variable_type_and_default() -> None:
    lines = reference(Config, "ARC_SERVER").splitlines()

    assert lines[:2] == [
        "| key | environment variable | type | default | |",
        "|---|---|---|---|---|",
    ]
    assert lines[2:] == [
        "| `listen` | `ARC_SERVER_LISTEN` | text | `127.0.0.1:8080` | Host and port. |",
        "| `leases.max_seconds` | `ARC_SERVER_LEASES_MAX_SECONDS` | int, 1 to 3600 | `3600`"
        " | The longest lease. |",
        "| `leases.ratio` | `ARC_SERVER_LEASES_RATIO` | number, at least 0 |  | A share. |",
        "| `data_dir` | `ARC_SERVER_DATA_DIR` | path | `data` | Where data lies. |",
        "| `ca_file` | `ARC_SERVER_CA_FILE` | path |  | A CA \\| or none. |",
        "| `is_strict` | `ARC_SERVER_IS_STRICT` | true or false | `false` | Whether it is. |",
        "| `grace_seconds` | `ARC_SERVER_GRACE_SECONDS` | number, at least 0 | `35.0` | A while. |",
        "| `hosts` | `ARC_SERVER_HOSTS` | list of text | `[]` | Who may. |",
        "| `ports` | `ARC_SERVER_PORTS` | list of int | `[]` | Which. |",
        '| `level` | `ARC_SERVER_LEVEL` | "low" or "high" | `low` | How much. |',
        '| `format` | `ARC_SERVER_FORMAT` | "auto" or "json" | `auto` | Which form. |',
        "| `labels` | `ARC_SERVER_LABELS` | mapping of int | `{}` | Free ones. |",
        "| `deployments` | `ARC_SERVER_DEPLOYMENTS` | list of mappings | `[]` | All of them. |",
        "| `deployments[].id` |  | text | required | Its name. |",
        "| `deployments[].leases.max_seconds` |  | int, 1 to 3600 | `3600` | The longest lease. |",
        "| `deployments[].leases.ratio` |  | number, at least 0 |  | A share. |",
    ]
