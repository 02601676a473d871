"""The table: a user's own file, read, understood, split, and complained about in one line that names file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.data import cache
from loopwise.errors import ConfigError, DataError, LoopwiseError, PuzzleError
from loopwise.tasks.table import Table, TableConfig
from loopwise.types import SPLITS

TEXTS = [(f"{number:05b}a", f"{number:05b}"[::-1]) for number in range(30)]
LISTS = [([number, 1], [1, number, number]) for number in range(30)]
GRIDS = [([[number, 1, 2], [3, 4, 5]], [[number, 3], [1, 4], [2, 5]]) for number in range(30)]


def objects(rows, **more):
    return [{"input": i, "output": o, **more} for i, o in rows]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file into the working directory, so that messages have short paths."""
    monkeypatch.chdir(tmp_path)

    def write(rows, name="puzzles.jsonl"):
        if isinstance(rows, list):
            rows = "".join(json.dumps(row) + "\n" for row in rows)
        content = rows.encode() if isinstance(rows, str) else rows
        (tmp_path / name).write_bytes(content)
        return name

    return write


def table(file, **options):
    return Table(TableConfig(file=file, **options))


def separated(rows, delimiter=","):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(["input", "output"])
    writer.writerows([cell if isinstance(cell, str) else json.dumps(cell) for cell in row] for row in rows)
    return text.getvalue()


def counts(task):
    return [len(task.examples(split).inputs) for split in SPLITS]


@pytest.mark.parametrize("rows", [TEXTS, LISTS, GRIDS])
def test_formats_agree(write, rows):
    """The same puzzles make the same task from JSON Lines, JSON, CSV, TSV, and their gzipped forms."""
    tasks = [
        table(write(objects(rows))),
        table(write(json.dumps(objects(rows)), "p.json")),
        table(write(separated(rows), "p.csv")),
        table(write("\ufeff" + separated(rows, ";").replace("\r\n", "\n"), "q.CSV")),
        table(write(separated(rows, "\t"), "p.tsv")),
        table(write(gzip.compress(separated(rows).encode()), "p.csv.gz")),
    ]
    for task in tasks[1:]:
        assert task.metadata() == tasks[0].metadata()
        for split in SPLITS:
            for column, expected in zip(task.examples(split), tasks[0].examples(split), strict=True):
                np.testing.assert_array_equal(column, expected)


def test_padding_is_asked(write):
    """Inputs and outputs are padded on the right to the longest of all, and the padding of an answer is its label."""
    task = table(write(objects(TEXTS)))
    examples = task.examples("train")
    assert task.spec.shape == (6,)
    assert (examples.inputs > 0).all()
    assert (examples.labels[:, 5] == 0).all()
    assert (examples.labels[:, :5] > 0).all()
    assert task.format(examples.labels[0], "any text") == task.format(examples.inputs[0], "")[:5][::-1]


def test_grids_of_different_sizes(write):
    """Smaller grids lie in the upper left corner of the largest; positions are numbered row by row."""
    task = table(write(objects(GRIDS)))
    assert task.spec.shape == (3, 3)
    names = task.spec.symbols
    tokens = task.parse([[7, 1, 2], [3, 4, 5]])
    assert [names[token] for token in tokens] == ["7", "1", "2", "3", "4", "5", "", "", ""]
    tokens = task.parse([[7, 3], [1, 4], [2, 5]])
    assert [names[token] for token in tokens] == ["7", "3", "", "1", "4", "", "2", "5", ""]
    assert task.format(tokens, [[1]]) == [[7, 3], [1, 4], [2, 5]]
    assert task.format(tokens, "1 2\n3 4") == "7 3\n1 4\n2 5"
    assert task.format(tokens, "[[1]]") == "[[7, 3], [1, 4], [2, 5]]"


