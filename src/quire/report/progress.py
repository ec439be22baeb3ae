"""Progress of long work: a protocol to report it, and a bar that quick work never shows."""

from __future__ import annotations

from threading import Lock, Timer
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class ProgressReporter(Protocol):
    """What planners and others call as they go."""

    def step(self, name: str, done: int, total: int) -> None:
        """`done` of `total` units of the work `name` are finished; `total` 0 means unknown."""
        ...


class Silent:
    """Reports nothing."""

    def step(self, name: str, done: int, total: int) -> None:
        pass


class Bar:
    """A bar on standard error that appears once the work has taken `delay` seconds.

    before → after: nothing on the terminal → a bar → nothing. It stays away where the console is
    no terminal. Use it as a context manager; `step` may be called from any thread.
    """

    def __init__(self, console: Console | None = None, *, delay: float = 1.0) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console or Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=None)
        self._lock = Lock()
        self._ended = False
        # A timer rather than a look at the clock in `step`: one step alone may take a minute.
        self._timer = Timer(delay, self._show)
        self._timer.daemon = True

    @property
    def shown(self) -> bool:
        """Whether the bar is on the terminal now."""
        return self._progress.live.is_started

    def __enter__(self) -> Bar:
        if self._progress.console.is_terminal:
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._ended = True
            # One that never started would still print an empty line where there is no terminal.
            if self.shown:
                self._progress.stop()

    def step(self, name: str, done: int, total: int) -> None:
        self._progress.update(
            self._task, description=name, completed=done, total=total if total else None
        )

    def _show(self) -> None:
        with self._lock:
            if not self._ended:
                self._progress.start()
