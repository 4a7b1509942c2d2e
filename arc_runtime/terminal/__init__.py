"""The terminal's house style: tables, times, errors and help that are alike in all programs.

The rules are in CONTRIBUTING.md, "The terminal". Cheap to import: the agent uses it, and it loads
neither rich nor typer; `typer_help.py` is for `arc` and `arc-server`, which load typer anyway.
"""
