"""The entry point of `arc-server` and of `python -m arc_server`."""

from arc_runtime.startup.light_imports import import_aiohttp, import_structlog
from arc_runtime.startup.standard_streams import open_standard_streams


def main() -> None:
    """Run the command line."""
    open_standard_streams()
    import_structlog()
    import_aiohttp()
    from arc_server.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
