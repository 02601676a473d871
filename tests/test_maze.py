"""The maze task: the label's rule, the check by the rules, the generator, the splits, reading and drawing."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

from loopwise.errors import ConfigError, DataError, PuzzleError
from loopwise.tasks.maze import Maze, MazeConfig
from loopwise.tasks.maze_generator import far_cells, random_mazes
from loopwise.tasks.maze_paths import GOAL, OPEN, PATH, START, WALL, canonical, is_solution, on_shortest, solve, turns
from loopwise.types import IGNORE_LABEL, SPLITS

MOVES = {"down": (1, 0), "left": (0, -1), "right": (0, 1), "up": (-1, 0)}  # in the order of the rule

PUBLISHED = """
###....##...#.....#....#......
##.##.#.#..##..#...#.###..#...
.#.#...#.###....##.#.#.#...###
..##.#.....##.oooooo.#..#.#..#
.#...#....#.ooo####o.......#.#
.#..#.##.#.#o######G....###...
#.....#.##.#oo.#...###.#.#....
..#.##.#.#..#ooo...####.#.....
.#.#oooooo#.###ooo....#...#...
##..o#..#o.#.#.##oooooo#.##...
.#..o###.o##..#.#..###o...#.#.
...oo#.#.S#....#..##..o#....##
..oo##.###.##..#.##..#ooooo#..
..o#.##..#.##...##.##.##.#o##.
.#oo.#.#.###.#.#.#......##o...
..#o#..###.###.#.#...#..##o...
.#.ooo#.##....#.....###.#oo#.#
..###o.....#.#.##..###...o##.#
..#..oo######.#..#.#.###oo#...
#.#..#oo..#.##.#.###.##oo#..##
#..#..#ooo..#.##...##..o###..#
.......##o..#........#.o...#.#
###.#.#..ooooo##.....##o#.#...
#.#.#....##.#o#ooo..###oo#.#..
.#...##.#####ooo#oo##.##oooo##
...#.#.##.#.##...#oooo#.###oo.
##.............##.###oo#.#.#o.
.##..#..#...#..#....##ooooooo#
##.#......#..#...#.#.##......#
#.##.##..##.#...#.#.#..#.##.##
"""
"""The first label of the training set sapientinc/maze-30x30-hard-1k, with a dot for an open cell."""


def read(text):
    """Tokens of a maze of any size, written in lines."""
    return np.array(["?# SGo".index(symbol) for symbol in text.replace(".", " ").replace("\n", "")], np.int32)


def random_maze(size, rng, share=0.3):
    """A maze that may well have no way through."""
    maze = np.where(rng.random(size * size) < share, WALL, OPEN).astype(np.int32)
    maze[rng.permutation(size * size)[:2]] = START, GOAL
    return maze


def neighbours(maze, cell):
    """The cells that one move leads to, in the order of the rule."""
    size = int(len(maze) ** 0.5)
    for down, right in MOVES.values():
        row, column = cell // size + down, cell % size + right
        if 0 <= row < size and 0 <= column < size and maze[row * size + column] != WALL:
            yield row * size + column


def distances(maze, source):
    """The number of moves from a cell to each that can be reached, one cell after the other."""
    known, waiting = {source: 0}, [source]
    for cell in waiting:
        for other in neighbours(maze, cell):
            if other not in known:
                known[other] = known[cell] + 1
                waiting.append(other)
    return known


def shortest_paths(maze):
    """All shortest paths as lists of cells, those first that go down, left, right, up where they part."""
    start, goal = ((maze == token).argmax() for token in (START, GOAL))
    to_goal = distances(maze, goal)
    paths = [[start]] if start in to_goal else []
    for left in range(to_goal.get(start, 0) - 1, -1, -1):
        paths = [[*path, cell] for path in paths for cell in neighbours(maze, path[-1]) if to_goal.get(cell) == left]
    return paths


def marked(maze, path):
    answer = maze.copy()
    answer[path[1:-1]] = PATH
    return answer


def test_the_label_is_the_published_one():
    """A maze of Maze-Hard, its path taken away, is solved by the very path that it was published with."""
    answer = read(PUBLISHED)
    maze = np.where(answer == PATH, OPEN, answer)
    np.testing.assert_array_equal(solve(maze), answer)
    assert is_solution(maze, answer)


@pytest.mark.parametrize("size", [3, 5, 6])
def test_the_label_goes_down_left_right_up(size):
    """Of all shortest paths the label is the first by the order of its moves; without a way the maze stays as it is."""
    rng, ways = np.random.default_rng(size), []
    for _ in range(300):
        maze = random_maze(size, rng)
        paths = shortest_paths(maze)
        ways.append(len(paths))
        np.testing.assert_array_equal(solve(maze), marked(maze, paths[0]) if paths else maze)
    assert 0 in ways
    assert max(ways) > size


def test_verify_accepts_the_shortest_paths_and_nothing_else():
    """Of all ways to mark the open cells of small mazes, exactly the shortest paths are right."""
    rng, right = np.random.default_rng(0), 0
    for _ in range(12):
        maze = random_maze(4, rng)
        paths = {marked(maze, path).tobytes() for path in shortest_paths(maze)}
        is_open = np.flatnonzero(maze == OPEN)
        for marks in product([OPEN, PATH], repeat=len(is_open)):
            answer = maze.copy()
            answer[is_open] = marks
            assert is_solution(maze, answer) is (answer.tobytes() in paths)
        right += len(paths)
    assert right > 10


def hinted_mazes():
    """Mazes of which some have cells that no way leads to, with the moves from each cell to G."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        maze = random_maze(7, rng, share=0.4)
        yield maze, distances(maze, int((maze == GOAL).argmax()))


