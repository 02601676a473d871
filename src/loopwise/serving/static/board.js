// The grid of cells: shows a frame and lets people change the puzzle, by pointer and by keyboard.

import { linksOf } from "./draw.js";
import { blankOf, boxOf, brushesOf, columnsOf, isGiven, isPath, kindOf, placeOf, spoken } from "./puzzle.js";

const TYPING = 700; // milliseconds within which keys belong to one symbol, such as 1 2 for 12

export class Board {
  /** `hooks`: edit(cell, token), enter() for the Enter key, moved(cell) when the current cell is another one,
   * rewind() to the puzzle before it is changed by dragging. */
  constructor(root, hooks) {
    this.root = root;
    this.hooks = hooks;
    this.cells = [];
    this.current = 0;
    this.chosen = false; // whether a person has made it the current one
    this.brush = null; // the token that the pointer paints with
    this.typed = "";
    this.typedAt = 0;
    root.addEventListener("keydown", (event) => this.#key(event));
    root.addEventListener("focusin", (event) => this.#take(event.target));
    root.addEventListener("pointerdown", (event) => this.#press(event));
    root.addEventListener("pointermove", (event) => this.#drag(event));
    root.addEventListener("pointerup", (event) => this.#release(event));
    root.addEventListener("pointercancel", () => (this.painting = false));
  }

  /** Make the cells for puzzles of a model, of a length. */
  build(model, length) {
    this.model = model;
    this.kind = kindOf(model);
    this.columns = columnsOf(model, { length });
    this.values = Math.max(model.symbols.length - 2, 1);
    this.root.dataset.kind = this.kind;
    this.root.dataset.dense = this.columns > (this.kind === "bars" ? 24 : 10);
    this.foot = this.root.dataset.dense === "true" ? 4 : 28; // pixels under the bars, for the numbers
    this.root.style.setProperty("--foot", `${this.foot}px`);
    this.root.dataset.flat = model.shape.length === 1;
    this.root.style.setProperty("--columns", this.columns);
    this.root.style.setProperty("--rows", Math.ceil(length / this.columns));
    this.root.setAttribute("aria-label", `${model.task} puzzle, ${model.name}`);
    this.root.setAttribute("aria-rowcount", Math.ceil(length / this.columns));
    this.root.setAttribute("aria-colcount", this.columns);
    this.cells = Array.from({ length }, (_, at) => this.#cell(at));
    const rows = [];
    for (let at = 0; at < length; at += this.columns) {
      const row = document.createElement("div");
      row.setAttribute("role", "row");
      row.append(...this.cells.slice(at, at + this.columns));
      rows.push(row);
    }
    this.root.replaceChildren(...rows);
    this.current = Math.min(this.current, length - 1);
    this.cells[this.current].tabIndex = 0;
  }

  #cell(at) {
    const cell = document.createElement("div");
    cell.setAttribute("role", "gridcell");
    cell.tabIndex = -1;
    cell.dataset.at = at;
    cell.append(document.createElement("span"));
    if (this.kind === "table") cell.append(document.createElement("small")); // the puzzle's own symbol
    const box = boxOf(this.model);
    const [row, column] = [Math.floor(at / this.columns), at % this.columns];
    if (box) {
      cell.classList.toggle("box-top", row > 0 && row % box.rows === 0);
      cell.classList.toggle("box-left", column > 0 && column % box.columns === 0);
    }
    cell.style.setProperty("--delay", `${((row + column) / (2 * this.columns)) * 500}ms`);
    return cell;
  }

  /** Show a frame of a run. `time` 0 is the puzzle; `wrong` are the cells that break a rule. */
  show(puzzle, frame, time, wrong) {
    if (this.cells.length !== frame.tokens.length) this.build(this.model, frame.tokens.length);
    const broken = new Set(wrong);
    this.atPuzzle = time === 0;
    this.root.dataset.start = this.atPuzzle;
    this.tokens = puzzle;
    this.cells.forEach((cell, at) => {
      const token = frame.tokens[at];
      const role = this.#role(puzzle[at], token, time);
      const age = frame.ages[at] < 5 ? frame.ages[at] : "";
      const sure = frame.confidence && role !== "given" ? Math.round(frame.confidence[at] * 50) / 50 : "";
      const links = role === "path" ? linksOf(this.model, frame.tokens, at) : [];
      const guessed = frame.guess?.position === at;
      const signature = `${token} ${puzzle[at]} ${role} ${age} ${sure} ${broken.has(at)} ${guessed} ${links}`;
      if (cell.signature === signature) return;
      cell.signature = signature;
      if (role === "path") this.#link(cell, links);
      this.#paint(cell, at, { token, role, age, sure, wrong: broken.has(at), guessed, given: puzzle[at] });
    });
  }

  #role(given, token, time) {
    if (this.kind === "maze") return isPath(this.model, token) ? "path" : spoken(this.model, token);
    if (token === 0 || (this.kind === "boxed" && token === blankOf(this.model))) return "empty";
    if (time === 0) return "given";
    return this.kind === "boxed" && isGiven(this.model, given) ? "given" : "answer";
  }

  #paint(cell, at, { token, role, age, sure, wrong, guessed, given }) {
    const { dataset, style } = cell;
    dataset.role = role;
    dataset.wrong = wrong;
    dataset.guessed = guessed;
    if (dataset.age === "0" && age === 0) {
      // Two changes in a row: restart the animation.
      delete dataset.age;
      void cell.offsetWidth;
    }
    dataset.age = age;
    const symbol = role === "empty" ? "" : this.model.symbols[token];
    cell.firstChild.textContent = this.kind === "maze" ? { start: "S", goal: "G" }[role] ?? "" : symbol;
    if (this.kind === "table") cell.lastChild.textContent = role === "given" || given === token ? "" : this.model.symbols[given];
    style.setProperty("--sure", sure === "" ? 1 : sure);
    if (this.kind === "bars") {
      style.setProperty("--value", (token - 1) / this.values);
      style.setProperty("--given", (given - 1) / this.values);
    }
    const said = [`${placeOf(this.model, at)}: ${spoken(this.model, token)}`];
    if (role === "given") said.push("given");
    if (guessed) said.push("guessed");
    if (age === 0) said.push("just changed");
    if (sure !== "" && role !== "empty") said.push(`${Math.round(sure * 100)} percent sure`);
    if (wrong) said.push("breaks a rule");
    cell.setAttribute("aria-label", said.join(", "));
  }

  /** Lead a maze's path on to the cells beside. */
  #link(cell, links) {
    for (const [name, dx, dy] of [["up", 0, -1], ["right", 1, 0], ["down", 0, 1], ["left", -1, 0]]) {
      cell.style.setProperty(`--${name}`, Number(links.some((link) => link[0] === dx && link[1] === dy)));
    }
  }

  /** The cell that has the focus is the current one. */
  #take(target) {
    const cell = target.closest("[data-at]");
    if (cell) this.hooks.moved(Number(cell.dataset.at));
  }

  /** Make a cell the current one, which the palette writes into. */
  mark(at) {
    this.cells[this.current].tabIndex = -1;
    this.current = at;
    this.chosen = true;
    this.root.dataset.chosen = true;
    this.cells[at].tabIndex = 0;
  }

  focus(at) {
    this.cells[Math.max(0, Math.min(at, this.cells.length - 1))].focus({ preventScroll: true });
  }

  #key(event) {
    if (event.altKey || event.metaKey) return;
    const { key, ctrlKey } = event;
    const [column, width, last] = [this.current % this.columns, this.columns, this.cells.length - 1];
    const moves = {
      ArrowLeft: column ? -1 : 0,
      ArrowRight: column < width - 1 ? 1 : 0,
      ArrowUp: this.current >= width ? -width : 0,
      ArrowDown: this.current + width <= last ? width : 0,
      Home: ctrlKey ? -this.current : -column,
      End: ctrlKey ? last - this.current : width - 1 - column,
    };
    if (this.kind === "bars" && (key === "ArrowUp" || key === "ArrowDown")) {
      const token = this.tokens[this.current] + (key === "ArrowUp" ? 1 : -1);
      if (token > 0 && token < this.model.symbols.length) this.hooks.edit(this.current, token);
    } else if (key in moves) {
      this.focus(this.current + moves[key]);
    } else if (key === "Enter") {
      this.hooks.enter();
    } else if (key === "Delete" || key === "Backspace") {
      this.hooks.edit(this.current, blankOf(this.model));
    } else if (ctrlKey || key.length !== 1 || !this.#type(key)) {
      return;
    }
    event.preventDefault();
  }

