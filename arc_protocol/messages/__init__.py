"""The messages of `arc.v1` and of its extensions, as frozen structs (docs/protocol.md, Types)."""