def test_the_hints_are_the_first_move_from_every_cell():
    """Once the wave is through, the hints lead from every cell along the very path that would be the label if S stood
    there; walls and G have none, and cells that no way leads to are unreached for ever.
    """
    task, walked = Maze(MazeConfig(size=7, hints=1)), 0
    assert task.spec.hints == (*MOVES, "unreached")
    steps = [7 * down + right for down, right in MOVES.values()]
    for maze, away in hinted_mazes():
        hints = task.hints(maze, 100)
        assert hints.dtype == np.int32
        for cell in range(len(maze)):
            if maze[cell] in (WALL, GOAL):
                assert hints[cell] == IGNORE_LABEL
            elif cell not in away:
                assert hints[cell] == len(MOVES)
            else:
                moved = np.where(maze == START, OPEN, maze)
                moved[cell] = START
                path, here = [], cell
                while maze[here] != GOAL:
                    here += steps[hints[here]]
                    path.append(here)
                assert set(path[:-1]) == set(np.flatnonzero(solve(moved) != moved))
                assert len(path) == away[cell]
                walked += 1
    assert walked > 1000


@pytest.mark.parametrize("pace", [1, 2])
def test_the_hints_spread_from_the_goal_step_by_step(pace):
    """After so many steps the cells that a wave of this pace has reached have their move, the others are unreached."""
    task, kinds = Maze(MazeConfig(size=7, hints=pace)), set()
    for maze, away in hinted_mazes():
        whole = task.hints(maze, 100)
        for steps in range(1, 5):
            hints = task.hints(maze, steps)
            for cell in np.flatnonzero((maze != WALL) & (maze != GOAL)):
                reached = away.get(cell, 1000) <= pace * steps
                assert hints[cell] == (whole[cell] if reached else len(MOVES))
                kinds.add(reached)
    assert len(kinds) == 2


