"""The page, in a real browser, served by a real process with the shipped models."""

import json
import os
import re
from urllib.parse import urlsplit

import pytest
from PIL import Image

from browser import LONG, SHORT, browsing, find_browser, save_shallow, serving

expect = pytest.importorskip("playwright.sync_api", reason="the tests of the page need playwright").expect

SOLVED = ".side[data-state=solved]"
MAZE = ["#######", "#S..#.#", "#.#...#", "#.#.#.#", "#...#.#", "###..G#", "#######"]
WAY = ["#######", "#So.#.#", "#.#o..#", "#.#.#.#", "#ooo#.#", "###ooG#", "#######"]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    if find_browser() is None:
        reason = "no chromium here: apt-get install chromium (scripts/browser does so where it may)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    shallow = save_shallow(tmp_path_factory.mktemp("models") / "shallow")
    with serving(
        "sudoku-6x6", f"shallow={shallow}", "sorting", "rolling-sum", "sudoku-extreme", "sudoku-extreme-lattice"
    ) as address:
        yield address


@pytest.fixture(scope="module")
def browser(service):
    with browsing() as browser:
        yield browser


@pytest.fixture
def visit(service, browser):
    """Open the page. When the test ends, nothing may have been complained of, and no other host asked."""
    contexts, complaints, hosts = [], [], set()

    def visit(query="", routes=(), refused=None, ready="body[data-ready]", **options):
        size = {"width": 1280, "height": 900}
        context = browser.new_context(**{"viewport": size, "reduced_motion": "reduce"} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: f"{refused}" in message.text or complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: hosts.add(urlsplit(request.url.removeprefix("blob:")).netloc))
        for pattern, answer in dict(routes).items():
            page.route(pattern, answer)
        page.goto(f"{service}/#{query}")
        page.wait_for_selector(ready)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not complaints
    assert hosts == {urlsplit(service).netloc}


EXTREME = "98.7..6..5..68......7..4.3.7......9..3...94....9...2.31..........2..7.4....5....1"
HARDER = "1....7.9..3..2...8..96..5....53..9...1..8...26....4...3......1..4......7..7...3.."

WATCH = """slider => {
  window.seen = [];
  const board = () => [...document.querySelectorAll(".board span")].map((cell) => cell.textContent || ".").join("");
  const look = () => window.seen.push([Number(slider.getAttribute("aria-valuenow")), board()]);
  new MutationObserver(look).observe(slider, { attributeFilter: ["aria-valuenow"] });
  look();
}"""
"""Notes from now on each step that is shown, and the board with it."""


def until(page, condition):
    """Wait for something that is no element's attribute."""
    for _ in range(600):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it did not happen within a minute")


def type_puzzle(page, puzzle):
    """Enter a puzzle of 6 x 6 by keyboard alone, beginning with an empty board."""
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("gridcell").first.focus()
    for row in range(6):
        page.keyboard.press("Home")
        for column, symbol in enumerate(puzzle[6 * row : 6 * row + 6]):
            page.keyboard.press("." if symbol == "." else symbol)
            if column < 5:
                page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")


def shown(page, side=0):
    """The symbols on a board, blanks as dots."""
    texts = page.locator(".board").nth(side).locator("[role=gridcell] > span").all_inner_texts()
    return "".join(text or "." for text in texts)


def step(page):
    return int(page.get_by_role("slider").get_attribute("aria-valuenow"))


def think(page, **choices):
    for name, value in choices.items():
        page.select_option(f"#{name}", value)
    page.select_option("#speed", "30")
    page.get_by_role("button", name="Think", exact=True).click()


def at_the_end(page):
    """Wait until all steps are there and have been played."""
    page.wait_for_selector("body[data-thinking=false]")
    page.wait_for_selector("#more[aria-disabled=false]")


def test_a_puzzle_is_entered_by_keyboard_and_its_steps_arrive_one_by_one(visit):
    """Who types a puzzle and presses Enter sees at least three steps, in order, and in the end the solved puzzle."""
    page = visit("model=sudoku-6x6")
    type_puzzle(page, LONG)
    assert shown(page) == LONG
    page.select_option("#speed", "10")
    page.get_by_role("slider").evaluate(WATCH)
    page.get_by_role("gridcell").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(SOLVED)
    steps, boards = zip(*page.evaluate("window.seen"), strict=True)
    assert list(dict.fromkeys(steps)) == list(range(26))
    assert len(set(boards)) > 3
    assert boards[-1] == shown(page)
    assert all(given in (".", digit) for given, digit in zip(LONG, shown(page), strict=True))
    assert "Solved in 25 steps" in page.locator("#live").inner_text()