def test_numbers_stay_numbers(write):
    """A list is answered with numbers where the file has numbers, with strings where the puzzle has only strings."""
    rows = [([number, "+", 1], [number + 1]) for number in range(25)]
    task = table(write(objects(rows)))
    tokens = task.parse(["3", "+", 1])
    assert task.format(tokens, [3, "+", 1]) == [3, "+", 1]
    assert task.format(tokens, ["3"]) == ["3", "+", "1"]
    assert task.format(tokens, "[3]") == '[3, "+", 1]'
    assert task.format(tokens, "3,+,1") == "3,+,1"
    assert task.spec.symbols[:4] == ("", "0", "1", "2")


def test_words(write):
    """With tokens=words a symbol is a word between spaces."""
    rows = [(f"go {number} left", f"left {number}") for number in range(25)]
    task = table(write(objects(rows)), tokens="words")
    assert task.spec.shape == (3,)
    assert task.format(task.parse("go  7 left"), "") == "go 7 left"
    with pytest.raises(PuzzleError, match="unknown symbol 'right' at position 3; known: 0 1"):
        task.parse("go 7 right")


def test_unfinished_answer(write):
    """Padding inside an answer is a question mark in a text, null in a list; trailing padding is cut off."""
    text, grid = table(write(objects(TEXTS))), table(write(objects(GRIDS), "grid.jsonl"))
    assert text.format(np.array([1, 0, 2, 0, 0, 0]), "") == "0?1"
    assert text.format(np.zeros(6, int), "") == ""
    one = grid.parse([[1]])[0]
    assert grid.format(np.array([one, 0, 0, 0, one, 0, 0, 0, 0]), [[1]]) == [[1, None], [None, 1]]
    assert grid.format(np.zeros(9, int), [[1]]) == [[]]
    assert "·" in text.render(np.array([1, 0, 2, 0, 0, 0]))


def test_render_colours(write):
    """Changed symbols are green, those that a puzzle of the same size has in the same place are dim."""
    task = table(write(objects(TEXTS)))
    tokens = [task.parse(text) for text in ("0110", "0011", "1011", "011")]
    assert task.render(tokens[0]) == "0110"
    assert task.render(tokens[1], tokens[0]) == "[dim]0[/]0[dim]1[/]1"
    assert task.render(tokens[1], None, tokens[2]) == "[green]0[/]011"
    assert task.render(tokens[1], tokens[3]) == "0011"


def test_shares(write):
    """Shares count different puzzles, leave each split at least one, and do not depend on the order of the rows."""
    rows = objects(TEXTS)
    assert counts(table(write(rows))) == [25, 2, 3]
    assert counts(table(write(rows[:20]), validation=0.001, test=0.001)) == [18, 1, 1]
    one, other = table(write(rows)), table(write(rows[::-1], "reversed.jsonl"))
    for split in SPLITS:
        assert {r.tobytes() for r in one.examples(split).inputs} == {r.tobytes() for r in other.examples(split).inputs}
    assert not np.array_equal(table(write(rows), seed=1).examples("test").inputs, one.examples("test").inputs)


def test_no_rows_for_a_split(write):
    """A split without rows says which option gives it some."""
    name = write(objects(TEXTS))
    with pytest.raises(DataError, match=r"puzzles\.jsonl has no rows for the split test; raise --task\.test"):
        table(name, test=0).examples("test")
    with pytest.raises(DataError, match=r"no rows for the split train; lower --task\.validation and --task\.test"):
        table(name, test=1, validation=0).examples("train")
    assert len(table(name, test=1, validation=0).examples("test").inputs) == 30


def test_split_column(write):
    """A column `split` is obeyed; a split that it does not name is drawn from its training rows."""
    named = [{**row, "split": ["train", "test", "val"][index % 3]} for index, row in enumerate(objects(TEXTS))]
    assert counts(table(write(named))) == [10, 10, 10]
    named = [{**row, "split": "test" if index < 5 else "Train"} for index, row in enumerate(objects(TEXTS))]
    task = table(write(named))
    assert counts(task) == [24, 1, 5]
    assert [task.format(row, "") for row in task.examples("test").inputs] == [text for text, _ in TEXTS[:5]]
    with pytest.raises(DataError, match=r"line 3: the split 'tset' is none of train, validation, test"):
        table(write([*named[:2], {**named[2], "split": "tset"}])).examples("test")
    with pytest.raises(DataError, match="line 31: no column 'split'"):
        table(write([*named, *objects([("0a", "1")])])).examples("test")


