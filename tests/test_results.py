"""Result files of benchmarks: rows are replaced by key, and keep their day."""

import datetime
import json

import pytest

from benchmarks import host, record


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    return tmp_path


def on(day, monkeypatch):
    class Day(datetime.date):
        @classmethod
        def today(cls):
            return cls.fromisoformat(day)

    monkeypatch.setattr(record.datetime, "date", Day)


def test_a_later_run_of_one_row_keeps_the_others(folder, monkeypatch):
    on("2030-01-01", monkeypatch)
    record.save("speed", [{"key": "a", "s": 1}, {"key": "b", "s": 2}], {})
    on("2030-01-02", monkeypatch)
    path = record.save("speed", [{"key": "b", "s": 3}], {})
    record.save("speed-other", [{"key": "c", "s": 4}], {})
    assert len(list(folder.iterdir())) == 2
    found = json.loads(path.read_text())
    assert [found] == record.records("speed")
    rows = [(row["key"], row["s"], row["date"]) for row in found["rows"]]
    assert rows == [("a", 1, "2030-01-01"), ("b", 3, "2030-01-02")]


def test_rows_of_another_torch_go(folder, monkeypatch):
    record.save("speed", [{"key": "a"}], {})
    facts = host.describe() | {"torch": "0.1"}
    monkeypatch.setattr(host, "describe", lambda: facts)
    record.save("speed", [{"key": "b"}], {})
    (found,) = record.records("speed")
    assert found["hardware"]["torch"] == "0.1"
    assert [row["key"] for row in found["rows"]] == ["b"]
    assert record.records("nothing") == []


def test_the_newest_machine_comes_first(folder, monkeypatch):
    for day, machine in (("2030-01-02", "a"), ("2030-01-03", "b"), ("2030-01-01", "c")):
        on(day, monkeypatch)
        monkeypatch.setattr(host, "slug", lambda device, own=machine: own)
        record.save("speed", [{"key": machine}], {})
    assert [r["rows"][0]["key"] for r in record.records("speed")] == ["b", "a", "c"]
