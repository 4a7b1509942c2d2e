"""Backup, restore and fsck, with real servers."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from arc_client.wire.idempotency import new_idempotency_key
from arc_server.app import BLOBS, DATABASE
from arc_server.backup.manifest import NAME, BackupManifest, read_manifest
from arc_server.blobs.collection_hold import collection_pass, hold_collection
from arc_server.store.engine import schema
from arc_server.store.engine.ended_journal import JOURNAL, read_journal
from tests.integration.server.cli.test_one_writer import run, served_at

LARGE = base64.b64encode(os.urandom(200_000)).decode()


class Server:
    """Calls of a server without tokens."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return the status and the JSON of an answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/v1{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def create(self, params: str = "e30=", **more: Any) -> tuple[int, Any]:
        """Create a command with inline params."""
        body = {
            "deploymentId": "own",
            "command": "report",
            "params": {"mode": "inline", "inlineBase64": params},
        }
        return self.call("POST", "/commands", body | more)

    def created(self, **more: Any) -> str:
        """Return the id of a new command."""
        status, answer = self.create(**more)
        assert status == 200, answer
        return answer["commandId"]

    def lease(self) -> list[Any]:
        """Lease what is ready."""
        body = {"deploymentId": "own", "maxLeases": 1000}
        return self.call("POST", "/commands/leases", body)[1]["leases"]

    def renew(self, *leases: str) -> Any:
        """Renew leases."""
        return self.call("POST", "/commands/leases/renew", {"leaseIds": list(leases)})[1]

    def respond(self, lease: Any, result: str | dict[str, Any] = "e30=") -> tuple[int, Any]:
        """Hand in a result: inline, or as it was uploaded."""
        if isinstance(result, str):
            result = {"mode": "inline", "inlineBase64": result}
        body = {"status": "success", "response": result}
        url = lease["envelope"]["responseHandling"]["submitResponseUrl"]
        return self.call("PUT", url.partition("/v1")[2], body)

    def state(self, command_id: str) -> str:
        """Return the state of a command."""
        return self.call("GET", f"/commands/{command_id}")[1].get("state", "gone")


@contextmanager
def open_server(data: Path, **keys: Any) -> Iterator[Server]:
    """Run a server process without tokens."""
    config = data.parent / "server.yaml"
    config.write_text(json.dumps(keys))
    with served_at(data, "--no-auth", "--config", str(config)) as url:
        yield Server(url)


def backed_up(data: Path, to: Path) -> BackupManifest:
    ended = run("backup", to, "--data-dir", data)
    assert ended.returncode == 0, ended.stderr
    return read_manifest(to)


def restored(backup: Path, data: Path, *more: str | Path) -> Path:
    ended = run("restore", backup, "--data-dir", data, *more)
    assert ended.returncode == 0, ended.stderr
    return data


def fsck(data: Path) -> subprocess.CompletedProcess[str]:
    return run("fsck", "--deep", "--data-dir", data)


# backups


