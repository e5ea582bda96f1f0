"""docs/compatibility.md names the test of each feature; the tests must be there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

TESTS = Path(__file__).resolve().parent
DOCUMENT = TESTS.parent / "docs" / "compatibility.md"
NAME = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def tables() -> dict[str, list[list[str]]]:
    """The rows of the table under each heading, without its head."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found.setdefault(heading, []).append(cells)
    return {heading: rows[2:] for heading, rows in found.items()}


FEATURES = [
    pytest.param(row, id=row[0])
    for heading, rows in tables().items()
    if heading != "What a call costs"
    for row in rows
]


def names_in(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", FEATURES)
def test_a_feature_names_tests_that_exist(row: list[str]):
    names = NAME.findall(row[-1])
    assert names
    for file, test in names:
        assert test in names_in(file), f"{file} has no {test}"


def test_tests_named_in_the_text_exist():
    for file, test in NAME.findall(DOCUMENT.read_text()):
        assert test in names_in(file)


def test_every_table_is_read():
    assert len(FEATURES) > 40
    assert len(tables()) == 8