def test_scrubbing_shows_each_step_again(visit):
    """Keys and the pointer move through the steps; the same step looks the same; step 0 is the puzzle."""
    page = visit(f"model=sudoku-6x6&puzzle={LONG}")
    think(page)
    page.wait_for_selector(SOLVED)
    solution = shown(page)
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("Home")
    page.wait_for_selector("[role=slider][aria-valuenow='0']")
    assert shown(page) == LONG
    seen = {}
    for number in range(1, 8):
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(f"[role=slider][aria-valuenow='{number}']")
        seen[number] = shown(page)
        assert re.search(
            rf"step {number} of 25\. (A first|\d+ cells? changed|Nothing)", slider.get_attribute("aria-valuetext")
        )
    assert len(set(seen.values())) > 3
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 3, box["y"] + 60)
    page.mouse.down()
    page.wait_for_selector("[role=slider][aria-valuenow='25']")
    assert shown(page) == solution
    page.mouse.move(box["x"] + box["width"] * 4.5 / 26, box["y"] + 60)
    page.mouse.up()
    page.wait_for_selector("[role=slider][aria-valuenow='4']")
    assert shown(page) == seen[4]
    page.get_by_role("button", name="One step forward").click()
    page.wait_for_selector("[role=slider][aria-valuenow='5']")
    assert shown(page) == seen[5]
    page.get_by_role("button", name="Play").click()
    until(page, lambda: step(page) > 8)
    page.get_by_role("button", name="Pause").click()


def test_what_has_changed_and_what_breaks_a_rule_is_marked(visit):
    """Marked as changed are the cells that differ from the step before; as wrong, those that meet their like."""
    page = visit(f"model=sudoku-6x6&puzzle={LONG}")
    think(page)
    page.wait_for_selector(SOLVED)
    page.get_by_role("slider").focus()
    page.keyboard.press("Home")
    page.wait_for_selector("[role=slider][aria-valuenow='0']")
    before = shown(page)
    for number in range(1, 6):
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(f"[role=slider][aria-valuenow='{number}']")
        now = shown(page)
        cells = page.get_by_role("gridcell")
        marked = cells.evaluate_all("cells => cells.map(cell => cell.dataset.age === '0')")
        assert marked == [a != b for a, b in zip(before, now, strict=True)]
        wrong = cells.evaluate_all("cells => cells.map(cell => cell.dataset.wrong === 'true')")
        assert wrong == [now[cell] in "".join(now[other] for other in peers(cell)) for cell in range(36)]
        sure = cells.evaluate_all("cells => cells.map(cell => Number(cell.style.getPropertyValue('--sure')))")
        assert 0.2 < min(sure) < 1
        before = now
    page.keyboard.press("End")
    page.wait_for_selector(SOLVED)
    assert page.locator("[data-wrong=true]").count() == 0


