"""The command lines of installations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from arc_agent.cli.install import front as agent_front
from arc_runtime.install.cli import InstallCli
from arc_runtime.install.host import Host
from arc_runtime.install.manifest import Manifest, ManifestEntry
from arc_runtime.install.product import Names, Product, start_socket, uninstall
from arc_server.cli.install import front as server_front


@pytest.mark.parametrize("front", [agent_front(), server_front()])
def test_how_long_a_unit_may_take_is_a_duration(
    front: InstallCli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["upgrade", "--root", str(tmp_path), "--back", "--ready-within"]

    assert front.main([*words, "1m30s"]) == 1  # nothing is installed there
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        front.main([*words, "soon"])

    assert "--ready-within: expected a duration such as" in capsys.readouterr().err


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A scratch root."""
    (tmp_path / "root/etc").mkdir(parents=True)
    return tmp_path / "root"


GOOD = ("--server", "https://arc.example.com", "--deployment", "acme")


def dpkg(root: Path) -> Sequence[str]:
    """The package is installed."""
    (root / "var/lib/dpkg/info").mkdir(parents=True)
    (root / "var/lib/dpkg/info/arc-agent.list").touch()
    return GOOD


def foreign_unit(root: Path) -> Sequence[str]:
    """Another unit has the name."""
    (root / "etc/systemd/system").mkdir(parents=True)
    (root / "etc/systemd/system/arc-agent.service").write_text("[Unit]\n")
    return GOOD


def foreign_program(root: Path) -> Sequence[str]:
    """Another program has the name."""
    (root / "usr/local/bin").mkdir(parents=True)
    (root / "usr/local/bin/arc-agent").write_text("#!/bin/sh\n")
    return GOOD


def bad_config(root: Path) -> Sequence[str]:
    """The configuration has a key that there is not."""
    (root.parent / "mine.yaml").write_text(
        "server: {url: 'https://x'}\ndeployment: d\nhandler: {}\n"
    )
    return "--config", str(root.parent / "mine.yaml")


def bad_handlers(root: Path) -> Sequence[str]:
    """The configuration names a module that cannot be imported."""
    (root.parent / "mine.yaml").write_text(
        "server: {url: 'https://x'}\ndeployment: d\nhandlers: {modules: [not_there]}\n"
    )
    return "--config", str(root.parent / "mine.yaml")


def no_config(_: Path) -> Sequence[str]:
    """There is no configuration."""
    return ()


@pytest.mark.parametrize("verb", ["install", "upgrade"])
@pytest.mark.parametrize("source", ["arc_commands-9.whl", "./arc", "/arc/dist"])
def test_a_source_that_is_not_there_is_named_before_anything_is_built(
    root: Path, capsys: pytest.CaptureFixture[str], verb: str, source: str
) -> None:
    assert agent_front().main([verb, "--root", str(root), "--from", source]) == 2

    assert capsys.readouterr().err == f"error: --from {source}: there is no such file\n"


@pytest.mark.parametrize("is_dry", [True, False], ids=["dry run", "real run"])
@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (dpkg, "apt manages it"),
        (foreign_unit, "arc-agent.service exists and was not installed by this program"),
        (foreign_program, "bin/arc-agent exists and was not installed by this program"),
        (bad_config, "handler: unknown key"),
        (bad_handlers, "not_there"),
        (no_config, "does not exist: give --server and --deployment"),
    ],
)
def test_a_dry_run_fails_as_the_real_run_does_and_neither_touches_anything(
    root: Path,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Path], Sequence[str]],
    reason: str,
    is_dry: bool,
) -> None:
    options = prepare(root)
    before = sorted(root.rglob("*"))
    words = ["install", "--root", str(root), *options, *(["--dry-run"] if is_dry else [])]

    assert agent_front().main(words) == (2 if prepare is no_config else 1)

    err = capsys.readouterr().err
    assert reason in err
    assert err.startswith("error: ")
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "listen"),
    [
        ((), "127.0.0.1:9180"),
        (("--metrics", "127.0.0.1:9999"), "127.0.0.1:9999"),
        (("--metrics", "none"), None),
        (("--instance", "north"), None),
        (("--instance", "north", "--metrics", "[::1]:9181"), "[::1]:9181"),
    ],
)
def test_figures_come_with_an_installation_on_loopback_and_no_two_instances_share_a_port(
    root: Path, capsys: pytest.CaptureFixture[str], options: Sequence[str], listen: str | None
) -> None:
    words = ["install", "--root", str(root), *GOOD, "--dry-run", *options]

    assert agent_front().main(words) == 0

    printed = capsys.readouterr().out
    lines = [line.strip(" |") for line in printed.splitlines()]
    assert [line for line in lines if line.startswith("listen:")] == (
        [f'listen: "{listen}"'] if listen else []
    )