@pytest.mark.parametrize("pace", [1, 3])
def test_with_hints_the_path_is_asked_for_as_far_as_the_wave_has_come_back(pace):
    """A cell of the path is asked for when the wave could have come to S and from there back to it, and is open until
    then; without hints the whole path is asked for from the start. What is not asked for never is.
    """
    told, untold = (Maze(MazeConfig(size=7, hints=hints)) for hints in (pace, 0))
    asked_later = 0
    for maze, away in hinted_mazes():
        label, moves = solve(maze), away.get(int((maze == START).argmax()))
        if moves is None:
            continue
        for steps in range(1, 2 * moves // pace + 2):
            known = told.known(maze, label, steps)
            assert known.dtype == np.int32
            for cell in np.flatnonzero(label == PATH):
                back = moves + (moves - away[cell])
                assert known[cell] == (PATH if back <= pace * steps else OPEN)
                asked_later += known[cell] == OPEN
            assert np.array_equal(known[label != PATH], label[label != PATH])
        assert np.array_equal(known, label)
        assert np.array_equal(untold.known(maze, label, 1), label)
        assert (told.known(maze, np.full_like(label, IGNORE_LABEL), 100) == IGNORE_LABEL).all()
    assert asked_later > 1000


@settings(deadline=None, database=None)
@given(seed=st.integers(0, 2**32), changes=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 5)), max_size=4))
def test_verify_notices_any_change(seed, changes):
    """A right answer with a few cells overwritten is right only if it is one of the shortest paths again."""
    rng = np.random.default_rng(seed)
    maze = random_maze(10, rng, share=0.45)
    paths = [marked(maze, path) for path in shortest_paths(maze)]
    answer = paths[rng.integers(len(paths))].copy() if paths else maze.copy()
    for cell, token in changes:
        answer[cell] = token
    task = Maze(MazeConfig(size=10))
    assert task.verify(maze, answer) is any(np.array_equal(answer, path) for path in paths)
    assert task.verify(maze, answer[:-1]) is False


def test_a_marked_maze_is_the_same_puzzle():
    """Marks that a puzzle already has are no part of it: it has the same answers, and shows them as right."""
    answer = read(PUBLISHED)
    assert is_solution(answer, answer)
    assert not is_solution(answer, np.where(answer == PATH, OPEN, answer))
    assert "red" not in Maze(MazeConfig()).render(answer, answer)


