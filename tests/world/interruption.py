"""What ends a command early, so that it still puts away what it has made."""

import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heed() -> None:
    """Have the first of the signals raise KeyboardInterrupt, and no other one after it."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, interrupt)


def interrupt(*_: object) -> None:
    ignore()
    raise KeyboardInterrupt


def ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)  # SIG_IGN would have Python tell of one in between
