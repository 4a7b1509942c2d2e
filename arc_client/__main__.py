"""Running `python -m arc_client` is running `arc`."""

from arc_client.cli.main import main

if __name__ == "__main__":
    main()
