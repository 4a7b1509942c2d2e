"""The audit log: what is found in it, what happens to its disk, what a crash leaves."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from arc_agent.cli.main import main
from arc_agent.config.sections import AuditSection
from arc_agent.guard.audit import Audit, AuditError, AuditUnavailable
from arc_agent.guard.audit_reader import Broken, entries, verify
from arc_agent.host.disk_thread import DiskThread
from tests.support.waiting import Changes


class Log:
    """A log that is open, and what it said of itself."""

    def __init__(
        self,
        directory: Path,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        **settings: Any,
    ) -> None:
        self._disk = DiskThread()
        self.audit = Audit(directory, AuditSection(**settings), self._disk, now=now)
        self.troubles: list[str | None] = []
        self.failures = 0
        self.changes = Changes()

    async def __aenter__(self) -> Log:
        await self._disk.__aenter__()
        await self.audit.open(on_trouble=self._trouble, on_failure=self._fail, version="1")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.audit.close()
        await self._disk.__aexit__(None, None, None)

    def _trouble(self, reason: str | None) -> None:
        self.troubles.append(reason)
        self.changes.notify()

    def _fail(self) -> None:
        self.failures += 1


async def written(directory: Path, count: int = 10, **settings: Any) -> list[Path]:
    """A log with some lines; its files."""
    async with Log(directory, **settings) as log:
        for number in range(count):
            await log.audit.record("started", command="a.b", command_id=f"cmd_{number}")
    return sorted(directory.iterdir())


def lines(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines()


async def test_lines_follow_one_another(tmp_path: Path) -> None:
    (file,) = await written(tmp_path / "audit", 2)

    found = [json.loads(line) for line in lines(file)]

    assert [each["event"] for each in found] == ["file", "opened", "started", "started", "closed"]
    assert [each["seq"] for each in found] == [1, 2, 3, 4, 5]
    assert found[0]["format"] == 2
    assert found[0]["prev"] == "A" * 22
    for before, after in zip(lines(file), found[1:], strict=False):
        assert after["prev"] == urlsafe_b64encode(sha256(before).digest()[:16]).decode()[:22]
    assert verify(tmp_path / "audit").last_sha256 == sha256(lines(file)[-1]).hexdigest()
    assert file.stat().st_mode & 0o777 == 0o600


async def test_a_line_whose_content_cannot_be_written_is_written_escaped(tmp_path: Path) -> None:
    async with Log(tmp_path / "audit") as log:
        await log.audit.record("ended", outcome="BAD_\udcff", more=[object, {"\udcff": "\udcff"}])
    (file,) = (tmp_path / "audit").iterdir()

    found = json.loads(lines(file)[2])

    assert found["outcome"] == "BAD_\\udcff"
    assert found["more"] == ["<class 'object'>", {"\\udcff": "\\udcff"}]
    assert verify(tmp_path / "audit").last_sha256 == sha256(lines(file)[-1]).hexdigest()


async def test_a_line_that_was_waited_for_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        real(descriptor)
        synced.append(os.fstat(descriptor).st_size)

    async with Log(tmp_path / "audit") as log:
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        log.audit.note("leased", command_id="cmd_1")
        await log.audit.record("started", command_id="cmd_1")

        (file,) = (tmp_path / "audit").iterdir()
        assert synced[-1] == file.stat().st_size
        assert b'"started"' in file.read_bytes()


async def test_the_next_process_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    await written(tmp_path / "audit", 2)
    await written(tmp_path / "audit", 2)

    report = verify(tmp_path / "audit")

    assert report.files == 1
    assert report.lines == 9
    assert report.first_seq == 1


async def test_files_are_rotated_and_the_oldest_dropped(tmp_path: Path) -> None:
    files = await written(tmp_path / "audit", 200, max_bytes=4096, keep=3)

    report = verify(tmp_path / "audit")

    assert len(files) == report.files == 3
    assert report.first_seq > 1
    assert all(file.stat().st_size < 4096 + 400 for file in files)
    assert int(files[-1].stem.removeprefix("audit-")) > 5


async def test_a_new_file_begins_when_the_current_one_is_old(tmp_path: Path) -> None:
    clock = datetime(2026, 5, 1, tzinfo=UTC)
    async with Log(tmp_path / "audit", now=lambda: clock, max_days=7) as log:
        await log.audit.record("started")
        clock += timedelta(days=6, hours=23)
        await log.audit.record("started")
        assert len(list((tmp_path / "audit").iterdir())) == 1
        clock += timedelta(hours=1)
        await log.audit.record("started")
        assert len(list((tmp_path / "audit").iterdir())) == 2

    clock += timedelta(days=7)
    async with Log(tmp_path / "audit", now=lambda: clock, max_days=7):
        pass  # the next process knows how old the file is
    assert verify(tmp_path / "audit").files == 3


async def test_files_go_when_their_last_line_is_too_old_and_the_log_says_so(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    files = await written(tmp_path / "audit", 200, max_bytes=4096)
    for file, days in zip(files, range(len(files), 0, -1), strict=True):
        at = (now - timedelta(days=days * 10)).timestamp()
        os.utime(file, (at, at))

    await written(tmp_path / "audit", 1, max_days=1e-9, keep_days=35)

    left = sorted((tmp_path / "audit").iterdir())
    assert left[:3] == files[-3:]
    assert not files[-4].exists()
    verify(tmp_path / "audit")
    left[0].unlink()
    with pytest.raises(Broken, match="files before it are missing"):
        verify(tmp_path / "audit")


def format_1(directory: Path, count: int) -> Path:
    """A file of the format before, as its version wrote it."""
    directory.mkdir()
    prev, text = "0" * 64, ""
    for seq in range(1, count + 1):
        fields = {"file": 1, "oldest": 1} if seq == 1 else {"command_id": f"cmd_{seq}"}
        line = {
            "seq": seq,
            "at": "2026-05-04T07:30:00.120331Z",
            "event": "file" if seq == 1 else "started",
            **fields,
            "prev": prev,
        }
        encoded = json.dumps(line, separators=(",", ":"))
        prev = sha256(encoded.encode()).hexdigest()
        text += f"{encoded}\n"
    (directory / "audit-00000001.jsonl").write_text(text)
    return directory / "audit-00000001.jsonl"


@pytest.mark.parametrize("torn", ["", '{"seq":5,"a'])
async def test_files_of_the_format_before_are_verified_and_continued_in_a_new_file(
    tmp_path: Path, torn: str
) -> None:
    old = format_1(tmp_path / "audit", 4)
    before, kept = old.read_bytes(), sha256(lines(old)[2]).hexdigest()
    assert verify(tmp_path / "audit", kept).lines == 4
    with old.open("a") as file:
        file.write(torn)

    await written(tmp_path / "audit", 1)

    assert old.read_bytes() == before
    report = verify(tmp_path / "audit", kept)
    assert (report.files, report.lines) == (2, 8)
    old.write_bytes(before.replace(b"cmd_4", b"cmd_5"))
    with pytest.raises(Broken, match=r"audit-00000002\.jsonl:1: it does not follow"):
        verify(tmp_path / "audit")


async def test_a_format_of_a_newer_version_is_named(tmp_path: Path) -> None:
    (file,) = await written(tmp_path / "audit", 1)
    file.write_bytes(file.read_bytes().replace(b'"format":2', b'"format":3'))

    with pytest.raises(Broken, match="format 3, of a newer arc-agent"):
        verify(tmp_path / "audit")


def change(*, line: int, old: bytes, new: bytes) -> Callable[[list[Path]], None]:
    """Edit a line of the middle file."""

    def edit(files: list[Path]) -> None:
        found = lines(files[1])
        assert old in found[line]
        found[line] = found[line].replace(old, new)
        files[1].write_bytes(b"\n".join(found) + b"\n")

    return edit


def rewrite(make: Callable[[list[bytes]], list[bytes]], which: int = 1) -> Any:
    """Make a file's lines anew."""

    def edit(files: list[Path]) -> None:
        files[which].write_bytes(b"".join(line + b"\n" for line in make(lines(files[which]))))

    return edit


