"""The way in: signals are held back before anything else is imported, until somebody answers."""

import signal


def main() -> None:
    """Run the command line; the entry point of the console script and of `python -m tcompress`."""
    # those of `interruption.SIGNALS`, whose module takes its time
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    from .cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
