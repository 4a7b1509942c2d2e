"""`python -m arc_server` is `arc-server`."""

from arc_server.cli import main

if __name__ == "__main__":
    main()
