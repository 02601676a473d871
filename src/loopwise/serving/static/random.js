// Puzzles that nobody has typed: drawn by the service, rows of a length of their own here.

import * as api from "./api.js";
import { kindOf, toWire } from "./puzzle.js";

const SEARCHED = 100; // puzzles among which a hard one is looked for
const PATIENCE = 5; // seconds for that

// Seen first, as they take the shipped models more steps than these were trained with; by a Sudoku's box and by how many
// numbers there are.
const SHOWPIECES = {
  "2x3": "5.4..1...........5...63..214..6.....",
  "3x3": "1....7.9..3..2...8..96..5....53..9...1..8...26....4...3......1..4......7..7...3..",
  2: "001101111011010001011101000010001000001001000100",
};

let seed = 0; // of the next puzzles: the first are always the same

/** The puzzle that is worth to be seen first, or undefined. */
export function showpieceOf(model) {
  const numbers = kindOf(model) === "bars" && model.any_length ? model.symbols.length - 1 : "";
  return SHOWPIECES[model.task_config?.box] ?? SHOWPIECES[numbers];
}

export function randomRow(model, length) {
  return Array.from({ length }, () => 1 + Math.floor(Math.random() * (model.symbols.length - 1)));
}

/** Random puzzles as the service writes them; `length` is that of the puzzle which they replace. */
export async function drawMany(model, length, number, signal) {
  if (kindOf(model) === "bars" && length !== model.shape[0] && length) {
    return Array.from({ length: number }, () => toWire(model, randomRow(model, length)));
  }
  const now = seed;
  seed = 1 + Math.floor(Math.random() * 1_000_000);
  return api.getPuzzles(model.name, now, number, signal);
}

/** Of many random puzzles the one that takes the model the most steps, if it can be solved at all. */
export async function drawHardest(model, length, signal) {
  const puzzles = await drawMany(model, length, SEARCHED, signal);
  const halted = model.default_starts > 1 ? "" : "halted|"; // a search goes on until the rules accept
  const budget = `verified|${halted}steps=${4 * (model.trained_steps ?? 16)}`;
  const results = await api.solveAll({ model: model.name, puzzles, budget, starts: 1, deadline: PATIENCE }, signal);
  const steps = results.map((result) => (result.error ? 0 : result.steps + (result.verified === false ? 0 : 1000)));
  return puzzles[steps.indexOf(Math.max(...steps))];
}