TAMPERING: dict[str, Callable[[list[Path]], object]] = {
    "an edited command": change(line=5, old=b'"a.b"', new=b'"a.c"'),
    "an edited time": change(line=5, old=b'"at":"2', new=b'"at":"1'),
    "an edited number": change(line=5, old=b'"seq":', new=b'"seq":1'),
    "an edited hash": change(line=5, old=b'"prev":"', new=b'"prev":"0'),
    "a line that is none": change(line=5, old=b'"event"', new=b'"evenz"'),
    "a space more": change(line=5, old=b'"a.b"', new=b' "a.b"'),
    "a removed line": rewrite(lambda found: found[:5] + found[6:]),
    "a removed first line": rewrite(lambda found: found[1:]),
    "a removed last line of a file": rewrite(lambda found: found[:-1]),
    "two lines swapped": rewrite(lambda found: [*found[:5], found[6], found[5], *found[7:]]),
    "a line twice": rewrite(lambda found: [*found[:5], found[5], *found[5:]]),
    "an empty line": rewrite(lambda found: [*found[:5], b"", *found[5:]]),
    "a file cut in a line": lambda files: os.truncate(files[1], files[1].stat().st_size - 10),
    "an emptied file": lambda files: os.truncate(files[1], 0),
    "a removed file": lambda files: files[1].unlink(),
    "a removed first file": lambda files: files[0].unlink(),
    "two files swapped": lambda files: (
        files[1].rename(files[1].with_suffix(".tmp")),
        files[2].rename(files[1]),
        files[1].with_suffix(".tmp").rename(files[2]),
    ),
    "a file under another name": lambda files: files[-1].rename(
        files[-1].with_name("audit-00000099.jsonl")
    ),
    "a line before the first": rewrite(lambda found: [found[3], *found], 0),
    "all files": lambda files: [file.unlink() for file in files],
}