def test_cells_of_shortest_paths():
    """The cells between S and G on some shortest path are those of all of them together."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        maze = random_maze(6, rng)
        cells = {cell for path in shortest_paths(maze) for cell in path[1:-1]}
        assert set(np.flatnonzero(on_shortest(maze)).tolist()) == cells


@pytest.mark.parametrize("size", [5, 33])
def test_far_cells(size):
    """The cells that are far from a start, on many mazes at once, are those that a simple search finds."""
    rng, least, mazes, starts = np.random.default_rng(0), size, 40, []
    kind = np.uint64
    ground, start = np.zeros((2, size, mazes), dtype=kind)
    grids = [random_maze(size, rng) for _ in range(mazes)]
    for number, maze in enumerate(grids):
        starts.append(int((maze == START).argmax()))
        for cell in np.flatnonzero(maze != WALL):
            ground[cell // size, number] |= kind(1) << kind(cell % size)
        start[starts[-1] // size, number] = kind(1) << kind(starts[-1] % size)
    far = far_cells(ground, start, least)
    found = 0
    for number, maze in enumerate(grids):
        expected = {cell for cell, moves in distances(maze, starts[number]).items() if moves >= least}
        cells = {c for c in range(size * size) if int(far[c // size, number]) >> (c % size) & 1}
        assert cells == expected
        found += len(cells)
    assert found > 0


@pytest.mark.parametrize(("size", "least"), [(5, 1), (8, 20), (33, 60), (30, 109)])
def test_generated_mazes(size, least):
    """Mazes have one S, one G, a path of enough moves, a share of walls near 30 to 50 %, and are not alike."""
    rng = np.random.default_rng(0)
    mazes = np.concatenate([random_mazes(size, least, (0, 1, 2, 3), rng) for _ in range(100)])[:50]
    assert len(mazes) >= 10
    for maze in mazes:
        np.testing.assert_array_equal(np.bincount(maze, minlength=5)[[0, START, GOAL]], [0, 1, 1])
        assert distances(maze, int((maze == START).argmax()))[int((maze == GOAL).argmax())] >= least
    assert 0.25 < (mazes == WALL).mean() < 0.5
    assert len({canonical(maze) for maze in mazes}) == len(mazes)


def test_all_pairs_are_drawn_alike():
    """With a minimum of one move, S and G are as far apart as in mazes drawn one by one and kept if solvable."""
    rng = np.random.default_rng(0)
    mazes = np.concatenate([random_mazes(6, 1, (0, 1, 2, 3), rng) for _ in range(30)])
    drawn = [random_maze(6, rng, rng.uniform(0.3, 0.5)) for _ in range(6000)]
    moves = [len(paths[0]) - 1 for paths in map(shortest_paths, drawn) if paths]
    found = [int((solve(maze) == PATH).sum()) + 1 for maze in mazes]
    assert len(found) > 3000
    assert np.mean(found) == pytest.approx(np.mean(moves), abs=0.2)
    assert np.std(found) == pytest.approx(np.std(moves), abs=0.2)


def test_default_min_moves():
    """109 moves at 30x30, as published; at any size enough that mazes are hard, and not so many that there are none."""
    assert MazeConfig().least == 109
    assert [MazeConfig(size=size).least for size in (5, 10, 20, 60)] == [13, 29, 67, 218]
    assert MazeConfig(size=5, min_moves=3).least == 3
    assert len(Maze(MazeConfig(size=5, train=30, validation=5, test=5)).examples("train").inputs) == 30


def test_canonical_is_of_the_maze_and_its_images_alone():
    """All 16 images of a maze have one text; a maze that differs in a cell has another."""
    rng = np.random.default_rng(0)
    swap = np.array([0, WALL, OPEN, GOAL, START])
    for _ in range(20):
        maze = random_maze(5, rng)
        images = [image for turned in maze[turns(5)] for image in (turned, swap[turned])]
        assert len({image.tobytes() for image in images}) == 16
        assert {canonical(image) for image in images} == {canonical(maze)}
        other = maze.copy()
        cell = rng.choice(np.flatnonzero(maze <= OPEN))
        other[cell] = OPEN if maze[cell] == WALL else WALL
        assert canonical(other) != canonical(maze)


SIZES = {"size": 7, "train": 60, "validation": 20, "test": 30}


def test_labels_and_splits():
    """Each split has as many mazes as asked for, labelled by the rule; none is in two splits, whatever the seed."""
    found = []
    for seed in (0, 1):
        task = Maze(MazeConfig(**SIZES, min_moves=4, seed=seed))
        for split in SPLITS:
            examples = task.examples(split)
            assert len(examples.inputs) == SIZES[split]
            for maze, label in zip(examples.inputs, examples.labels, strict=True):
                np.testing.assert_array_equal(label, marked(maze, shortest_paths(maze)[0]))
            found.append({canonical(maze) for maze in examples.inputs})
            assert len(found[-1]) == SIZES[split]
    first, second = found[:3], found[3:]
    assert not any(a & b for i, a in enumerate(first) for j, b in enumerate([*first, *second]) if i != j % 3)


def test_larger_split_begins_with_the_smaller():
    """More mazes of a split are the same ones and some beside."""
    small, large = (Maze(MazeConfig(size=7, test=count)).examples("test").inputs for count in (10, 40))
    np.testing.assert_array_equal(small, large[:10])


def test_augment_solves_anew():
    """All eight images come, each with the label of the rule; it comes back as a shortest path, mostly another."""
    task = Maze(MazeConfig(size=12, train=20))
    examples, rng = task.examples("train"), np.random.default_rng(0)
    images, same = set(), []
    for number in range(200):
        inputs, labels = examples.inputs[number % 20], examples.labels[number % 20]
        new_inputs, new_labels, inverse = task.augment(inputs, labels, rng)
        assert new_inputs.dtype == new_labels.dtype == np.int32
        np.testing.assert_array_equal(new_labels, solve(new_inputs))
        np.testing.assert_array_equal(inverse(new_inputs), inputs)
        assert task.verify(inputs, inverse(new_labels))
        assert canonical(new_inputs) == canonical(inputs)
        images.add((number % 20, new_inputs.tobytes()))
        same.append(np.array_equal(inverse(new_labels), labels))
    assert len(images) > 100  # of 160
    assert 0.1 < np.mean(same) < 0.6


def test_augment_without_a_label():
    """A maze whose answer is not asked for is turned, and nothing is given away."""
    task = Maze(MazeConfig())
    inputs = read(PUBLISHED.replace("o", "."))
    unknown = np.full(900, IGNORE_LABEL, dtype=np.int32)
    new_inputs, new_labels, inverse = task.augment(inputs, unknown, np.random.default_rng(1))
    assert (new_inputs != inputs).any()
    np.testing.assert_array_equal(new_labels, unknown)
    np.testing.assert_array_equal(inverse(new_inputs), inputs)


SMALL = "S.#\n..#\n#.G"
"""Two shortest paths; the label is the one over the lower left."""


@pytest.mark.parametrize(
    ("like", "written"),
    [
        (SMALL, "S.#\no.#\n#oG".replace("o.#", "oo#")),
        ("\r\nS.#\r\n. #\r\n#.G\r\n", "\r\nS.#\r\noo#\r\n#oG\r\n"),
        ("S.#..##.G", "S.#oo##oG"),
        ("S #  ## G", "S #oo##oG"),
        (["S.#", "..#", "#.G"], ["S.#", "oo#", "#oG"]),
        (["S #", "..#", "# G"], ["S #", "oo#", "#oG"]),
        (list("S #  ## G"), list("S #oo##oG")),
        ([list("S #"), "  #", list("# G")], [list("S #"), "oo#", list("#oG")]),
    ],
)
def test_answer_in_the_form_of_the_maze(like, written):
    """A maze is read from lines, one string, rows or symbols, and its answer is written likewise, dots and all."""
    task = Maze(MazeConfig(size=3))
    maze = task.parse(like)
    np.testing.assert_array_equal(maze, read(SMALL))
    assert task.format(maze, like) == like
    assert task.format(solve(maze), like) == written


def test_padding_in_an_answer():
    """An unfinished answer may have padding and may have opened walls: it is written with ? and the maze's blanks."""
    task = Maze(MazeConfig(size=3))
    answer = np.array([0, OPEN, OPEN, PATH, PATH, WALL, WALL, PATH, GOAL])
    assert task.format(answer, SMALL) == "?..\noo#\n#oG"
    assert task.format(answer, "S #  ## G") == "?  oo##oG"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("S.#\n..#\n#..", "it has no G and must have one"),
        ("S.#\nG.#\n#.G", "it has 2 G and must have one"),
        ("S.#\nS.#\n#.G", "it has 2 S and must have one"),
        ("...\n...\n..G", "it has no S"),
        ("S##\n##.\n#.G", "no way leads from S to G"),
        ("S.#\n..#", "the maze has 2 rows; it must have 3, or `size` be another"),
        ("S.#\n..#\n#.G\n\n...", "the maze has 5 rows"),
        ("S.#\n..\n#.G", r"row 2 has 2 cells, it must have 3; write \."),
        ("S.#..##.", "the maze has 8 cells; it must have 3 rows of 3, in a file all in one line, or `size` be another"),
        ("", "the maze has 0 cells"),
        ("S.#\n.x#\n#.G", "unknown symbol 'x' in row 2, column 2"),
        (["S.#", "..#", 7], "row 3 is 7"),
        ([["S", ".", "#"], [".", 0, "#"], ["#", ".", "G"]], "unknown symbol 0 in row 2, column 2"),
        (7, "7 is no maze"),
        (None, "None is no maze"),
        ({"S": 1}, "is no maze"),
    ],
)
def test_unreadable_mazes(value, message):
    """What is wrong with a maze is said in one line."""
    with pytest.raises(PuzzleError, match=message) as caught:
        Maze(MazeConfig(size=3)).parse(value)
    assert "\n" not in str(caught.value)