def peers(cell):
    """The cells that share row, column or box with a cell of a 6x6 Sudoku with boxes of 2 x 3."""
    row, column = divmod(cell, 6)
    return [
        other
        for other in range(36)
        if other != cell
        and (other // 6 == row or other % 6 == column or (other // 12, other % 6 // 3) == (row // 2, column // 3))
    ]


def test_it_keeps_thinking_beyond_the_trained_depth(visit):
    """After the 16 steps of the training the puzzle is open; asked to keep thinking, the model solves it, and stays."""
    page = visit(f"model=sudoku-6x6&puzzle={LONG}")
    think(page, steps="16")
    at_the_end(page)
    assert step(page) == 16
    assert "not solved" in page.locator(".phrase").inner_text()
    after_16 = shown(page)
    page.get_by_role("button", name="Keep thinking").click()
    page.wait_for_selector("[role=slider][aria-valuenow='32']")
    page.wait_for_selector(SOLVED)
    page.get_by_role("button", name="Keep thinking").click()
    page.wait_for_selector("[role=slider][aria-valuenow='48']")
    page.wait_for_selector(SOLVED)
    page.get_by_role("slider").focus()
    for key in ["PageDown"] * 3 + ["ArrowLeft"] * 8:
        page.keyboard.press(key)
    page.wait_for_selector("[role=slider][aria-valuenow='16']")
    assert shown(page) == after_16


def test_it_stops_where_the_service_does(visit):
    """More steps than the service allows are asked for neither by a link nor by thinking on; the step that solved the
    puzzle is told, however long it thought after it."""
    model = canned("sudoku", ["", *".1234"], [4, 4], box="2x2", max_steps=24)
    solved = [int(digit) + 1 for digit in "1234341221434321"]
    steps = [[1] * 16, *[solved] * 23]
    budgets = []

    def answer(route):
        budgets.append(route.request.post_data_json["budget"])
        answer_with(steps, verified=[False, *[True] * 23])(route)

    page = visit("steps=5000", routes=model | {"**/v1/solve": answer} | puzzle_of("." * 16))
    assert page.locator("#steps").input_value() == "24"
    think(page, stop="end")
    page.wait_for_selector(SOLVED)
    assert budgets == ["steps=24"]
    assert page.locator(".phrase").inner_text() == "Solved in 2 steps."
    assert page.locator("#more").get_attribute("aria-disabled") == "true"


def test_two_models_are_compared_side_by_side(visit):
    """Both work on the same puzzle, each on its own board, under one clock."""
    page = visit(f"model=sudoku-6x6&puzzle={SHORT}")
    page.get_by_label("Second model").select_option("shallow")
    page.get_by_role("grid").nth(1).wait_for()
    assert shown(page, 0) == shown(page, 1) == SHORT
    think(page)
    page.wait_for_selector("[data-side='0'][data-state=solved]")
    page.wait_for_selector("[data-side='1'][data-state=solved]")
    first, second = page.locator(".phrase").all_inner_texts()
    assert (first, second) == ("Solved in 4 steps.", "Solved in 10 steps.")
    assert shown(page, 0) == shown(page, 1)
    page.get_by_role("slider").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("[role=slider][aria-valuenow='1']")
    assert shown(page, 0) != shown(page, 1)


def test_several_starts_are_small_multiples(visit):
    """Each start has its picture; pressing one shows its steps; the one with the answer is shown first."""
    page = visit(f"model=sudoku-6x6&puzzle={LONG}")
    think(page, starts="8")
    at_the_end(page)
    starts = page.get_by_role("group", name="All starts").get_by_role("button")
    assert starts.count() == 8
    pressed = page.locator(".minis [aria-pressed=true]")
    assert "solved, the answer" in pressed.get_attribute("aria-label")
    page.wait_for_selector(SOLVED)
    starts.first.click()
    page.wait_for_selector(".side:not([data-state=solved])")
    assert starts.first.get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize(
    ("model", "starts", "puzzle"), [("sudoku-extreme", "4", HARDER), ("sudoku-extreme-lattice", "8", EXTREME)]
)
def test_a_search_shows_its_chains(model, starts, puzzle, visit):
    """A model that searches begins with 8 chains, one that guesses with 4, and ends with the first that the rules
    accept: that is the one shown first, its steps can be gone back over, and what was there before the first step is
    the puzzle.
    """
    page = visit(f"model={model}&puzzle={puzzle}")
    assert page.locator("#starts").input_value() == starts
    think(page)
    page.wait_for_selector(SOLVED)
    at_the_end(page)
    answer, steps = shown(page), step(page)
    assert steps > 1
    assert "." not in answer
    assert all(given in (".", digit) for given, digit in zip(puzzle, answer, strict=True))
    chains = page.get_by_role("group", name="All starts").get_by_role("button")
    assert chains.count() == int(starts)
    assert "solved, the answer" in page.locator(".minis [aria-pressed=true]").get_attribute("aria-label")
    page.get_by_role("slider").focus()
    page.keyboard.press("Home")
    page.wait_for_selector("[role=slider][aria-valuenow='0']")
    assert shown(page) == puzzle


def test_a_guess_is_marked(visit):
    """A digit that the model has guessed has a mark in its cell, a word for those who hear the page, and is told of
    when it is new.
    """
    board, first, second = "1" + "." * 15, [2, 3, 4, 5] * 4, [2, 3, 5, 4] * 4
    guess = {"position": 6, "token": 4}
    routes = canned("sudoku", ["", *".1234"], [4, 4], box="2x2") | puzzle_of(board)
    routes["**/v1/solve"] = answer_with([first, first, second], guesses=[None, guess, guess])
    page = visit(f"model=sudoku&puzzle={board}", routes=routes)
    think(page)
    at_the_end(page)
    page.get_by_role("slider").focus()
    told = (
        ("Home", 0, "The puzzle"),
        ("ArrowRight", 0, "A first"),
        ("ArrowRight", 1, "Guesses 3 at row 2, column 3; nothing changed"),
    )
    for key, marked, says in told:
        page.keyboard.press(key)
        page.get_by_text(says).first.wait_for()
        expect(page.locator("[data-guessed=true]")).to_have_count(marked)
    assert "guessed" in page.locator("[data-guessed=true]").get_attribute("aria-label")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(SOLVED)


def test_a_run_is_taken_home_as_json_and_as_gif(visit, tmp_path):
    """The JSON has all steps, the GIF a frame for the puzzle and one for each step, and other programs read it."""
    page = visit(f"model=sudoku-6x6&puzzle={LONG}")
    think(page)
    page.wait_for_selector(SOLVED)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as JSON").click()
    (run,) = json.loads(download.value.path().read_text())["runs"]
    assert (run["model"], run["puzzle"], run["result"]["verified"]) == ("sudoku-6x6", LONG, True)
    assert [frame["step"] for frame in run["starts"][0]] == list(range(1, 26))
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as GIF").click()
    download.value.save_as(tmp_path / "run.gif")
    with Image.open(tmp_path / "run.gif") as picture:
        assert picture.n_frames == 26
        colours = []
        for frame in (0, 12, 25):
            picture.seek(frame)
            colours.append(len(picture.convert("RGB").getcolors(1 << 20)))
        assert min(colours) > 20


@pytest.mark.parametrize(
    ("model", "row", "answer"),
    [("sorting", "3141592653589793", "1123334555678999"), ("rolling-sum", "101100101110", "110111001011")],
)
def test_rows_of_numbers_are_bars(visit, model, row, answer):
    """A row is typed or pasted, in any length; its bars are as high as its numbers; the answer is the right one."""
    page = visit(f"model={model}")
    page.get_by_role("button", name="Paste").click()
    page.get_by_label("Paste a puzzle").get_by_role("textbox").fill(" ".join(row))
    page.get_by_role("button", name="Use it").click()
    cells = page.get_by_role("gridcell")
    assert cells.count() == len(row)
    cells.nth(1).focus()
    page.keyboard.press("ArrowUp" if row[1] == "0" else "ArrowDown")
    changed = ("1" if row[1] == "0" else str(int(row[1]) - 1)).join([row[0], row[2:]])
    assert shown(page) == changed
    page.keyboard.press(row[1])
    heights = cells.evaluate_all("cells => cells.map(cell => Number(cell.style.getPropertyValue('--value')))")
    assert [sorted(set(heights)).index(height) for height in heights] == [
        sorted(set(row)).index(digit) for digit in row
    ]
    think(page)
    page.wait_for_selector(SOLVED)
    assert shown(page) == answer


def test_a_bar_is_drawn_with_the_pointer(visit):
    """Pressing at the top of a place makes its number the largest."""
    page = visit("model=sorting")
    box = page.get_by_role("gridcell").nth(2).bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 6)
    assert shown(page)[2] == "9"
    think(page)
    page.wait_for_selector(SOLVED)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 6)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 2, steps=4)
    page.mouse.up()
    assert shown(page)[2] == "0"