def test_a_backup_under_load_has_all_that_was_acknowledged_before_it(tmp_path: Path) -> None:
    acknowledged: list[tuple[datetime, str]] = []
    stopping = threading.Event()

    def live(server: Server) -> None:
        count = 0
        while not stopping.is_set():
            count += 1
            command_id = server.created(params=LARGE if count % 5 == 0 else "e30=")
            acknowledged.append((datetime.now(UTC), command_id))
            for lease in server.lease():
                server.respond(lease, LARGE if count % 7 == 0 else "e30=")

    with open_server(tmp_path / "data") as server:
        threads = [threading.Thread(target=live, args=(server,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 40:
            assert all(thread.is_alive() for thread in threads)
            time.sleep(0.01)
        manifest = backed_up(tmp_path / "data", tmp_path / "backup")
        stopping.set()
        for thread in threads:
            thread.join()
        assert fsck(tmp_path / "data").returncode == 0

    data = restored(tmp_path / "backup", tmp_path / "restored")

    checked = fsck(data)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with closing(sqlite3.connect(data / DATABASE)) as database:
        there = {id_ for (id_,) in database.execute("SELECT command_id FROM commands")}
    before = {id_ for at, id_ in acknowledged if at <= manifest.taken_at}
    assert len(before) >= 40
    assert before <= there
    assert manifest.counts["blobs"] > 0


def test_a_backup_without_a_server_is_the_same(tmp_path: Path) -> None:
    with open_server(tmp_path / "data") as server:
        command_id = server.created(params=LARGE)
        backed_up(tmp_path / "data", tmp_path / "online")

    backed_up(tmp_path / "data", tmp_path / "offline")

    data = restored(tmp_path / "offline", tmp_path / "restored")
    with open_server(data, restore={"freeze_seconds": 0}) as server:
        [lease] = server.lease()
        assert lease["commandId"] == command_id
    online, offline = (read_manifest(tmp_path / name) for name in ("online", "offline"))
    assert {file.path for file in online.files} == {file.path for file in offline.files}


def test_a_backup_leaves_no_snapshot_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    with open_server(tmp_path / "data"):
        backed_up(tmp_path / "data", tmp_path / "backup")
        assert not list((tmp_path / "data").glob("snapshot-*"))
    modes = {file.stat().st_mode & 0o077 for file in (tmp_path / "backup").rglob("*")}

    assert modes == {0}


def test_a_backup_onto_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "x").touch()
    with open_server(tmp_path / "data"):
        ended = run("backup", tmp_path / "backup", "--data-dir", tmp_path / "data")

    assert ended.returncode == 1
    assert "is there already" in ended.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
@pytest.mark.parametrize("full", ["backup", "data"])
def test_a_full_disk_leaves_no_backup(tmp_path: Path, full: str) -> None:
    data = tmp_path / "data"
    with open_server(data) as server:
        for _ in range(8):
            server.created(params=LARGE)
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small])
    if mounted.returncode:
        pytest.skip("cannot mount")
    try:
        target = small / "backup"
        if full == "data":
            shutil.copytree(data, small / "data", ignore=shutil.ignore_patterns(BLOBS))
            (small / "data" / BLOBS).mkdir()
            left = shutil.disk_usage(small).free - 100_000
            (small / "filler").write_bytes(bytes(left))
            data, target = small / "data", tmp_path / "backup"

        ended = run("backup", target, "--data-dir", data)

        assert ended.returncode == 1, ended
        assert ended.stderr.startswith("error: ")
        assert not target.exists()
        assert not [*target.parent.glob(".*unfinished*"), *data.glob("snapshot-*")]
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_killed_backup_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    with open_server(tmp_path / "data") as server:
        server.created(params=LARGE)
    killed = (
        "import os, signal\n"
        "from arc_server.backup import taking\n"
        "taking.write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from arc_server.cli.main import main\n"
        "import sys\n"
        f"sys.argv = ['arc-server', 'backup', {str(tmp_path / 'backup')!r},"
        f" '--data-dir', {str(tmp_path / 'data')!r}]\n"
        "main()\n"
    )
    ended = subprocess.run(["python", "-c", killed], env=os.environ | {"PATH": _path()})

    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "backup").exists()
    [left] = tmp_path.glob(".backup.unfinished-*")
    assert "not a whole one" in run("restore", left, "--data-dir", tmp_path / "no").stderr
    assert not (tmp_path / "no").exists()


def _path() -> str:
    import sys

    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def test_a_missing_blob_is_said_and_the_rest_is_backed_up(tmp_path: Path) -> None:
    with open_server(tmp_path / "data") as server:
        server.created(params=LARGE)
    [blob] = (tmp_path / "data" / BLOBS).rglob("*.sealed")
    blob.unlink()

    ended = run("backup", tmp_path / "backup", "--data-dir", tmp_path / "data")

    assert ended.returncode == 1
    assert "is missing in the data directory" in ended.stderr
    assert len(read_manifest(tmp_path / "backup").missing) == 1
    checked = fsck(tmp_path / "data")
    assert (checked.returncode, "is missing" in checked.stdout) == (1, True)


def test_no_blob_is_collected_during_a_backup(tmp_path: Path) -> None:
    with hold_collection(tmp_path), collection_pass(tmp_path) as may_remove:
        assert not may_remove

    with collection_pass(tmp_path) as may_remove:
        assert may_remove


