"""What the result files of the benchmarks say of themselves."""

import json
import sys

import pytest

from benchmarks import record


@pytest.mark.parametrize(
    "script, command",
    [
        ("benchmarks/proving.py", "python -m benchmarks.proving --cases"),
        ("tools/shard_matrix.py", "python tools/shard_matrix.py --cases"),
    ],
)
def test_rows_say_the_command_that_made_them(tmp_path, monkeypatch, script, command):
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    monkeypatch.setattr(
        sys, "argv", [str(record.Path(record.__file__).parents[1] / script), "--cases"]
    )
    path = record.save("something", [{"key": "a"}], {"device": "cpu"})
    assert [row["command"] for row in json.loads(path.read_text())["rows"]] == [command]
