"""What is put on a host: a plan that can be shown, carried out, repeated and taken back.

Whatever is made is noted in a manifest before it is made, so that taking it back removes exactly
that, also after a crash in the middle. What was there before is never noted, and never touched.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from arc_runtime.directories import sync_directory

Say: TypeAlias = Callable[[str], None]
"""Takes a line for whoever installs."""


class InstallError(Exception):
    """Why it cannot go on, in words for a terminal; the message says what to do."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all steps. Paths are the host's, without the scratch root."""

    path: str


class Directory(Step, frozen=True, kw_only=True, tag="directory"):
    """A directory of root's. Left again only when nothing is in it."""

    mode: int = 0o755


class File(Step, frozen=True, kw_only=True, tag="file"):
    """A file of root's."""

    content: bytes
    mode: int = 0o644
    is_edited: bool = False
    """Whether people edit it: then their version stays, and the difference is shown."""
    is_secret: bool = False
    """Whether its content must not be shown."""


class Link(Step, frozen=True, kw_only=True, tag="link"):
    """A symbolic link."""

    target: str


class Owned(Step, frozen=True, kw_only=True, tag="owned"):
    """A directory that others fill, such as a unit's state: made by them, removed by us.

    Names in `kept` stay, and the directory with them, unless everything is to go.
    """

    kept: tuple[str, ...] = ()


class User(Step, frozen=True, kw_only=True, tag="user"):
    """A system user, made by systemd-sysusers from the file at `path`."""

    name: str


AnyStep: TypeAlias = Directory | File | Link | Owned | User
Done = Literal["made", "changed", "kept", "unchanged"]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was made."""

    kind: Literal["directory", "file", "link", "owned", "user"]
    path: str
    digest: str = ""
    """Of the content that was written, or what the link pointed to."""
    kept: tuple[str, ...] = ()
    name: str = ""


class Manifest:
    """What an installation has made, on disk beside its program."""

    def __init__(self, root: Path, path: str) -> None:
        """Read it, if it is there. Raises InstallError."""
        self._file = below(root, path)
        self.path = path
        self.entries: list[Entry] = []
        if self._file.exists():
            try:
                self.entries = msgspec.json.decode(self._file.read_bytes(), type=list[Entry])
            except (OSError, msgspec.DecodeError) as error:
                raise InstallError(f"{self._file} cannot be read: {error}") from None

    @property
    def is_there(self) -> bool:
        """Whether something is installed."""
        return self._file.exists()

    def find(self, path: str) -> Entry | None:
        """The entry of a path."""
        return next((entry for entry in self.entries if entry.path == path), None)

    def note(self, entry: Entry) -> None:
        """Add an entry, or replace that of the same path; durable on return."""
        found = self.find(entry.path)
        if found == entry:
            return
        if found is None:
            self.entries.append(entry)
        else:
            self.entries[self.entries.index(found)] = entry
        self._save()

    def forget(self, entry: Entry) -> None:
        """Remove an entry; the manifest itself with the last one."""
        self.entries.remove(entry)
        if self.entries:
            self._save()
        else:
            self._file.unlink(missing_ok=True)

    def _save(self) -> None:
        data = msgspec.json.format(msgspec.json.encode(self.entries), indent=1)
        write_file(self._file, data + b"\n", 0o644)


class Host:
    """Where it is installed, and how commands are run there."""

    def __init__(self, root: Path, run: Callable[[Sequence[str]], None], say: Say) -> None:
        self.root = root
        self.run = run
        """Runs a command to its end. Raises InstallError."""
        self.say = say

    def has(self, name: str, accounts: Literal["passwd", "group"] = "passwd") -> bool:
        """Whether the host knows a user, or a group."""
        try:
            lines = below(self.root, f"/etc/{accounts}").read_text().splitlines()
        except FileNotFoundError:
            return False
        return any(line.startswith(f"{name}:") for line in lines)

    @property
    def is_scratch(self) -> bool:
        """Whether this is not the running system but a directory."""
        return self.root != Path("/")


def below(root: Path, path: str) -> Path:
    """The place of a host's path below a root."""
    return root / path.lstrip("/")