@pytest.mark.parametrize("tamper", TAMPERING.values(), ids=TAMPERING)
async def test_tampering_is_found(
    tmp_path: Path, tamper: Callable[[list[Path]], object], capsys: pytest.CaptureFixture[str]
) -> None:
    files = await written(tmp_path / "audit", 200, max_bytes=4096, keep=50)
    assert len(files) > 4
    assert main(["audit", "verify", str(tmp_path / "audit")]) == 0

    tamper(files)

    with pytest.raises(Broken):
        verify(tmp_path / "audit")
    assert main(["audit", "verify", str(tmp_path / "audit")]) == 1
    assert "BROKEN" in capsys.readouterr().err


async def test_a_first_file_that_rotation_had_left_is_missed(tmp_path: Path) -> None:
    files = await written(tmp_path / "audit", 200, max_bytes=4096, keep=3)

    files[0].unlink()

    with pytest.raises(Broken, match="files before it are missing"):
        verify(tmp_path / "audit")


async def test_lines_cut_off_at_the_very_end_show_to_who_knows_one_of_them(tmp_path: Path) -> None:
    (file,) = await written(tmp_path / "audit", 5)
    kept_elsewhere = sha256(lines(file)[-2]).hexdigest()
    assert verify(tmp_path / "audit", kept_elsewhere).lines == 8

    file.write_bytes(b"".join(line + b"\n" for line in lines(file)[:-3]))

    assert verify(tmp_path / "audit").lines == 5
    with pytest.raises(Broken, match="cut off"):
        verify(tmp_path / "audit", kept_elsewhere)


@pytest.mark.parametrize("left", [b'{"seq":9,"at":"20', b"\0\0\0\0", b'{"seq":'])
async def test_a_line_that_a_crash_cut_is_cut_off_and_said(tmp_path: Path, left: bytes) -> None:
    (file,) = await written(tmp_path / "audit", 2)
    with file.open("ab") as opened:
        opened.write(left)
    assert verify(tmp_path / "audit").is_unfinished

    await written(tmp_path / "audit", 1)

    assert not verify(tmp_path / "audit").is_unfinished
    opened_again = [each for each in entries(tmp_path / "audit") if each["event"] == "opened"]
    assert opened_again[1]["torn_bytes"] == len(left)


async def test_a_file_that_was_being_made_is_made_again(tmp_path: Path) -> None:
    await written(tmp_path / "audit", 2)
    (tmp_path / "audit" / "audit-00000002.jsonl").write_bytes(b'{"seq":6,')

    await written(tmp_path / "audit", 2)

    report = verify(tmp_path / "audit")
    assert (report.files, report.lines) == (2, 10)


async def test_a_damaged_line_is_left_for_verify_and_the_log_goes_on(tmp_path: Path) -> None:
    (file,) = await written(tmp_path / "audit", 2)
    damaged = file.read_bytes()[:-30] + b"\n"
    file.write_bytes(damaged)

    await written(tmp_path / "audit", 1)

    assert file.read_bytes() == damaged
    assert len(list((tmp_path / "audit").iterdir())) == 2
    with pytest.raises(Broken, match=r"audit-00000001\.jsonl:5: this is no line"):
        verify(tmp_path / "audit")