def test_repeats(write):
    """Repeated rows count once, and one that is in the test and in training belongs to the test."""
    rows = objects(TEXTS, split="train") + objects(TEXTS[:4], split="test")
    task = table(write(rows))
    assert counts(task) == [25, 1, 4]
    assert [task.format(row, "") for row in task.examples("test").inputs] == [text for text, _ in TEXTS[:4]]
    assert "4 repeated" in task.summary()


def test_ambiguous(write):
    """One input with two outputs is an error that names both lines, unless it is allowed: then the first counts."""
    name = write([*objects(TEXTS), *objects([(TEXTS[6][0], "111")])])
    with pytest.raises(
        DataError, match=r"line 7 and puzzles\.jsonl, line 31 have the same input but different outputs"
    ):
        table(name).examples("train")
    task = table(name, allow_ambiguous=True, test=1, validation=0)
    answers = dict(zip(*([task.format(row, "") for row in rows] for rows in task.examples("test")[:2]), strict=True))
    assert answers == dict(TEXTS)
    assert "1 with another answer" in task.summary()


GOOD = "".join(json.dumps(row) + "\n" for row in objects(TEXTS))
SQUARES = [([[number, 1], [1, number]], [[number]]) for number in range(30)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", "", "p.jsonl is empty; it needs a puzzle and its answer on each line"),
        ("p.jsonl", "\n\n", "p.jsonl is empty"),
        ("p.csv", "input,output\n", "p.csv is empty"),
        ("p.json", " ", "p.json is empty"),
        ("p.xlsx", "x", r"the name must end in one of \.jsonl, .*\.csv"),
        ("p", "x", "the name must end in one of"),
        ("p.jsonl", GOOD + '{"input": "1", ', r"p\.jsonl, line 31: invalid JSON: .* at column 16"),
        ("p.jsonl", GOOD + "[1]", r"p\.jsonl, line 31: \[1\] is not an object; write"),
        ("p.json", GOOD, r"p\.json: invalid JSON: .*one object a line is the format \.jsonl"),
        ("p.json", "{}", r"p\.json must hold a list of objects"),
        ("p.json", "[1]", r"p\.json, item 1: 1 is not an object"),
        (
            "p.jsonl",
            '{"inputs": "1", "answer": "2"}',
            r"line 1: no column 'input', did you mean 'inputs'\?; there are: i",
        ),
        (
            "p.csv",
            "input,answer\n1,2\n",
            r"line 2: no column 'output'; there are: input, answer; name yours with --tas",
        ),
        ("p.jsonl", GOOD + '{"input": "1"}', r"line 31: no column 'output'.*there are: input"),
        ("p.csv", "input,output\n1,2\n1,2,3\n", r"p\.csv, line 3: 3 cells, but the header has 2; quote cells that"),
        ("p.csv", 'input,output\n1,"2\n', r"p\.csv, line \d: unexpected end of data; check the quotes"),
        (
            "p.csv",
            'input,output\n[1],[2]\n"a\nb",[2]\n',
            r"p\.csv, line 3, column 'input': invalid JSON",
        ),
        ("p.jsonl", objects([*TEXTS, ([1], [2])]), r"line 31, column 'input': \[1\] is a list .* line 1 has a text"),
        (
            "p.jsonl",
            objects([("12", [1])]),
            r"line 1, column 'output': \[1\] is a list .* all values must be of one kind",
        ),
        ("p.jsonl", objects([(1, 2)]), r"line 1, column 'input': 1 is neither text nor list; put it in quotes or"),
        ("p.jsonl", objects([*TEXTS, ("", "1")]), r"line 31, column 'input': the value is empty"),
        (
            "p.jsonl",
            objects([*SQUARES, ([[1, 2], [3]], [[1]])]),
            r"line 31, column 'input': row 2 has 1 cells, but row 1",
        ),
        ("p.jsonl", objects([*SQUARES, ([[1, 2], 3], [[1]])]), r"line 31, column 'input': row 2 is 3; every row"),
        ("p.jsonl", objects([*LISTS, ([1.5], [1])]), r"p\.jsonl, line 31: the cell 1\.5 is no symbol; cells are whole"),
        ("p.jsonl", objects([*LISTS, ([None], [1])]), r"p\.jsonl, line 31: the cell None is no symbol"),
        ("p.jsonl", objects([*LISTS, ([True], [1])]), r"p\.jsonl, line 31: the cell True is no symbol"),
        (
            "p.jsonl",
            objects([*LISTS, (["1"], [1])]),
            r"line 31: 1 occurs as a number and as the text '1'; write all in",
        ),
        ("p.jsonl", objects(TEXTS[:19]), r"p\.jsonl has 19 different puzzles; at least 20 are needed"),
        ("p.jsonl", objects(TEXTS[:19] * 2), r"p\.jsonl has 19 different puzzles"),
        (
            "p.jsonl",
            GOOD.encode() + b'{"input": "\xe9"}',
            r"p\.jsonl, line 31: not UTF-8 text; save the file with the enc",
        ),
        ("p.csv", "input,output\n1,2\n".encode("utf-16"), r"p\.csv, line 1: not UTF-8 text"),
        ("p.csv.gz", b"input,output", r"p\.csv\.gz is damaged or not gzipped"),
        ("p.csv.gz", gzip.compress(b"input,output" * 99, mtime=0)[:-9], r"p\.csv\.gz is damaged or not gzipped"),
    ],
)
def test_bad_files(write, name, content, message):
    """What is wrong with a file is said in one line, with the line of the file and what to do."""
    task = table(write(content, name))
    with pytest.raises(DataError, match=message) as raised:
        task.examples("train")
    assert len(str(raised.value).splitlines()) == 1


