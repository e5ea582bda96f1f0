"""The files of measured choices: whole, merged, of this machine and version, or ignored."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import warnings
from pathlib import Path

import pytest
import torch
from choice_tables import ATEN, CPU, NATIVE, PROBLEM, explained, forget, table_of
from support import threads

from grouped_conv import Workload, autotune, measured
from grouped_conv.measured import Entry
from grouped_conv.problem import ConvProblem

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("table_directory")]


def broken(change) -> str:
    """A table of which something is wrong."""
    path = table_of(ATEN)
    content = json.loads(path.read_text())
    change(content)
    return json.dumps(content)


def in_row(**values):
    return lambda content: content["measured"][0].update(values)


CORRUPT = {
    "empty": lambda: "",
    "cut": lambda: broken(lambda content: None)[:-20],
    "binary": lambda: "\udcff",
    "another kind": lambda: "[1, 2]",
    "no rows": lambda: broken(lambda content: content.pop("measured")),
    "a later format": lambda: broken(lambda content: content.update(format=2)),
    "unknown pass": lambda: broken(in_row(pass_name="zgrad")),
    "unknown dtype": lambda: broken(in_row(dtype="int8")),
    "unknown layout": lambda: broken(in_row(channels_last="no")),
    "unknown backend": lambda: broken(in_row(microseconds={"cudnn": 1.0})),
    "unknown device": lambda: broken(in_row(device="meta")),
    "no configuration": lambda: broken(in_row(configuration=None)),
    "no times": lambda: broken(in_row(microseconds={})),
    "times not by name": lambda: broken(in_row(microseconds=[1.0])),
    "a time that is no number": lambda: broken(in_row(microseconds={"aten": "fast"})),
    "NaN": lambda: broken(in_row(microseconds={"aten": float("nan")})),
    "a negative time": lambda: broken(in_row(microseconds={"aten": -1.0})),
    "a negative extent": lambda: broken(in_row(N=-2)),
    "an extent that is no integer": lambda: broken(in_row(W=5.0)),
    "three strides": lambda: broken(in_row(stride=[1, 1, 1])),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_a_corrupt_file_is_ignored_and_replaced(name: str):
    text = CORRUPT[name]()
    path = table_of(ATEN)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    forget()
    with pytest.warns(UserWarning, match="is ignored: it"):
        decision = explained()
    assert decision.backend == "native"
    assert "measured" not in str(decision)
    with pytest.warns(UserWarning, match="is ignored: it"):
        table_of(ATEN)
    assert explained().backend == "aten"


@pytest.mark.parametrize(
    ("fact", "value"), [("torch", "2.0.0"), ("grouped_conv", "0.0.1"), ("device", "abacus")]
)
def test_a_foreign_file_is_ignored(fact: str, value: str):
    path = table_of(ATEN)
    content = json.loads(path.read_text())
    content["made_for"][fact] = value
    path.write_text(json.dumps(content))
    forget()
    with pytest.warns(UserWarning, match=f"made for .*{value}"):
        assert explained().backend == "native"


def test_each_version_and_setting_has_its_file(
    table_directory: Path, monkeypatch: pytest.MonkeyPatch
):
    one = table_of(ATEN)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert explained().backend == "native"
    forget()
    two = table_of(NATIVE)
    assert {one, two} == set(table_directory.glob("*.json"))
    assert "torch-9.9.9" in two.name
    assert "torch-9.9.9" not in one.name


def test_a_table_is_for_a_number_of_threads():
    table_of(ATEN)
    assert explained().backend == "aten"
    with threads(torch.get_num_threads() + 1):
        forget()
        assert explained().backend == "native"


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(measured.DIRECTORY_VARIABLE, str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="in this process only"):
        (m,) = autotune([Workload(PROBLEM)], passes=["fprop"], seconds=0.001)
    assert m.source == "this process"
    assert "(this process)" in explained().passes["fprop"][2]


def test_a_write_that_fails_leaves_the_file(table_directory: Path, monkeypatch: pytest.MonkeyPatch):
    path = table_of(ATEN)
    text = path.read_text()

    def fail(*_) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.warns(UserWarning, match="no space left"):
        measured.write(CPU, {Workload(PROBLEM).key("fprop"): Entry(tuple(NATIVE.items()), "")})
    assert path.read_text() == text
    assert {p.suffix for p in table_directory.iterdir()} == {".json", ".lock"}


def _writer(number: int) -> None:
    for i in range(10):
        problem = ConvProblem(1 + number, 16, 6, 6 + i, 16, G=4)
        measured.write(CPU, {Workload(problem).key("fprop"): Entry(tuple(NATIVE.items()), "")})


def test_many_processes_write_at_once(table_directory: Path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_writer, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    seen = 0
    deadline = time.monotonic() + 60
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as a file would be that is read half written
        while any(writer.is_alive() for writer in writers) and time.monotonic() < deadline:
            measured.forget()
            found = len(measured.table(CPU).entries)
            assert found >= seen
            seen = found
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    measured.forget()
    assert len(measured.table(CPU).entries) == 40
    assert {p.suffix for p in table_directory.iterdir()} == {".json", ".lock"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({measured.DIRECTORY_VARIABLE: "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/grouped_conv"),
        ({"XDG_CACHE_HOME": "b", "HOME": "/c"}, "/c/.cache/grouped_conv"),
        ({"HOME": "/c"}, "/c/.cache/grouped_conv"),
    ],
)
def test_directory(environment: dict, expected: str, monkeypatch: pytest.MonkeyPatch):
    for name in (measured.DIRECTORY_VARIABLE, "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert measured.directory() == Path(expected)
