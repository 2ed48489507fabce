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
        signal.signal(number, signal.SIG_IGN)


def restore() -> None:
    """Before a program starts: who has started this one may have had them ignored, as nohup does."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