def digest(content: bytes) -> str:
    """What tells whether a file was edited."""
    return hashlib.sha256(content).hexdigest()


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Replace a file whole: a reader sees the old or the new one. Durable on return."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as opened:
        opened.write(content)
        os.fchmod(opened.fileno(), mode)
        opened.flush()
        os.fsync(opened.fileno())
    beside.replace(path)
    sync_directory(path.parent)


def write_link(path: Path, target: str) -> None:
    """Make a link or turn it to another target, at once for everybody who looks."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(path)
    sync_directory(path.parent)


# Showing


def shown(step: AnyStep, host: Host) -> list[str]:
    """What a step would do, for `--dry-run`; nothing when all is as it should be."""
    path = below(host.root, step.path)
    match step:
        case Directory():
            return [] if path.is_dir() else [f"mkdir  {path} ({step.mode:04o} root)"]
        case File():
            return _shown_file(step, path)
        case Link():
            is_there = path.is_symlink() and os.readlink(path) == step.target
            return [] if is_there else [f"link   {path} -> {step.target}"]
        case User():
            is_there = host.has(step.name)
            return [] if is_there else [f"run    {' '.join(_sysusers(step, host))}"]
        case Owned():
            return []


def _shown_file(step: File, path: Path) -> list[str]:
    """A file with its content, or the difference to the one that is there."""
    lines = [f"write  {path} ({step.mode:04o} root)"]
    old = _content(path)
    if old == step.content:
        return []
    if step.is_secret:
        return [*lines, "       | (secret)"]
    if old is not None and step.is_edited:
        return [f"keep   {path}, which differs:", *difference(old, step.content)]
    return [*lines, *(f"       | {line}" for line in step.content.decode().splitlines())]


def difference(old: bytes, new: bytes) -> list[str]:
    """What stands in a file, and what the plan would have put there."""
    lines = difflib.unified_diff(
        old.decode(errors="replace").splitlines(),
        new.decode().splitlines(),
        "what is there",
        "what was asked for",
        lineterm="",
    )
    return [f"       | {line}" for line in lines]


# Carrying out


def carry_out(step: AnyStep, host: Host, manifest: Manifest, others: Sequence[Manifest]) -> Done:
    """Do a step unless it is done. Raises InstallError.

    `others` are the manifests of installations beside this one: what they have made is shared.
    """
    is_shared = any(other.find(step.path) for other in others)
    match step:
        case Directory():
            return _make_directory(step, host, manifest, is_shared)
        case File():
            return _make_file(step, host, manifest, is_shared)
        case Link():
            return _make_link(step, host, manifest, is_shared)
        case User():
            return _make_user(step, host, manifest)
        case Owned():
            is_known = manifest.find(step.path) is not None
            manifest.note(Entry(kind="owned", path=step.path, kept=step.kept))
            return "unchanged" if is_known else "made"


def _make_directory(step: Directory, host: Host, manifest: Manifest, is_shared: bool) -> Done:
    path = below(host.root, step.path)
    is_there = path.is_dir()
    if not is_there or is_shared:
        manifest.note(Entry(kind="directory", path=step.path))
    if is_there:
        return "unchanged"
    path.mkdir()
    path.chmod(step.mode)
    return "made"


def _make_file(step: File, host: Host, manifest: Manifest, is_shared: bool) -> Done:
    path = below(host.root, step.path)
    old, ours = _content(path), manifest.find(step.path)
    if old == step.content:
        if is_shared:
            manifest.note(Entry(kind="file", path=step.path, digest=digest(step.content)))
        if ours is None or path.stat().st_mode & 0o7777 == step.mode:
            return "unchanged"
        path.chmod(step.mode)
        return "changed"
    is_foreign = old is not None and ours is None and not is_shared
    was_edited = old is not None and (ours is None or ours.digest != digest(old))
    if step.is_edited and was_edited and not is_shared:
        host.say(f"kept: {path} is not as it was written here; it stays as it is")
        for line in difference(old or b"", step.content):
            host.say(line)
        return "kept"
    if is_foreign and not step.is_secret:
        raise InstallError(f"{path} is there and not from here: move it away first")
    if not is_foreign:
        known = "" if step.is_secret else digest(step.content)
        manifest.note(Entry(kind="file", path=step.path, digest=known))
    write_file(path, step.content, step.mode)
    return "made" if old is None else "changed"


def _make_link(step: Link, host: Host, manifest: Manifest, is_shared: bool) -> Done:
    path = below(host.root, step.path)
    old = os.readlink(path) if path.is_symlink() else None
    if old == step.target:
        if is_shared:
            manifest.note(Entry(kind="link", path=step.path, digest=step.target))
        return "unchanged"
    if (old is not None or path.exists()) and manifest.find(step.path) is None and not is_shared:
        raise InstallError(f"{path} is there and not from here: move it away first")
    manifest.note(Entry(kind="link", path=step.path, digest=step.target))
    write_link(path, step.target)
    return "made" if old is None else "changed"


def _make_user(step: User, host: Host, manifest: Manifest) -> Done:
    if host.has(step.name):
        return "unchanged"
    manifest.note(Entry(kind="user", path=f"user:{step.name}", name=step.name))
    host.run(_sysusers(step, host))
    return "made"


def _sysusers(step: User, host: Host) -> list[str]:
    """The command that makes a user."""
    root = [f"--root={host.root}"] if host.is_scratch else []
    return ["systemd-sysusers", *root, str(below(host.root, step.path))]


def _content(path: Path) -> bytes | None:
    """What stands in a file, None when there is none. Raises InstallError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InstallError(f"{path}: {error.strerror}") from None


