"""``python -m tolaria_bus``: the command line."""

from tolaria_bus.cli import main

if __name__ == "__main__":
    main()