def test_clearing_keeps_the_length(visit):
    """A row that was made longer stays as long when it is cleared."""
    page = visit("model=sorting")
    before = len(shown(page))
    for _ in range(2):
        page.get_by_role("button", name="longer").click()
    page.get_by_role("button", name="Clear").click()
    assert shown(page) == "0" * (before + 8)


def test_random_and_hard_puzzles_are_drawn(visit):
    """Another puzzle each time; a hard one takes the model more than one step."""
    page = visit("model=sudoku-6x6")
    found = {shown(page)}
    for name in ("New puzzle", "New puzzle", "Hard puzzle"):
        before = shown(page)
        page.get_by_role("button", name=name).click()
        until(page, lambda before=before: shown(page) != before)
        found.add(shown(page))
    assert len(found) == 4
    page.wait_for_selector("#hard[aria-disabled=false]")
    think(page)
    page.wait_for_selector(SOLVED)
    assert step(page) > 1


def test_a_puzzle_that_comes_late_is_dropped(visit):
    """Who types while another puzzle is being drawn keeps what was typed; a service that is not ready is asked anew."""
    asked = []

    def slow(route):
        asked.append(route)
        if len(asked) == 1:
            route.fulfill(status=503, json={"detail": "being loaded"}, headers={"Retry-After": "2"})
        elif len(asked) == 2:
            route.fulfill(json={"puzzles": [LONG]})

    page = visit(f"model=sudoku-6x6&puzzle={SHORT}", routes={"**/v1/puzzles?*": slow}, refused=503)
    page.get_by_role("button", name="New puzzle").click()
    page.get_by_role("alert").filter(has_text="being loaded Try again in 2 seconds.").wait_for()
    until(page, lambda: shown(page) == LONG)
    assert LONG in page.evaluate("location.hash")
    page.get_by_role("button", name="New puzzle").click()
    until(page, lambda: len(asked) == 3)
    type_puzzle(page, SHORT)
    asked[2].fulfill(json={"puzzles": [LONG]})
    page.wait_for_timeout(300)
    assert shown(page) == SHORT