# Taking back


def shown_backwards(entry: Entry, host: Host, *, purge: bool) -> list[str]:
    """What taking an entry back would do, for `--dry-run`."""
    path = below(host.root, entry.path)
    match entry.kind:
        case "user":
            return [f"run    {' '.join(_delete('userdel', entry, host))}"]
        case "owned" if entry.kept and not purge and path.is_dir():
            left = sorted(each.name for each in path.iterdir() if _is_kept(each.name, entry))
            return [f"clear  {path}; kept: {', '.join(left) or 'nothing'}"]
        case "directory" | "owned":
            return [f"rmdir  {path}"] if path.is_dir() else []
        case _:
            return [f"remove {path}"] if path.is_symlink() or path.exists() else []


def take_back(entry: Entry, host: Host, manifest: Manifest, *, purge: bool) -> None:
    """Remove what an entry stands for, and the entry. Raises InstallError."""
    path = below(host.root, entry.path)
    match entry.kind:
        case "user":
            if host.has(entry.name):
                host.run(_delete("userdel", entry, host))
            if host.has(entry.name, "group"):  # userdel removes it where login.defs says so
                host.run(_delete("groupdel", entry, host))
        case "owned":
            _clear(path, entry, host, purge=purge)
        case "directory":
            remove_directory(path, host)
        case "file" | "link":
            _say_edited(path, entry, host)
            path.unlink(missing_ok=True)
    manifest.forget(entry)


def _delete(program: str, entry: Entry, host: Host) -> list[str]:
    """The command that removes a user or a group; never the files of its home."""
    prefix = ["--prefix", str(host.root)] if host.is_scratch else []
    return [program, *prefix, entry.name]


def _is_kept(name: str, entry: Entry) -> bool:
    """Whether a name, or what it begins with, is to stay."""
    return any(name == kept or name.startswith(f"{kept}-") for kept in entry.kept)


def _clear(path: Path, entry: Entry, host: Host, *, purge: bool) -> None:
    """Empty a directory but for what is kept, which nobody but root may then read."""
    if not path.is_dir():
        return
    for each in path.iterdir():
        if purge or not _is_kept(each.name, entry):
            shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
    left = sorted(path.iterdir())
    if not left:
        path.rmdir()
        return
    host.say(f"left: {', '.join(str(each) for each in left)}")
    if not host.is_scratch:  # its user goes: the next one with that number must not own this
        for each in (path, *path.rglob("*")):
            os.chown(each, 0, 0, follow_symlinks=False)


def remove_directory(path: Path, host: Host) -> None:
    """Remove a directory unless something is in it, which is said."""
    if not path.is_dir():
        return
    try:
        path.rmdir()
    except OSError:
        host.say(f"left: {path}, which holds files that are not from here")


def _say_edited(path: Path, entry: Entry, host: Host) -> None:
    """Say so when a file goes that somebody has edited."""
    if (
        entry.digest
        and entry.kind == "file"
        and path.is_file()
        and digest(path.read_bytes()) != entry.digest
    ):
        host.say(f"removed although it was edited: {path}")