# restores


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup with a command that has a large body."""
    place = tmp_path_factory.mktemp("of")
    with open_server(place / "data") as server:
        server.created(params=LARGE)
        backed_up(place / "data", place / "backup")
    return place / "backup"


@pytest.fixture
def copy(backup: Path, tmp_path: Path) -> Path:
    """A copy of the backup to damage."""
    return shutil.copytree(backup, tmp_path / "copy")


@pytest.mark.parametrize("which", [DATABASE, "sealed", "signing.json"])
@pytest.mark.parametrize("how", ["missing", "flipped", "cut"])
def test_a_damaged_backup_is_refused_and_nothing_is_left(
    copy: Path, tmp_path: Path, which: str, how: str
) -> None:
    [file] = [file for file in copy.rglob("*") if file.name.endswith(which)]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] if how == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    if how == "missing":
        file.unlink()

    ended = run("restore", copy, "--data-dir", tmp_path / "data")

    assert ended.returncode == 1
    assert file.name in ended.stderr
    assert not (tmp_path / "data").exists()
    assert not list(tmp_path.glob(".data*"))
    assert run("fsck", "--backup", copy).returncode == 1


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("schema", 999, ("schema is 999", "release 0.1.0", f"knows schema {schema.newest()}")),
        ("format", 9, ("format 9",)),
        ("files", [{"path": "../x", "size": 1, "sha256": ""}], ("leads out",)),
        ("files", 7, ("manifest.json",)),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    copy: Path, tmp_path: Path, field: str, value: Any, words: tuple[str, ...]
) -> None:
    manifest = json.loads((copy / NAME).read_text()) | {field: value}
    (copy / NAME).write_text(json.dumps(manifest))

    ended = run("restore", copy, "--data-dir", tmp_path / "data")

    assert ended.returncode == 1
    for word in words:
        assert word in ended.stderr
    assert not (tmp_path / "data").exists()


def test_a_restore_over_a_live_directory_is_refused(backup: Path, tmp_path: Path) -> None:
    with open_server(tmp_path / "data") as server:
        live = run("restore", backup, "--data-dir", tmp_path / "data")
        assert server.created()
    full = run("restore", backup, "--data-dir", tmp_path / "data")

    assert (live.returncode, full.returncode) == (1, 1)
    assert "another server uses this data directory" in live.stderr
    assert "is there already" in full.stderr


def test_a_restore_into_an_empty_directory_keeps_its_owner(backup: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    if os.geteuid() == 0:
        os.chown(tmp_path / "data", 4242, 4242)

    restored(backup, tmp_path / "data")

    owners = {file.stat().st_uid for file in (tmp_path / "data").rglob("*")}
    assert owners == {4242 if os.geteuid() == 0 else os.getuid()}


# epochs


@pytest.fixture
def turned(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A server that was restored: what was held before and after the backup."""
    with open_server(tmp_path / "data") as server:
        held_before = server.created()
        [lease_before] = server.lease()
        waiting = server.created()
        backed_up(tmp_path / "data", tmp_path / "backup")
        [lease_after] = server.lease()
        lost = server.created()
        [lease_lost] = server.lease()
    restored(tmp_path / "backup", tmp_path / "restored", "--former", tmp_path / "data")
    with open_server(tmp_path / "restored") as server:
        yield {
            "server": server, "held_before": held_before, "lease_before": lease_before,
            "waiting": waiting, "lease_after": lease_after, "lost": lost, "lease_lost": lease_lost,
        }  # fmt: skip


def test_agents_keep_what_they_run_and_hand_it_in(turned: dict[str, Any]) -> None:
    server: Server = turned["server"]
    leases = [turned[name] for name in ("lease_before", "lease_after")]

    renewed = server.renew(*(lease["leaseId"] for lease in leases), "lease_of_no_epoch")

    assert {each["leaseId"] for each in renewed["renewed"]} == {each["leaseId"] for each in leases}
    assert renewed["lost"] == ["lease_of_no_epoch"]
    assert server.lease() == []
    for lease in leases:
        upload = lease["envelope"]["responseHandling"]["storageUploadRequest"]["backend"]["url"]
        path = upload.partition("/v1")[2]
        body = urllib.request.Request(f"{server.url}/v1{path}", os.urandom(300_000), method="PUT")
        with urllib.request.urlopen(body, timeout=30):
            pass
        stored = {"mode": "storage", "size": 300_000}
        assert server.respond(lease, stored)[0] == 200
        assert server.state(lease["commandId"]) == "SUCCEEDED"