async def test_while_the_disk_is_full_nothing_is_recorded_and_afterwards_nothing_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    is_full = True

    def write(descriptor: int, data: bytes | memoryview) -> int:
        if is_full and os.readlink(f"/proc/self/fd/{descriptor}").endswith(".jsonl"):
            if len(data) > 20:
                return real(descriptor, bytes(data)[:20])  # a part still fits
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    async with Log(tmp_path / "audit") as log:
        await log.audit.record("started", command_id="cmd_0")
        (file,) = (tmp_path / "audit").iterdir()
        before = file.read_bytes()
        monkeypatch.setattr("arc_agent.guard.audit._RETRY_SECONDS", 0.05)
        monkeypatch.setattr(os, "write", write)
        log.audit.note("leased", command_id="cmd_1")
        with pytest.raises(AuditUnavailable, match="No space left"):
            await log.audit.record("started", command_id="cmd_1")
        assert file.read_bytes() == before
        assert log.troubles == ["No space left on device"]

        is_full = False
        await log.changes.until(lambda: log.troubles[-1] is None)
        await log.audit.record("started", command_id="cmd_2")

    verify(tmp_path / "audit")
    found = [(each["event"], each.get("command_id")) for each in entries(tmp_path / "audit")]
    assert ("leased", "cmd_1") in found
    assert ("started", "cmd_1") not in found
    assert ("started", "cmd_2") in found


async def test_after_a_failed_fsync_nothing_more_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fdatasync(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async with Log(tmp_path / "audit") as log:
        await log.audit.record("started", command_id="cmd_0")
        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", fdatasync)
            with pytest.raises(AuditUnavailable):
                await log.audit.record("started", command_id="cmd_1")
        with pytest.raises(AuditUnavailable):
            await log.audit.record("started", command_id="cmd_2")

        assert log.failures == 1


async def test_a_directory_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file")

    with pytest.raises(AuditError, match="cannot be used"):
        async with Log(tmp_path / "audit"):
            pass


async def test_many_that_record_at_once_share_their_fsyncs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = 0
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        real(descriptor)

    async with Log(tmp_path / "audit") as log:
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        async with asyncio.TaskGroup() as group:
            for number in range(100):
                group.create_task(log.audit.record("started", command_id=f"cmd_{number}"))

    assert syncs < 50
    assert verify(tmp_path / "audit").lines == 103


async def test_show_prints_what_is_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await written(tmp_path / "audit", 3)

    assert main(["audit", "show", str(tmp_path / "audit"), "--command-id", "cmd_1"]) == 0
    shown = capsys.readouterr().out
    assert main(["audit", "show", str(tmp_path / "audit"), "-n", "1", "--json"]) == 0
    as_json = capsys.readouterr().out

    assert shown.endswith("started    command=a.b command_id=cmd_1\n")
    assert len(shown.splitlines()) == 1
    assert json.loads(as_json)["event"] == "closed"


async def test_show_takes_events_and_ages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = datetime.now(UTC) - timedelta(hours=3)
    async with Log(tmp_path / "audit", now=lambda: clock) as log:
        await log.audit.record("started", command="a.b", command_id="cmd_old")
        clock = datetime.now(UTC) - timedelta(minutes=5)
        await log.audit.record("started", command="a.b", command_id="cmd_new")
        await log.audit.record("ended", command_id="cmd_new", outcome="succeeded")

    def shown(*options: str) -> list[str]:
        assert main(["audit", "show", str(tmp_path / "audit"), *options]) == 0
        return [" ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines()]

    assert shown("--event", "started", "--since", "1h30m") == [
        "started command=a.b command_id=cmd_new"
    ]
    assert shown("--since", "2h", "--event", "ended", "--event", "started")[1:] == [
        "ended command=a.b command_id=cmd_new outcome=succeeded"
    ]
    assert len(shown("--event", "started", "--since", "4h")) == 2
    assert shown("--command-id", "cmd_n", "-n", "1")[0].startswith("ended")
    with pytest.raises(SystemExit, match="2"):
        main(["audit", "show", "--event", "strated"])
    assert "Did you mean started?" in capsys.readouterr().err


async def test_show_goes_on_with_what_is_written_into_the_next_file_too(tmp_path: Path) -> None:
    await written(tmp_path / "audit", 3)
    process = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("arc-agent"), "audit", "show", tmp_path / "audit"),
        *("--follow", "-n", "1", "--event", "started"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            assert (await process.stdout.readline()).endswith(b"command_id=cmd_2\n")
            await written(tmp_path / "audit", 60, max_bytes=4096)
            assert len(list((tmp_path / "audit").iterdir())) > 1
            for number in range(60):
                line = await process.stdout.readline()
                assert line.endswith(b"command_id=cmd_%d\n" % number)
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_verify_says_what_it_cannot_see(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await written(tmp_path / "audit", 1)

    assert main(["audit", "verify", str(tmp_path / "audit")]) == 0

    out = capsys.readouterr().out
    assert "ok, 4 lines in 1 file" in out
    assert "--expect" in out
