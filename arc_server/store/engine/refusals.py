"""Reasons not to open a database. Nothing was touched; each message is one line for a person.

StoreRefused
├── StoreLocked      another server uses this data directory
├── StoreCorrupt     not a database, or a damaged one
└── StoreTooNew      written by a newer release
"""

from __future__ import annotations


class StoreRefused(Exception):
    """The base of every reason not to open a database."""


class StoreLocked(StoreRefused):
    """Another server uses this data directory."""


class StoreCorrupt(StoreRefused):
    """The file is not a database of ours, or it is damaged."""


class StoreTooNew(StoreRefused):
    """The schema is from a newer release than this one."""