def test_one_cell_is_reached_by_tab_and_the_others_by_arrows(visit):
    """The board is one stop for the Tab key; every cell says where it is and what it holds."""
    page = visit(f"model=sudoku-6x6&puzzle={LONG}")
    stops = page.locator("[role=gridcell][tabindex='0']")
    assert stops.count() == 1
    page.get_by_role("gridcell").first.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "End"):
        page.keyboard.press(key)
    assert stops.count() == 1
    focused = page.locator(":focus")
    assert focused.get_attribute("aria-label") == "row 3, column 6: 5, given"
    page.keyboard.press("Delete")
    assert focused.get_attribute("aria-label") == "row 3, column 6: empty"


def test_everything_that_can_be_pressed_has_a_name(visit):
    """A screen reader has a name for each button, list, cell and picture that is shown."""
    page = visit(f"model=sudoku-6x6&puzzle={LONG}")
    think(page, starts="4")
    at_the_end(page)
    snapshot = page.locator("body").aria_snapshot()
    nameless = re.findall(r"- (?:button|combobox|gridcell|slider|grid|textbox|img)(?: \[[^\]]*\])*:?\n", snapshot)
    assert not nameless


def test_it_begins_to_think_by_itself_unless_motion_is_unwelcome(visit):
    """A visitor sees a puzzle fill itself in; one whose system asks for less motion sees the puzzle, at rest."""
    page = visit("model=sudoku-6x6", reduced_motion="no-preference")
    until(page, lambda: step(page) > 1)
    still = visit("model=sudoku-6x6")
    assert still.get_by_role("slider").get_attribute("aria-valuemax") == "0"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("query", ["model=sudoku-6x6&rival=shallow&starts=9", "model=sorting", "model=rolling-sum"])
def test_it_fits_on_a_phone(visit, query, scheme):
    """At 360 pixels nothing sticks out sideways, before and after the run."""
    page = visit(query, viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True)
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        think(page, steps="8")
        at_the_end(page)


def test_the_service_says_what_is_wrong_and_the_page_shows_it(visit, service):
    """A puzzle that contradicts itself is marked at once; sent all the same, the service's own line is shown."""
    page = visit("model=sudoku-6x6", refused=422)  # the browser itself notes that on its console
    type_puzzle(page, "55" + "." * 34)
    assert page.locator("[data-wrong=true]").count() == 2
    refused = []
    page.on("response", lambda response: refused.append(response.status))
    think(page)
    page.get_by_role("alert").filter(has_text="row 1 has the digit 5 twice").wait_for()
    assert 422 in refused


def test_a_key_is_asked_for_and_shown(visit):
    """Where the service wants a key the page asks for it, and shows it from then on."""

    def guarded(route):
        if route.request.headers.get("authorization") == "Bearer open sesame":
            route.fallback()
        else:
            route.fulfill(status=401, json={"title": "Unauthorized", "detail": "show the key of this service"})

    page = visit(routes={"**/v1/**": guarded}, refused=401, ready="#keyform:visible")
    page.get_by_role("alert").filter(has_text="show the key of this service").wait_for()
    page.get_by_label("This service asks for a key").fill("open sesame")
    page.get_by_role("button", name="Use it").first.click()
    page.wait_for_selector("body[data-ready]")
    think(page)
    page.wait_for_selector(SOLVED)


def test_a_busy_service_says_when_to_come_again(visit):
    """Where the queue is full the page says so, and after how many seconds to try again."""
    full = {"title": "Too Many Requests", "detail": "all slots are taken"}
    busy = {"**/v1/solve": lambda route: route.fulfill(status=429, json=full, headers={"Retry-After": "3"})}
    page = visit(routes=busy, refused=429)
    think(page)
    page.get_by_text("all slots are taken Try again in 3 seconds.").wait_for()
    assert page.get_by_role("button", name="Think", exact=True).is_enabled()