def test_a_command_of_the_lost_time_is_gone_for_its_agent(turned: dict[str, Any]) -> None:
    status, answer = turned["server"].respond(turned["lease_lost"])

    assert (status, answer["code"]) == (404, "COMMAND_NOT_FOUND")


def test_new_commands_are_leased_while_old_ones_wait(turned: dict[str, Any]) -> None:
    server: Server = turned["server"]
    command_id = server.created()

    [lease] = server.lease()

    assert lease["commandId"] == command_id


def test_no_lease_of_the_lost_time_ends_a_new_command(turned: dict[str, Any]) -> None:
    server: Server = turned["server"]
    command_id, lease_id = server.created(), turned["lease_after"]["leaseId"]
    done = {"status": "success", "response": {"mode": "inline", "inlineBase64": "e30="}}

    status, answer = server.call("PUT", f"/commands/{command_id}/response?lease={lease_id}", done)

    assert (status, answer["code"]) == (409, "LEASE_LOST")
    assert server.state(command_id) == "PENDING"


def test_the_epoch_stands_in_answers_and_leases_and_a_restart_keeps_it(tmp_path: Path) -> None:
    def epoch_of(data: Path) -> str:
        with open_server(data) as server:
            command_id = server.created()
            body = {"deploymentId": "own", "maxLeases": 1000}
            answer = server.call("POST", "/commands/leases", body)[1]
            [lease] = [each for each in answer["leases"] if each["commandId"] == command_id]
            assert lease["leaseId"].split("_")[1] == answer["epoch"]
            assert server.renew(lease["leaseId"])["epoch"] == answer["epoch"]
            return answer["epoch"]

    first = epoch_of(tmp_path / "data")
    again = epoch_of(tmp_path / "data")
    backed_up(tmp_path / "data", tmp_path / "backup")
    after = epoch_of(restored(tmp_path / "backup", tmp_path / "restored"))

    assert first == again != after


def test_after_the_freeze_old_commands_are_leased_and_late_work_loses(tmp_path: Path) -> None:
    with open_server(tmp_path / "data") as server:
        server.created()
        backed_up(tmp_path / "data", tmp_path / "backup")
        [former] = server.lease()
    data = restored(tmp_path / "backup", tmp_path / "restored")

    with open_server(data, restore={"freeze_seconds": 0}) as server:
        [lease] = server.lease()
        late = server.respond(former)

        assert lease["commandId"] == former["commandId"]
        assert (late[0], late[1]["code"]) == (409, "LEASE_LOST")
        assert server.renew(former["leaseId"])["lost"] == [former["leaseId"]]
        assert server.respond(lease)[0] == 200


def test_numbers_jump_so_that_none_is_given_twice(tmp_path: Path) -> None:
    with open_server(tmp_path / "data") as server:
        server.created()
        backed_up(tmp_path / "data", tmp_path / "backup")
        server.created()
    with closing(sqlite3.connect(tmp_path / "data" / DATABASE)) as database:
        [(used,)] = database.execute("SELECT max(seq) FROM commands")
    data = restored(tmp_path / "backup", tmp_path / "restored")
    with open_server(data) as server:
        server.created()
    with closing(sqlite3.connect(data / DATABASE)) as database:
        [(fresh,)] = database.execute("SELECT max(seq) FROM commands")

    assert fresh > used + 1_000_000


def uuid7(at: datetime) -> str:
    """A key that was made at a moment."""
    bits = int(at.timestamp() * 1000) << 80 | 0x7 << 76 | 0x2 << 62
    return str(uuid.UUID(int=bits))


