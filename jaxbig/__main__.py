"""The console script. It answers signals first: what the command line imports takes seconds to load."""

from jaxbig.system.signals import exit_on_ctrl_c, exit_on_stop_signals


def main() -> None:
    """Carries out the command line and exits with its code."""
    with exit_on_ctrl_c():
        exit_on_stop_signals()
        from jaxbig.cli import main

    main.main()


if __name__ == "__main__":
    main()