def test_lines_of_quoted_cells(write):
    """A cell with line breaks counts as several lines: the line named is the one where the row begins."""
    rows = "".join(f'"{number:05b}\n",1\n' for number in range(25))
    with pytest.raises(DataError, match=r"p\.csv, line 52: 1 cells"):
        table(write(f"input,output\n{rows}oops\n", "p.csv")).examples("train")


def test_no_file(tmp_path):
    """Without a file, or with a path that leads nowhere, the message says what to type or to check."""
    with pytest.raises(ConfigError, match=r"--task\.file puzzles\.jsonl, with lines such as"):
        Table(TableConfig()).examples("train")
    with pytest.raises(DataError, match=r"there is no such file; check the path given as --task\.file"):
        table("missing.jsonl").examples("train")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="cannot be read: "):
        table(str(tmp_path / "folder.csv")).examples("train")
    with pytest.raises(DataError, match="cannot be read: "):
        table("null\0.csv").examples("train")
    with pytest.raises(ConfigError, match="are shares"):
        table("p.csv", validation=0.5, test=0.6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("01x", "unknown symbol 'x' at position 3; known: 0 1 a"),
        ("0000000", "7 characters are too many; the longest known has 6"),
        ("", "the value is empty; give a text, a symbol a character"),
        (7, "7 is no puzzle; give a text"),
        (["0", "10"], "unknown symbol '10' at position 2"),
    ],
)
def test_unreadable_texts(write, value, message):
    """What cannot be read as a puzzle is named, and what could be is said."""
    with pytest.raises(PuzzleError, match=message):
        table(write(objects(TEXTS))).parse(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1, 2], [3]], "row 2 has 1 cells, but row 1 has 2; the rows of a grid are equally long"),
        ([[1, 2, 3, 4]], "1 x 4 cells are too many; the largest grid known is 3 x 3"),
        ([[1, 99]], "unknown symbol 99 at row 1, column 2; known: 0 1 2"),
        ([1, 2], "a flat list needs all 3 x 3 cells, not 2"),
        ([[]], "the value is empty"),
    ],
)
def test_unreadable_grids(write, value, message):
    """So it is with grids, with row and column."""
    with pytest.raises(PuzzleError, match=message):
        table(write(objects(GRIDS))).parse(value)