@pytest.mark.parametrize(
    ("key", "is_refused"),
    [
        ("order-17", True),
        ("0b0c1a0e-8f4e-4d3c-9a57-2f6f3ad1c001", True),
        ("in the lost time", True),
        ("before the backup", True),
        ("after the restore", False),
        ("in the backup", False),
        (None, False),
    ],
)
def test_a_key_that_may_have_been_used_in_the_lost_time_runs_nothing(
    tmp_path: Path, key: str | None, is_refused: bool
) -> None:
    known = new_idempotency_key()
    with open_server(tmp_path / "data") as server:
        first = server.created(idempotencyKey=known)
        backed_up(tmp_path / "data", tmp_path / "backup")
    lost = new_idempotency_key()
    data = restored(tmp_path / "backup", tmp_path / "restored")
    with open_server(data) as server:
        given = {
            "in the backup": known,
            "in the lost time": lost,
            "before the backup": uuid7(datetime.now(UTC) - timedelta(hours=2)),
            "after the restore": new_idempotency_key(),
        }.get(key or "", key)

        status, answer = server.create(**({} if given is None else {"idempotencyKey": given}))

        assert (status, answer.get("code")) == (
            (409, "IDEMPOTENCY_KEY_UNKNOWN") if is_refused else (200, None)
        ), answer
        if given == known:
            assert (answer["commandId"], answer["isReplay"]) == (first, True)
        if is_refused:
            assert answer["retryable"] is False
            with closing(sqlite3.connect(f"file:{data / DATABASE}?mode=ro", uri=True)) as database:
                assert database.execute("SELECT count(*) FROM commands").fetchall() == [(1,)]


def test_other_keys_are_taken_again_after_their_window(tmp_path: Path) -> None:
    with open_server(tmp_path / "data"):
        backed_up(tmp_path / "data", tmp_path / "backup")
    data = restored(tmp_path / "backup", tmp_path / "restored")

    with open_server(data, restore={"unknown_key_seconds": 0}) as server:
        assert server.create(idempotencyKey="order-17")[0] == 200


# what has ended


def test_what_was_revoked_since_the_backup_stays_revoked(tmp_path: Path) -> None:
    data = tmp_path / "data"

    def made(*command: str) -> str:
        return run(*command, "--init", "--data-dir", data).stderr.splitlines()[0]

    token = made("token", "create", "--scope", "admin")
    enrol_token = made("enrol-token", "create", "--deployment", "own")
    backed_up(data, tmp_path / "backup")
    assert run("token", "revoke", token, "--data-dir", data).returncode == 0
    assert run("enrol-token", "revoke", enrol_token, "--data-dir", data).returncode == 0

    known = restored(tmp_path / "backup", tmp_path / "known", "--former", data)
    unknown = restored(tmp_path / "backup", tmp_path / "unknown")

    saved = Path(shutil.copy(data / JOURNAL, tmp_path / "saved.jsonl"))
    from_copy = restored(tmp_path / "backup", tmp_path / "from_copy", "--former", saved)
    for kind in ("token", "enrol-token"):
        [[after], [by_copy], [without]] = [
            json.loads(run(kind, "list", "--json", "--data-dir", place).stdout)
            for place in (known, from_copy, unknown)
        ]
        assert after["revoked"] is not None
        assert by_copy["revoked"] is not None
        assert without["revoked"] is None  # what --former is for


def test_a_former_directory_in_which_no_server_was_is_refused(tmp_path: Path) -> None:
    data, wrong = tmp_path / "data", tmp_path / "wrong.jsonl"
    assert run("token", "create", "--scope", "admin", "--init", "--data-dir", data).returncode == 0
    backed_up(data, tmp_path / "backup")
    (tmp_path / "empty").mkdir()
    wrong.write_text("[settings]\n")

    for former in (tmp_path / "empty", tmp_path / "mistyped", wrong):
        for command in (
            ("restore", tmp_path / "backup", "--data-dir", tmp_path / "restored"),
            ("begin-epoch", "--data-dir", data),
        ):
            ended = run(*command, "--former", former)
            assert ended.returncode == 1
            assert ended.stderr.startswith(f"error: --former {former}: ")
            assert not (tmp_path / "restored").exists()
    assert not (data / JOURNAL).exists()  # nothing has ended
    restored(tmp_path / "backup", tmp_path / "restored", "--former", data)