def test_a_link_brings_the_puzzle_along(visit):
    """The address names model and puzzle, so that a link shows another person the same."""
    page = visit("model=sudoku-6x6")
    type_puzzle(page, SHORT)
    think(page)
    page.wait_for_selector(SOLVED)
    other = visit(page.evaluate("location.hash.slice(1)"))
    assert shown(other) == SHORT


def test_mazes_are_painted_and_their_path_is_drawn(visit):
    """Walls, start and goal are painted with the pointer and the keys; the path is a line that turns with its way."""
    symbols = ["", "#", " ", "S", "G", "o"]
    model = canned("maze", symbols, [7, 7])
    solved = [symbols.index(symbol.replace(".", " ")) for symbol in "".join(WAY)]
    page = visit(routes=model | {"**/v1/solve": answer_with([solved])} | puzzle_of("\n".join(MAZE)))
    assert page.locator("[data-role=wall]").count() == "".join(MAZE).count("#")
    page.get_by_role("button", name="Paint: wall").click()
    cells = page.get_by_role("gridcell")
    left, right = (cells.nth(at).bounding_box() for at in (9, 10))
    page.mouse.move(left["x"] + 9, left["y"] + 9)
    page.mouse.down()
    page.mouse.move(right["x"] + 9, right["y"] + 9, steps=6)
    page.mouse.up()
    assert [cells.nth(at).get_attribute("data-role") for at in (9, 10)] == ["wall", "wall"]
    cells.nth(9).focus()
    page.keyboard.press(".")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("s")
    assert page.locator("[data-role=start]").count() == 1
    page.keyboard.press(" ")
    cells.nth(8).focus()
    page.keyboard.press("S")
    think(page)
    page.wait_for_selector(SOLVED)
    assert page.locator("[data-role=path]").count() == "".join(WAY).count("o")
    corner = cells.nth(31).evaluate(
        "cell => ['up', 'right', 'down', 'left'].map(n => cell.style.getPropertyValue('--' + n))"
    )
    assert corner == ["0", "0", "1", "1"]


def test_tables_show_the_puzzle_beside_the_answer(visit):
    """In a grid of a user's own symbols each cell keeps what the puzzle had; smaller grids are padded."""
    model = canned("table", ["", *"0123"], [3, 3])
    page = visit(
        routes=model | {"**/v1/solve": answer_with([[4, 3, 0, 2, 1, 0, 0, 0, 0]])} | puzzle_of([["0", "1"], ["2", "3"]])
    )
    assert shown(page) == "01.23...."
    think(page)
    page.wait_for_selector(SOLVED)
    assert shown(page) == "32.10...."
    assert page.locator(".board small").all_inner_texts() == ["0", "1", "", "2", "3", "", "", "", ""]


def canned(task, symbols, shape, box=None, max_steps=1024):
    """The routes that make the page believe in a service of one model, which this test need not train."""
    model = {"name": task, "ready": True, "task": task, "task_config": {"box": box}, "reasoner": "trm"}
    model |= {"parameters": 5_000_000, "trained_steps": 16, "symbols": symbols, "shape": shape, "any_length": False}
    limits = {"max_starts": 64, "max_steps": max_steps}
    return json_at("**/v1/models", {"models": [model], "limits": limits}) | json_at("**/v1/tasks", {"tasks": []})


def json_at(pattern, value):
    return {pattern: lambda route: route.fulfill(json=value)}


def puzzle_of(value):
    return json_at("**/v1/puzzles?*", {"puzzles": [value]})


def answer_with(steps, verified=None, guesses=None):
    """A service that proposes these tokens, step by step, with these guesses, and calls the last ones verified."""
    common = {"start": 0, "changed": [], "halt_probability": 0.9, "residual": 0.1, "violations": []}
    none = [None] * len(steps)
    events = [
        (
            "step",
            common
            | {"step": at, "tokens": tokens, "confidence": [0.5] * len(tokens), "verified": told, "guess": guess},
        )
        for at, (tokens, told, guess) in enumerate(zip(steps, verified or none, guesses or none, strict=True), 1)
    ]
    events.append(("result", {"verified": True, "steps": len(steps), "stopped_by": "verified", "start": 0}))
    body = "".join(f"event: {name}\ndata: {json.dumps(value)}\n\n" for name, value in events) + "data: [DONE]\n\n"
    return lambda route: route.fulfill(body=body, content_type="text/event-stream")