def test_restored_without_the_file(write, tmp_path):
    """A restored task reads, writes and draws without its file, and asks for it only when examples are wanted."""
    task = table(write(objects(GRIDS)))
    restored = Table.restore(TableConfig(file="gone.jsonl"), task.metadata())
    assert restored.spec == task.spec
    np.testing.assert_array_equal(restored.parse(GRIDS[3][0]), task.parse(GRIDS[3][0]))
    with pytest.raises(DataError, match=r"gone\.jsonl: there is no such file"):
        restored.examples("test")


def test_restored_with_another_file(write):
    """A trained model can be tested on other rows, few as they may be, with its own tokens; strange rows are named."""
    metadata = table(write(objects(TEXTS))).metadata()

    def test_on(rows):
        config = TableConfig(file=write(objects(rows), "other.jsonl"), test=1, validation=0)
        return Table.restore(config, metadata).examples("test")

    examples = test_on([("1a0", "0")])
    assert examples.inputs.tolist() == [[2, 3, 1, 0, 0, 0]]
    with pytest.raises(DataError, match=r"other\.jsonl, line 2: unknown symbol 'b' at position 2; known: 0 1 a"):
        test_on([("1", "0"), ("1b", "0")])
    with pytest.raises(DataError, match=r"other\.jsonl, line 1: 7 characters are too many"):
        test_on([("0000000", "0")])
    with pytest.raises(DataError, match=r"other\.jsonl has a list .*, but the model knows a text"):
        test_on([([1], [1])])


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "tensor"},
        {"kind": ["text"]},
        {"kind": "grid"},
        {"values": []},
        {"values": [""]},
        {"values": ["a", "b"]},
        {"values": ["", "a", "a"]},
        {"values": ["", 1, "1"]},
        {"values": ["", None]},
        {"values": ["", 1]},
        {"values": "abc"},
        {"shape": [0]},
        {"shape": [True]},
        {"shape": [2.0]},
        {"shape": [2, 2]},
        {"shape": 4},
        {"shape": None},
    ],
)
def test_malformed_metadata(write, change):
    """Metadata that no table wrote is refused with one of the errors that the checkpoint reader knows."""
    good = table(write(objects(TEXTS))).metadata()
    with pytest.raises((KeyError, TypeError, ValueError)):
        Table.restore(TableConfig(), {**good, **change})
    for key in good:
        with pytest.raises(KeyError):
            Table.restore(TableConfig(), {other: value for other, value in good.items() if other != key})
    with pytest.raises(TypeError):
        Table.restore(TableConfig(), [])


CHECKER = """
calls = []
def reverse(puzzle, answer):
    calls.append((puzzle, answer))
    return answer == puzzle[:5][::-1]
def unsure(puzzle, answer): return None
def broken(puzzle, answer): raise RuntimeError("first line\\nsecond line")
def vague(puzzle, answer):
    import numpy
    return numpy.zeros(2) == 0
number = 7
def short(puzzle): return True
"""


@pytest.fixture
def checked(write, monkeypatch):
    monkeypatch.delitem(sys.modules, "my_rule", raising=False)
    write(CHECKER, "my_rule.py")
    write("1 +", "bad_syntax.py")
    name = write(objects(TEXTS))
    yield lambda function: table(name, checker=function)
    sys.modules.pop("my_rule", None)


