"""Stopping a run from outside: SIGTERM and Ctrl-C let it finish its step and save."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chiaroscuro.training.ranks import any_of

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def ignore_sigterm() -> None:
    """When one process dies, torchrun sends this signal to the others, who have yet to say why they end."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


class StopAtSignal(TrainerCallback):
    """Saves a checkpoint and ends training after the step in which a signal came. `name`: of that signal, or None."""

    def __init__(self) -> None:
        self.name: str | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if any_of(self.name is not None):
            self.name = self.name or signal.SIGTERM.name  # it came to another process
            control.should_save = control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While it lasts, the first signal is noted; a second one does what it would have done without this. Nothing
        changes for signals that are ignored, as Ctrl-C is in the background, nor outside the main thread, which alone
        can listen."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def note(number: int, frame: Any) -> None:
            self.name = signal.Signals(number).name
            restore()

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            restore()
