"""A plan is a list of steps that can be shown, carried out, and carried out again."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from arc_runtime.install.host import Host, InstallError, below, digest, write_file, write_link
from arc_runtime.install.manifest import Manifest, ManifestEntry


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all steps. Its path is the host's, without the scratch root."""

    path: str


class Directory(Step, frozen=True, kw_only=True, tag="directory"):
    """A directory of root's. Uninstall removes it only when it is empty."""

    mode: int = 0o755


class File(Step, frozen=True, kw_only=True, tag="file"):
    """A file of root's."""

    content: bytes
    mode: int = 0o644
    is_edited: bool = False
    """True: operators edit it. Their version stays, and the difference is shown."""
    is_secret: bool = False
    """True: its content is not shown."""


class Link(Step, frozen=True, kw_only=True, tag="link"):
    """A symbolic link."""

    target: str


class Owned(Step, frozen=True, kw_only=True, tag="owned"):
    """A directory that the service makes and fills, such as its state; uninstall removes it.

    Names in `kept` stay, and the directory with them, unless the uninstall purges.
    """

    kept: tuple[str, ...] = ()


class SystemUser(Step, frozen=True, kw_only=True, tag="user"):
    """A system user, which systemd-sysusers makes from the file at `path`."""

    name: str


AnyStep: TypeAlias = Directory | File | Link | Owned | SystemUser
Done = Literal["made", "changed", "kept", "unchanged"]


# Showing


def preview(step: AnyStep, host: Host) -> list[str]:
    """Return what a step would do, for `--dry-run`; nothing if it is done."""
    path = below(host.root, step.path)
    match step:
        case Directory():
            return [] if path.is_dir() else [f"mkdir  {path} ({step.mode:04o} root)"]
        case File():
            return _shown_file(step, path)
        case Link():
            is_there = path.is_symlink() and os.readlink(path) == step.target
            return [] if is_there else [f"link   {path} -> {step.target}"]
        case SystemUser():
            is_there = host.has(step.name)
            return [] if is_there else [f"run    {' '.join(_sysusers(step, host))}"]
        case Owned():
            return []


def _shown_file(step: File, path: Path) -> list[str]:
    """Return a file with its content, or its difference from the existing one."""
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
    """Return the difference between a file's content and the plan's."""
    lines = difflib.unified_diff(
        old.decode(errors="replace").splitlines(),
        new.decode().splitlines(),
        "installed",
        "requested",
        lineterm="",
    )
    return [f"       | {line}" for line in lines]


# Carrying out


def carry_out(step: AnyStep, host: Host, manifest: Manifest, others: Sequence[Manifest]) -> Done:
    """Do a step unless it is done. Raises InstallError.

    `others` are the manifests of further instances on this host: the things they made are shared.
    """
    is_shared = any(other.find(step.path) for other in others)
    match step:
        case Directory():
            return _make_directory(step, host, manifest, is_shared)
        case File():
            return _make_file(step, host, manifest, is_shared)
        case Link():
            return _make_link(step, host, manifest, is_shared)
        case SystemUser():
            return _make_user(step, host, manifest)
        case Owned():
            is_known = manifest.find(step.path) is not None
            manifest.record(ManifestEntry(kind="owned", path=step.path, kept=step.kept))
            return "unchanged" if is_known else "made"


def check(step: AnyStep, host: Host, manifest: Manifest, others: Sequence[Manifest]) -> None:
    """Refuse a step that `carry_out` would refuse, and do nothing. Raises InstallError."""
    path = below(host.root, step.path)
    is_known = any(each.find(step.path) for each in (manifest, *others))
    match step:
        case File() if not (is_known or step.is_edited or step.is_secret):
            if _content(path) not in (None, step.content):
                raise _foreign(path)
        case Link() if not is_known:
            if not path.is_symlink() and path.exists():
                raise _foreign(path)
            if path.is_symlink() and os.readlink(path) != step.target:
                raise _foreign(path)
        case _:
            pass


def _foreign(path: Path) -> InstallError:
    """Return the error for a path that is in the way."""
    return InstallError(f"{path} exists and was not installed by this program: move it away first")


def _make_directory(step: Directory, host: Host, manifest: Manifest, is_shared: bool) -> Done:
    path = below(host.root, step.path)
    is_there = path.is_dir()
    if not is_there or is_shared:
        manifest.record(ManifestEntry(kind="directory", path=step.path))
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
            manifest.record(ManifestEntry(kind="file", path=step.path, digest=digest(step.content)))
        if ours is None or path.stat().st_mode & 0o7777 == step.mode:
            return "unchanged"
        path.chmod(step.mode)
        return "changed"
    is_foreign = old is not None and ours is None and not is_shared
    was_edited = old is not None and (ours is None or ours.digest != digest(old))
    if step.is_edited and was_edited and not is_shared:
        host.print(f"kept: {path} was edited and stays as it is")
        for line in difference(old or b"", step.content):
            host.print(line)
        return "kept"
    if is_foreign and not step.is_secret:
        raise _foreign(path)
    if not is_foreign:
        known = "" if step.is_secret else digest(step.content)
        manifest.record(ManifestEntry(kind="file", path=step.path, digest=known))
    write_file(path, step.content, step.mode)
    return "made" if old is None else "changed"


def _make_link(step: Link, host: Host, manifest: Manifest, is_shared: bool) -> Done:
    path = below(host.root, step.path)
    old = os.readlink(path) if path.is_symlink() else None
    if old == step.target:
        if is_shared:
            manifest.record(ManifestEntry(kind="link", path=step.path, digest=step.target))
        return "unchanged"
    if (old is not None or path.exists()) and manifest.find(step.path) is None and not is_shared:
        raise _foreign(path)
    manifest.record(ManifestEntry(kind="link", path=step.path, digest=step.target))
    write_link(path, step.target)
    return "made" if old is None else "changed"


def _make_user(step: SystemUser, host: Host, manifest: Manifest) -> Done:
    if host.has(step.name):
        return "unchanged"
    manifest.record(ManifestEntry(kind="user", path=f"user:{step.name}", name=step.name))
    host.run(_sysusers(step, host))
    return "made"


def _sysusers(step: SystemUser, host: Host) -> list[str]:
    """Return the command that makes a user."""
    root = [f"--root={host.root}"] if host.is_scratch else []
    return ["systemd-sysusers", *root, str(below(host.root, step.path))]


def _content(path: Path) -> bytes | None:
    """Return the content of a file; None without one. Raises InstallError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InstallError(f"{path}: {error.strerror}") from None