def test_figures_for_other_hosts_are_not_installed_by_an_option(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["install", "--root", str(root), *GOOD, "--dry-run", "--metrics", "0.0.0.0:9180"]

    assert agent_front().main(words) == 2

    assert "metrics.listen: is not a loopback address" in capsys.readouterr().err


# the socket that systemd holds

SOCKET = "etc/systemd/system/arc-server.socket"


class RecordedServices:
    """Units that only note what is asked of them."""

    def __init__(self, *active: str) -> None:
        self.asked: list[str] = []
        self._active = set(active)

    def reload(self) -> None:
        self.asked.append("reload")

    def is_active(self, unit: str) -> bool:
        return unit in self._active

    def restart(self, unit: str, within_seconds: float) -> bool:
        self.asked.append(f"restart {unit}")
        return True

    def stop(self, unit: str) -> None:
        self.asked.append(f"stop {unit}")


SERVER = Product(
    name="arc-server",
    package="arc_server",
    home="/opt/arc-server",
    config_directory="/etc/arc-server",
    config_name="server",
    kept=(),
)


@pytest.mark.parametrize(
    ("options", "listens_on"),
    [
        ((), "127.0.0.1:8484"),
        (("--listen", "127.0.0.1:80"), "127.0.0.1:80"),
        (("--listen", "[::1]:80"), "[::1]:80"),
        (("--listen", "unix:/run/a.sock", "--public-url", "https://a"), "/run/a.sock"),
    ],
)
def test_systemd_holds_the_socket_where_the_server_would_listen(
    root: Path, capsys: pytest.CaptureFixture[str], options: Sequence[str], listens_on: str
) -> None:
    words = ["install", "--root", str(root), "--dry-run", "--socket", *options]

    assert server_front().main(words) == 0

    printed = capsys.readouterr().out
    assert f"| ListenStream={listens_on}\n" in printed
    assert f"write  {root}/{SOCKET} (0644 root)" in printed
    assert f"link   {root}/etc/systemd/system/sockets.target.wants/arc-server.socket" in printed
    runs = [line for line in printed.splitlines() if line.startswith("run    systemctl ")]
    assert [line.removeprefix("run    systemctl ") for line in runs] == [
        "daemon-reload",
        "stop arc-server.service",
        "restart arc-server.socket",
        "restart arc-server.service",
    ]


def test_without_the_option_systemd_holds_no_socket(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert server_front().main(["install", "--root", str(root), "--dry-run"]) == 0

    assert "arc-server.socket" not in capsys.readouterr().out


def test_a_name_is_no_address_for_a_socket_of_systemd(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["install", "--root", str(root), "--dry-run", "--socket", "--listen", "localhost:80"]

    assert server_front().main(words) == 2

    assert "listen: --socket needs an IP address" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("active", "is_new", "expected"),
    [
        ((), True, ["stop arc-server.service", "restart arc-server.socket"]),
        (("arc-server.socket",), True, ["stop arc-server.service", "restart arc-server.socket"]),
        (("arc-server.socket",), False, []),
    ],
)
def test_the_service_gives_the_address_up_before_systemd_takes_it(
    active: Sequence[str], is_new: bool, expected: Sequence[str]
) -> None:
    services = RecordedServices(*active)

    start_socket(Names(SERVER), services, 1, is_new=is_new)

    assert services.asked == expected


def test_the_socket_is_stopped_before_the_service_that_it_would_start(root: Path) -> None:
    manifest = Manifest(root, Names(SERVER).manifest)
    (root / SOCKET).parent.mkdir(parents=True)
    (root / SOCKET).write_text("[Socket]\n")
    (root / "opt/arc-server/installed").mkdir(parents=True)
    manifest.record(ManifestEntry(kind="file", path=f"/{SOCKET}", digest=""))
    services = RecordedServices("arc-server.socket", "arc-server.service")

    host = Host(root, lambda *_: None, lambda _: None)
    uninstall(SERVER, "", host, services, purge=False)

    assert services.asked == ["stop arc-server.socket", "stop arc-server.service", "reload"]
    assert not (root / SOCKET).exists()
