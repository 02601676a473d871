// What a model did with one puzzle: the frames of every start, in the order of the steps.

import { isGiven, kindOf, placeOf } from "./puzzle.js";

export const DRY = 9; // steps after which a change is forgotten

/** The frames of one start. Time 0 is the puzzle itself, time k what the model proposes after step k. */
class Track {
  constructor(model, puzzle) {
    this.frames = [
      { tokens: puzzle, ages: new Uint8Array(puzzle.length).fill(DRY), changed: [], violations: [], confidence: null },
    ];
    this.model = model;
  }

  get last() {
    return this.frames.length - 1;
  }

  at(time) {
    return this.frames[Math.min(time, this.last)];
  }

  /** Take a step; one that is there already, as it is when a run goes on, comes out the same. */
  add(data) {
    if (data.step <= this.last) return;
    const before = this.frames[this.last];
    const first = this.last === 0;
    const written = kindOf(this.model) === "boxed" || kindOf(this.model) === "maze";
    const tokens = data.tokens;
    const ages = new Uint8Array(tokens.length);
    const changed = [];
    tokens.forEach((token, cell) => {
      const same = token === before.tokens[cell] && !(first && !written);
      ages[cell] = same ? Math.min(before.ages[cell] + 1, DRY) : 0;
      if (!same) changed.push(cell);
    });
    this.frames.push({
      tokens,
      ages,
      changed,
      guess: data.guess ?? null,
      belief: data.halt_probability,
      residual: data.residual,
      confidence: data.confidence ?? null,
      violations: data.violations ?? null,
      verified: data.verified ?? null,
    });
  }
}

export class Run {
  constructor(model, puzzle, starts) {
    this.model = model;
    this.puzzle = puzzle;
    this.tracks = Array.from({ length: starts }, () => new Track(model, puzzle));
    this.chosen = 0; // the start that is shown
    this.picked = false; // whether a person chose it
    this.result = null;
    this.running = false;
  }

  get track() {
    return this.tracks[this.chosen];
  }

  /** The number of steps that have arrived, of the start that went furthest. */
  get length() {
    return Math.max(...this.tracks.map((track) => track.last));
  }

  /** The step from which on the shown start's proposals are verified; its last where the service tells of no step. */
  get solvedAt() {
    const { frames, last } = this.track;
    let step = last;
    while (step > 1 && frames[step].verified && frames[step - 1].verified) step -= 1;
    return step;
  }

  pick(start) {
    [this.chosen, this.picked] = [start, true];
  }

  add(data) {
    (this.tracks[data.start ?? 0] ?? this.tracks[0]).add(data);
  }

  /** Get ready to be solved again, with more steps. */
  resume() {
    this.result = null;
    this.running = true;
  }

  finish(result) {
    this.result = result;
    this.running = false;
    if (!this.picked) this.chosen = Math.min(result.start ?? 0, this.tracks.length - 1);
  }

  /** Whether the shown start has come to its end at this time. */
  ended(time) {
    return !this.running && this.track.last > 0 && time >= this.track.last;
  }

  /** Whether the shown start is the one whose answer the service gave, at its end. */
  answered(time) {
    return Boolean(this.result) && this.ended(time) && this.chosen === (this.result.start ?? 0);
  }

  /** What happened at a time, in words. */
  phrase(time) {
    const { track } = this;
    const frame = track.at(time);
    if (time === 0 || track.last === 0) return this.running ? "Thinking …" : this.#ofPuzzle();
    const broken = frame.violations?.length ?? 0;
    const rules = broken ? wrongs(this.model, broken) : "";
    if (this.answered(time)) return this.#ofResult(rules);
    if (time > track.last) return "This start has stopped.";
    const first = "a first proposal";
    const moved = frame.changed.length ? `${count(frame.changed.length, "cell")} changed` : "nothing changed";
    const guess = isNew(frame.guess, track.at(time - 1).guess) ? this.#ofGuess(frame.guess) : "";
    const said = [guess, Math.min(time, track.last) === 1 ? first : moved, rules].filter(Boolean).join("; ");
    return `${said[0].toUpperCase()}${said.slice(1)}.`;
  }

  #ofGuess({ position, token }) {
    return `guesses ${this.model.symbols[token]} at ${placeOf(this.model, position)}`;
  }

  #ofPuzzle() {
    const kind = kindOf(this.model);
    if (kind !== "boxed") return "The puzzle.";
    const open = this.puzzle.filter((token) => !isGiven(this.model, token)).length;
    return `The puzzle: ${open} of ${this.puzzle.length} cells are open.`;
  }

  #ofResult(rules) {
    const { verified, stopped_by: by } = this.result;
    if (verified) return `Solved in ${count(this.solvedAt, "step")}.`;
    const why = /steps/.test(by) ? "Out of steps" : /halted/.test(by) ? "The model is sure" : `Stopped: ${by}`;
    return `${[why, verified === false ? "but it is not solved" : "", rules].filter(Boolean).join(", ")}.`;
  }
}

function isNew(guess, before) {
  return Boolean(guess) && (guess.position !== before?.position || guess.token !== before?.token);
}

function wrongs(model, broken) {
  const kind = kindOf(model);
  if (kind === "boxed") return `${count(broken, "cell")} break${broken === 1 ? "s" : ""} a rule`;
  return `${count(broken, kind === "maze" ? "cell" : "place")} ${broken === 1 ? "is" : "are"} wrong`;
}

export function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}