def test_the_journal_outlives_restores_and_torn_lines(tmp_path: Path) -> None:
    data = tmp_path / "data"
    token = run("token", "create", "--scope", "admin", "--init", "--data-dir", data).stderr.strip()
    backed_up(data, tmp_path / "backup")
    with (data / JOURNAL).open("ab") as journal:
        journal.write(b'{"kind":"tok')
    run("token", "revoke", token, "--data-dir", data)
    once = restored(tmp_path / "backup", tmp_path / "once", "--former", data)

    twice = restored(tmp_path / "backup", tmp_path / "twice", "--former", once)

    [listed] = json.loads(run("token", "list", "--json", "--data-dir", twice).stdout)
    assert listed["revoked"] is not None
    assert [(line.kind, line.id) for line in read_journal(twice / JOURNAL)] == [("token", token)]


def test_a_crash_between_commit_and_journal_is_made_good_at_the_next_start(tmp_path: Path) -> None:
    data = tmp_path / "data"
    token = run("token", "create", "--scope", "admin", "--init", "--data-dir", data).stderr.strip()
    run("token", "revoke", token, "--data-dir", data)
    (data / JOURNAL).unlink()

    run("token", "list", "--data-dir", data)

    assert [(line.kind, line.id) for line in read_journal(data / JOURNAL)] == [("token", token)]


def test_an_epoch_begins_where_other_means_have_restored(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with open_server(data) as server:
        server.created()
        live = run("begin-epoch", "--data-dir", data)
    assert live.returncode == 1

    begun = run("begin-epoch", "--data-dir", data)

    assert begun.returncode == 0, begun.stderr
    with open_server(data) as server:
        assert server.lease() == []
        assert server.create(idempotencyKey="x")[1]["code"] == "IDEMPOTENCY_KEY_UNKNOWN"


def test_an_orphaned_blob_is_noted_and_is_no_damage(tmp_path: Path) -> None:
    with open_server(tmp_path / "data") as server:
        server.created(params=LARGE)
    [blob] = (tmp_path / "data" / BLOBS).rglob("*.sealed")
    orphan = blob.with_name("left.blob")
    shutil.copy(blob, orphan)
    os.utime(orphan, (0, 0))

    checked = fsck(tmp_path / "data")

    assert checked.returncode == 0
    assert f"{orphan.parent.name}/left: no command names it" in checked.stderr


@pytest.mark.parametrize("is_running", [True, False])
def test_wrong_counts_of_usage_are_mended(tmp_path: Path, is_running: bool) -> None:
    data = tmp_path / "data"
    with open_server(data) as server:
        server.created()
    spoil(data, "UPDATE usage SET live_commands = -7, stored_bytes = 99")
    assert "the usage of deployment 'own'" in fsck(data).stdout

    with open_server(data) if is_running else nullcontext():
        mended = run("fsck", "--repair", "--data-dir", data)

    assert mended.returncode == 0
    assert "noted as [-7, 0, 99, 0, 0, 0, 0, 0, 0, 0]: mended" in mended.stderr
    assert fsck(data).returncode == 0


def test_a_backup_with_a_damaged_body_and_wrong_counts_is_restored(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with open_server(data) as server:
        damaged, sound = server.created(), server.created()
    spoil(data, "UPDATE params SET checksum = checksum + 1 WHERE command = 1")
    spoil(data, "DELETE FROM usage")
    backed_up(data, tmp_path / "backup")

    ended = run("restore", tmp_path / "backup", "--data-dir", tmp_path / "restored")

    assert ended.returncode == 0, ended.stderr
    assert "the params of command number 1 are damaged, as in the backup" in ended.stderr
    checked = fsck(tmp_path / "restored")
    assert checked.stdout.count("database:") == checked.stdout.count("the params of command") == 1
    with open_server(tmp_path / "restored", restore={"freeze_seconds": 0}) as server:
        assert [each["commandId"] for each in server.lease()] == [sound]
        assert server.state(damaged) == "FAILED"


def spoil(data: Path, statement: str) -> None:
    """Change a database behind the server's back."""
    with closing(sqlite3.connect(data / DATABASE)) as database, database:
        database.execute(statement)


def test_damage_in_a_body_is_found(tmp_path: Path) -> None:
    with open_server(tmp_path / "data") as server:
        server.created()
    spoil(tmp_path / "data", "UPDATE params SET checksum = checksum + 1")

    checked = fsck(tmp_path / "data")

    assert checked.returncode == 1
    assert "the params of command number" in checked.stdout
