"""The bar appears late or not at all."""

import io
import time

from rich.console import Console

from quire.report.progress import Bar, ProgressReporter, Silent


def console(terminal=True):
    return Console(file=io.StringIO(), force_terminal=terminal, width=80)


def work(reporter: ProgressReporter) -> None:
    reporter.step("planning", 1, 3)


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_quick_work_shows_nothing():
    out = console()
    with Bar(out, delay=30) as bar:
        work(bar)
        assert not bar.shown
    assert out.file.getvalue() == ""


def test_long_work_shows_a_bar_and_takes_it_away():
    out = console()
    with Bar(out, delay=0.01) as bar:
        work(bar)
        assert until(lambda: bar.shown)
        assert until(lambda: "planning" in out.file.getvalue())
        assert "1/3" in out.file.getvalue()
    assert not bar.shown


def test_no_terminal_no_bar():
    out = console(terminal=False)
    with Bar(out, delay=0.0) as bar:
        work(bar)
        time.sleep(0.05)
        assert not bar.shown
    assert out.file.getvalue() == ""


def test_a_late_timer_does_not_show_the_bar_after_the_end():
    bar = Bar(console(), delay=30)
    with bar:
        pass
    bar._show()
    assert not bar.shown


def test_silent():
    work(Silent())
