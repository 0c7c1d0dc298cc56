"""The console script: handles signals first, since a command takes seconds to import."""

from jaxbig.system.signals import exit_on_ctrl_c, exit_on_stop_signals


def main() -> None:
    """Runs the command line and exits with its code."""
    with exit_on_ctrl_c():
        exit_on_stop_signals()
        from jaxbig.cli import main

    main.main()


if __name__ == "__main__":
    main()