def test_checker(checked):
    """The user's function, found in the working directory, judges values in the user's own form."""
    path = list(sys.path)
    task = checked("my_rule:reverse")
    puzzle, right = task.parse("00110a"), task.parse("01100")
    assert task.verify(puzzle, right) is True
    assert task.verify(puzzle, task.parse("01101")) is False
    calls = sys.modules["my_rule"].calls
    assert calls == [("00110a", "01100"), ("00110a", "01101")]
    assert task.verify(puzzle, np.zeros(6, np.int32)) is False
    assert task.verify(puzzle, np.array([1, 0, 2, 0, 0, 0], np.int32)) is False
    assert len(calls) == 2, "an answer with holes is wrong without asking"
    assert checked("my_rule:unsure").verify(puzzle, right) is None
    assert checked("").verify(puzzle, right) is None
    assert sys.path == path


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("my_rule:broken", DataError, "the checker my_rule:broken failed on '00110a': RuntimeError: first line second"),
        ("my_rule:vague", DataError, "the checker my_rule:vague failed on '00110a': ValueError"),
        ("my_rule:number", ConfigError, "the checker 'my_rule:number' is not a function"),
        ("my_rule:missing", ConfigError, "cannot import the checker 'my_rule:missing': AttributeError"),
        ("no_such_module:f", ConfigError, "cannot import the checker 'no_such_module:f': ModuleNotFoundError"),
        ("bad_syntax:f", ConfigError, "cannot import the checker 'bad_syntax:f': SyntaxError"),
        ("my_rule:short", ConfigError, "the checker 'my_rule:short' must take a puzzle and an answer"),
        ("my_rule", ConfigError, "--task.checker 'my_rule' is not of the form module:function"),
    ],
)
def test_faulty_checker(checked, name, error, message):
    """A checker that cannot be imported or that fails is named in one line, whatever it raises."""
    task = checked(name)
    with pytest.raises(error, match=message) as raised:
        task.verify(task.parse("00110a"), task.parse("01100"))
    assert len(str(raised.value).splitlines()) == 1


def test_summary(write):
    """The summary says what was found in the file and what was made of it."""
    rows = [*TEXTS, ("0", "01"), ("1", "1"), ("b :", "0")]
    assert table(write(objects([*rows, rows[0]]))).summary() == "\n".join(
        [
            "file        puzzles.jsonl",
            "rows        34; 33 puzzles without 1 repeated",
            "kind        a text, a symbol a character",
            "inputs      1 symbols to 6 symbols",
            "outputs     1 symbols to 5 symbols",
            "vocabulary  6 symbols and padding: ' ' 0 1 : a b",
            "padding     to 6 symbols, 22 % of the label positions",
            "splits      train 28, validation 2, test 3 (test and validation drawn by share and seed)",
            "same size   1 outputs, such as '1' -> '1'",
            "shorter     31 outputs, such as '00000a' -> '00000'",
            "longer      1 outputs, such as '0' -> '01'",
            "hint        the texts hold spaces; with --task.tokens words, a symbol is a word",
        ]
    )


def test_summary_hints(write):
    """The summary warns of answers that are mostly padding, and of symbols that training never sees."""
    rows = objects([(f"{number:08b}", "1") for number in range(40)], split="train")
    summary = table(write([*rows, {"input": "z", "output": "1", "split": "test"}])).summary()
    assert "most labels are padding" in summary
    assert "never seen in training: z" in summary


@settings(max_examples=60, deadline=None, database=None)
@given(content=st.binary(max_size=60) | st.text(alphabet='{}[]",:;\n\r01ab nulinputo', max_size=80).map(str.encode))
@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv", "p.tsv", "p.csv.gz"])
def test_any_file(tmp_path_factory, name, content):
    """Whatever a file holds, what is raised is an error of loopwise in one line."""
    path = tmp_path_factory.getbasetemp() / name
    for data in (content, b"input,output\n" + content, b'{"input": "1", "output": "2"}\n' + content):
        path.write_bytes(gzip.compress(data) if name.endswith("gz") and len(content) % 2 else data)
        with pytest.raises(LoopwiseError) as raised:
            table(str(path)).examples("train")
        assert len(str(raised.value).splitlines()) == 1


def test_a_file_that_has_changed_is_read_again(tmp_path, monkeypatch):
    """The cache never hands out what a user's file held before."""
    monkeypatch.setenv("LOOPWISE_CACHE", str(tmp_path / "cache"))
    file, firsts = tmp_path / "rows.csv", []
    for digit in "12":
        file.write_text("input,output\n" + "".join(f"{digit}{n:03d},{n:03d}{digit}\n" for n in range(100)))
        task = Table(TableConfig(file=str(file)))
        firsts.append(task.format(cache.examples(task, "train").inputs[0], "1000")[0])
    assert firsts == ["1", "2"]
