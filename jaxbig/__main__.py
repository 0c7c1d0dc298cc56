"""The console script. It answers signals first: what the command line imports takes seconds to load."""

from jaxbig.system.signals import ctrl_c_leaves, exit_when_asked


def main() -> None:
    """Carries out the command line and exits with its code."""
    with ctrl_c_leaves():
        exit_when_asked()
        from jaxbig.cli import main

    main.main()


if __name__ == "__main__":
    main()
