"""`python -m arc_agent` is `arc-agent`."""

from arc_agent.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