def test_render():
    """A drawing has a line a row; wrong cells are on red, else new ones on green, whether marked or not."""
    task = Maze(MazeConfig(size=3))
    maze = read(SMALL)
    right = solve(maze)
    assert Text.from_markup(task.render(right, maze)).plain == "S #\noo#\n#oG"
    assert "on " not in task.render(right, maze, right)
    assert task.render(right, maze, maze).count("on green") == 2  # neighbours of one style share a tag
    detour = right.copy()
    detour[[0, 2]] = PATH, OPEN
    drawn = task.render(detour, maze)
    assert drawn.splitlines()[0] == "[cyan on red]o[/] [on red] [/]"
    assert drawn.splitlines()[1:] == task.render(right, maze).splitlines()[1:]
    assert "on red" not in task.render(detour)


def write_npz(path, mazes, labels=None):
    np.savez(path, inputs=mazes, labels=np.array([solve(maze) for maze in mazes]) if labels is None else labels)
    return str(path)


def write_csv(path, mazes):
    rows = [",".join("".join("?# SGo"[token] for token in cells) for cells in (m, solve(m))) for m in mazes]
    path.write_text("question,answer\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def mazes():
    return random_mazes(9, 5, (0, 1, 2, 3), np.random.default_rng(0))[:60].astype(np.uint8)


@pytest.mark.parametrize(("write", "ending"), [(write_npz, ".npz"), (write_csv, ".csv")])
def test_files(tmp_path, mazes, write, ending):
    """Files are read with blanks at their edges; disguised test mazes and repeats are left out of the training file."""
    train, test = mazes[:40], mazes[40:]
    disguised = np.array([0, WALL, OPEN, GOAL, START], np.uint8)[test[:5, turns(9)[6]]]
    files = {
        "train_file": write(tmp_path / f"train{ending}", np.concatenate([train, disguised, train[:3]])),
        "test_file": write(tmp_path / f"test{ending}", test),
    }
    task = Maze(MazeConfig(size=9, **files))
    assert set(task.files) == set(files.values())
    found = {split: task.examples(split).inputs for split in SPLITS}
    np.testing.assert_array_equal(found["test"], test)
    assert [len(found[split]) for split in SPLITS] == [36, 4, 20]
    both = np.concatenate([found["train"], found["validation"]])
    assert {maze.tobytes() for maze in both.astype(np.uint8)} == {maze.tobytes() for maze in train}
    assert task.summary().splitlines()[1:] == [
        f"{files['train_file']}: 48 mazes, 3 of them repeats up to symmetry",
        "5 are test mazes in disguise; these and the repeats are left out",
    ]
    fewer = Maze(MazeConfig(size=9, train=7, validation=2, test=3, **files))
    assert [len(fewer.examples(split).inputs) for split in SPLITS] == [7, 2, 3]
    generated = Maze(MazeConfig(size=9, train=5, validation=5, test_file=files["test_file"]))
    assert [len(generated.examples(split).inputs) for split in SPLITS] == [5, 5, 20]


def test_open_cells_of_a_file_may_be_dots(tmp_path):
    """A CSV may have dots for open cells, as a maze that is typed, and columns that nobody asks for."""
    file = tmp_path / "dots.csv"
    question, answer = SMALL.replace("\n", ""), "S.#oo##oG"
    file.write_text(f"source,question,answer,rating\nmine,{question},{answer},7\n", encoding="utf-8")
    np.testing.assert_array_equal(Maze(MazeConfig(size=3, test_file=str(file))).examples("test").inputs, [read(SMALL)])


def test_unusable_files(tmp_path, mazes):
    """What is wrong with a file is said in one line, with the row."""
    labels = np.array([solve(maze) for maze in mazes])
    other = next(
        (row, path)
        for row, maze in enumerate(mazes)
        for path in map(marked, [maze] * 9, shortest_paths(maze)[1:2])  # a shortest path, but not the rule's
    )
    relabelled, padded, blocked = labels.copy(), mazes.copy(), mazes.copy()
    relabelled[other[0]] = other[1]
    padded[2, 0] = 0
    huge = mazes.astype(np.int64)
    huge[1, 0] += 256
    blocked[3][blocked[3] == OPEN] = WALL
    (tmp_path / "text.npz").write_text("no zip file")
    np.savez(tmp_path / "names.npz", mazes=mazes)
    np.savez(tmp_path / "objects.npz", inputs=np.array([None]), labels=np.array([None]))
    np.savez(tmp_path / "single.npz", inputs=np.array(3), labels=np.array(3))
    for name, message in (
        (write_npz(tmp_path / "relabelled.npz", mazes, relabelled), f"row {other[0]}: its label is not the shortest"),
        (write_npz(tmp_path / "padded.npz", padded), "row 2: the maze has other symbols"),
        (write_npz(tmp_path / "huge.npz", huge, labels), "row 1: the maze has other symbols"),
        (write_npz(tmp_path / "blocked.npz", blocked), "row 3: (no way leads|its label)"),
        (
            write_npz(tmp_path / "short.npz", mazes[:, :80], labels),
            r"has uint8 \[60, 80\] where whole numbers \[N, 81\]",
        ),
        (write_npz(tmp_path / "empty.npz", mazes[:0]), "where whole numbers"),
        (write_npz(tmp_path / "floats.npz", mazes / 2, labels), "has float64"),
        (str(tmp_path / "text.npz"), "cannot read"),
        (str(tmp_path / "names.npz"), "cannot read"),
        (str(tmp_path / "objects.npz"), "cannot read"),
        (str(tmp_path / "single.npz"), "where whole numbers"),
        (str(tmp_path), "cannot read"),
        (str(tmp_path / "absent.npz"), "there is no file"),
        (str(tmp_path / "absent.csv"), "there is no file"),
        (write_csv(tmp_path / "blocked.csv", blocked), "line 5: no way leads"),
        (write_csv(tmp_path / "other.csv", random_mazes(8, 5, (0,), np.random.default_rng(0))[:3]), "64 symbols"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            Maze(MazeConfig(size=9, test_file=name)).examples("test")
        assert "\n" not in str(caught.value)


def test_too_much_asked_for(tmp_path, mazes):
    """More mazes than there are is a DataError that says how many there are."""
    file = write_npz(tmp_path / "train.npz", mazes)
    for options, message in (
        ({"size": 9, "train_file": file, "test": 5, "train": 55}, "has 54 mazes for train, 55 are asked for"),
        ({"size": 9, "train_file": file, "test": 5, "validation": 60}, "60 usable mazes, too few to hold 60 out"),
        ({"size": 3, "train": 5000, "min_moves": 4}, "only [1-9][0-9]* 3x3 mazes of 4 moves or more were found"),
        ({"size": 3, "min_moves": 9}, "only 0 3x3 mazes"),
    ):
        with pytest.raises(DataError, match=message):
            Maze(MazeConfig(**options)).examples("train")


@pytest.mark.parametrize(
    "options",
    [{"size": 2}, {"size": 65}, {"min_moves": 0}, {"train": 0}, {"validation": -1}, {"test": -1}, {"seed": -1}],
)
def test_senseless_options(options):
    """Options that make no sense are refused when the configuration is made."""
    with pytest.raises(ConfigError, match=r"^maze: [^\n]*$"):
        MazeConfig(**options)
    ((name, _),) = options.items()
    for value in (8.5, float("nan"), "8"):
        with pytest.raises(ConfigError, match=rf"^{name} cannot be [^\n]*$"):
            MazeConfig(**{name: value})
