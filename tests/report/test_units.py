"""Numbers as text."""

import pytest

from quire.report.units import bytes_text, change_text, ratio_text, seconds_text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1536, "1.5 KiB"),
        (512 << 20, "512 MiB"),
        (1023 << 20, "1 GiB"),
        (int(1.555 * 2**30), "1.55 GiB"),
        (-(3 << 20), "-3 MiB"),
        (5 << 60, "5120 PiB"),
    ],
)
def test_bytes(nbytes, text):
    assert bytes_text(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (1.234, "1.23 s"), (0.9996, "1 s"), (0.0123, "12.3 ms"), (1e-5, "10 µs")],
)
def test_seconds(seconds, text):
    assert seconds_text(seconds) == text


def test_ratio():
    assert (ratio_text(0.8123), ratio_text(12.34), ratio_text(1)) == ("0.81 ×", "12.3 ×", "1 ×")


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (100, 8, "−92 %"),
        (100, 104, "+4 %"),
        (1000, 3, "−99.7 %"),
        (1, 0, "−100 %"),
        (0, 5, "0 %"),
        (7, 7, "+0 %"),
    ],
)
def test_change(before, after, text):
    assert change_text(before, after) == text