  /** Take a key as a symbol, or as the next character of one; whether it is any. */
  #type(key) {
    const now = performance.now();
    const before = now - this.typedAt < TYPING ? this.typed : "";
    for (const text of [before + key, key]) {
      const token = this.#named(text) ?? this.#named(text.toUpperCase());
      if (token === undefined) continue;
      [this.typed, this.typedAt] = [text, now];
      this.hooks.edit(this.current, token);
      return true;
    }
    const blanks = this.kind === "boxed" ? "0 ._*" : this.kind === "maze" ? " ." : " ";
    if (!blanks.includes(key)) return false;
    this.hooks.edit(this.current, blankOf(this.model));
    return true;
  }

  #named(text) {
    return brushesOf(this.model).find((token) => token && this.model.symbols[token] === text);
  }

  #press(event) {
    const at = this.#under(event);
    if (at === null || event.button !== 0) return;
    this.focus(at);
    event.preventDefault(); // no text selection; the focus has been set
    const late = this.kind === "bars" && !this.atPuzzle;
    if (late && event.pointerType === "touch") return; // it may be about to scroll
    if (late) this.hooks.rewind();
    this.painting = this.brush !== null || this.kind === "bars";
    if (this.painting) this.root.setPointerCapture(event.pointerId);
    if (!late) this.#drag(event); // else a mere click would give the run up
  }

  #release({ pointerType }) {
    this.painting = false;
    if (this.kind === "bars" && !this.atPuzzle && pointerType === "touch") this.hooks.rewind();
  }

  #drag(event) {
    const at = this.painting ? this.#under(event) : null;
    if (at === null) return;
    const token = this.kind === "bars" ? this.#height(event, at) : this.brush;
    if (this.tokens[at] !== token) this.hooks.edit(at, token);
  }

  /** The cell under the pointer. */
  #under({ clientX, clientY }) {
    const cell = document.elementFromPoint(clientX, clientY)?.closest("[data-at]");
    return cell && this.root.contains(cell) ? Number(cell.dataset.at) : null;
  }

  /** The value of a bar that reaches to the pointer. */
  #height({ clientY }, at) {
    const box = this.cells[at].getBoundingClientRect();
    const share = (box.bottom - this.foot - clientY) / (box.height - this.foot - 8);
    return 1 + Math.round(Math.max(0, Math.min(1, share)) * this.values);
  }
}
