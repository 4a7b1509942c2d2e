"""Decisions about whether a command may start: policy, approval, pause, signatures, audit."""
