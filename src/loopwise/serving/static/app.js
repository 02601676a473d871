// Joins the parts: what is chosen, what is being solved, and what is shown.

import * as api from "./api.js";
import { chooser } from "./choices.js";
import { asGif, asJson, save } from "./download.js";
import { buildPalette } from "./palette.js";
import { Player } from "./player.js";
import { blankOf, emptyPuzzle, fromWire, kindOf, toWire } from "./puzzle.js";
import { count, Run } from "./run.js";
import { Side } from "./side.js";
import { Timeline } from "./timeline.js";

const find = (id) => document.getElementById(id);
const FIRST_SEED = 0;
const MORE = 16; // steps of "keep thinking"
const SEARCHED = 100; // puzzles among which a hard one is looked for
const PATIENCE = 5; // seconds for that

// Seen first, as they take the shipped models more steps than these were trained with; by a Sudoku's box and by how many
// numbers there are.
const SHOWPIECES = {
  "2x3": "5.4..1...........5...63..214..6.....",
  2: "001101111011010001011101000010001000001001000100",
};

const page = {
  choices: null,
  puzzle: [], // tokens
  runs: [],
  sides: [],
  seed: FIRST_SEED,
  abort: new AbortController(),
  request: null,
  drawn: false,
};

const player = new Player(() => redraw());
const timeline = new Timeline(find("timeline"), (time) => player.seek(time), () => player.time);

// --- what is shown --------------------------------------------------------------------------------------------------

/** Draw what has changed, once a frame of the screen. */
function redraw() {
  if (page.drawn) return;
  page.drawn = true;
  requestAnimationFrame(() => {
    page.drawn = false;
    show();
  });
}

function show() {
  const { runs, sides } = page;
  if (!runs.length) return;
  const reached = Math.max(...runs.map((run) => run.length));
  const running = runs.some((run) => run.running);
  player.arrived(reached, running);
  const { time } = player;
  sides.forEach((side, index) => side.show(runs[index], time));
  const length = Math.max(reached, runs[0].model.trained_steps ?? 8);
  timeline.show({ runs, time, length, reached, words: runs.map((run) => run.phrase(time)).join(" ") });
  document.body.dataset.thinking = running || player.playing;
  find("play").setAttribute("aria-label", player.playing ? "Pause" : "Play");
  find("play").dataset.playing = player.playing;
  for (const id of ["back", "play", "forth", "json", "gif"]) find(id).disabled = reached === 0;
  find("more").disabled = running || reached === 0;
  const unsolved = runs.some((run) => run.result && !run.result.verified);
  find("more").classList.toggle("primary", unsolved && !running && time === reached);
  if (!running && reached && time === reached && !player.playing) announceEnd(reached);
}

/** Tell those who listen rather than look how it ended; not each step, which the slider tells when it is moved. */
function announceEnd(reached) {
  const words = page.runs.map((run) => `${page.runs.length > 1 ? `${run.model.name}: ` : ""}${run.phrase(reached)}`);
  say(`After ${count(reached, "step")}. ${words.join(" ")}`);
}

function say(text) {
  if (find("live").textContent !== text) find("live").textContent = text;
}

function complain(error) {
  if (error.name === "AbortError") return;
  const wait = error.retryAfter ? ` Try again in ${count(error.retryAfter, "second")}.` : "";
  find("message").textContent = `${error.message}${wait}`;
  find("message").hidden = false;
  find("keyform").hidden = error.status !== 401;
}

// --- the puzzle -----------------------------------------------------------------------------------------------------

/** Show a puzzle, and give up what was being done with the one before. */
function setPuzzle(tokens) {
  page.abort.abort();
  page.puzzle = tokens;
  player.reset();
  find("message").hidden = true;
  page.runs = page.choices.models().map((model) => new Run(model, tokens, 1));
  show(); // at once: the next key may build on it
}

function edit(cell, token) {
  const tokens = [...page.puzzle];
  const model = page.choices.model();
  if (kindOf(model) === "maze" && "SG".includes(model.symbols[token])) {
    // There is one start and one goal.
    tokens.forEach((other, at) => {
      if (other === token) tokens[at] = blankOf(model);
    });
  }
  tokens[cell] = token;
  setPuzzle(tokens);
}

/** Build the boards anew for the chosen models; the puzzle stays where they can take it. */
function rebuild() {
  const models = page.choices.models();
  const fits = page.puzzle.length && page.builtFor && sameForm(page.builtFor, models[0]);
  page.builtFor = models[0];
  if (!fits) page.puzzle = emptyPuzzle(models[0]);
  for (const side of page.sides) side.root.remove();
  const hooks = { edit, enter: think, moved: () => {}, chosen: redraw };
  page.sides = models.map((_, index) => new Side(find("side"), index, hooks));
  find("stage").prepend(...page.sides.map((side) => side.root));
  find("stage").dataset.sides = models.length;
  page.sides.forEach((side, index) => side.build(models[index], page.puzzle.length));
  document.body.dataset.kind = kindOf(models[0]);
  find("stage").dataset.flat = models[0].shape.length === 1;
  buildPalette(find("palette"), find("hint"), find("legend"), models[0], {
    write: (token) => edit(page.sides[0].board.current, token),
    brush: setBrush,
    lengthen,
  });
  setBrush(null);
  setPuzzle(page.puzzle);
  return fits;
}

function sameForm(one, other) {
  return one.task === other.task && String(one.symbols) === String(other.symbols) && String(one.shape) === String(other.shape);
}

/** Paint with a symbol from now on, or with none. */
function setBrush(token) {
  for (const { board } of page.sides) board.brush = token;
  find("stage").dataset.brush = token !== null;
}

function lengthen(by) {
  const model = page.choices.model();
  const most = Math.min(model.max_length ?? 64, 96);
  const length = Math.max(4, Math.min(page.puzzle.length + by, most));
  const more = Math.max(0, length - page.puzzle.length);
  const token = () => 1 + Math.floor(Math.random() * (model.symbols.length - 1));
  takePuzzle([...page.puzzle.slice(0, length), ...Array.from({ length: more }, token)]);
}

async function drawRandom() {
  const model = page.choices.model();
  try {
    const [value] = await drawMany(model, 1);
    takePuzzle(fromWire(model, value));
    return true;
  } catch (error) {
    complain(error);
    return false;
  }
}

/** Random puzzles; rows of another length than the service's own are drawn here. */
async function drawMany(model, number) {
  const { length } = page.puzzle;
  if (kindOf(model) === "bars" && length !== model.shape[0] && length) {
    const token = () => 1 + Math.floor(Math.random() * (model.symbols.length - 1));
    return Array.from({ length: number }, () => toWire(model, Array.from({ length }, token)));
  }
  const seed = page.seed;
  page.seed = 1 + Math.floor(Math.random() * 1_000_000);
  return api.getPuzzles(model.name, seed, number);
}

/** Of many random puzzles the one that takes the model the most steps, if it can be solved at all. */
async function drawHard() {
  const button = find("hard");
  button.disabled = true;
  say("Looking for a hard puzzle.");
  try {
    const model = page.choices.model();
    const puzzles = await drawMany(model, SEARCHED);
    const budget = `verified|halted|steps=${4 * (model.trained_steps ?? 16)}`;
    const results = await api.solveAll({ model: model.name, puzzles, budget, deadline: PATIENCE });
    const steps = results.map((result) => (result.error ? 0 : result.steps + (result.verified === false ? 0 : 1000)));
    takePuzzle(fromWire(model, puzzles[steps.indexOf(Math.max(...steps))]));
  } catch (error) {
    complain(error);
  }
  button.disabled = false;
}

function takePuzzle(tokens) {
  if (tokens.length !== page.puzzle.length) {
    page.sides.forEach((side, index) => side.build(page.choices.models()[index], tokens.length));
  }
  setPuzzle(tokens);
}

// --- thinking -------------------------------------------------------------------------------------------------------

function think() {
  const { choices, puzzle } = page;
  setPuzzle(puzzle);
  page.runs = choices.models().map((model) => new Run(model, puzzle, choices.starts()));
  return launch(0);
}

/** Have the runs solved, and play them from a step on. */
async function launch(from) {
  const abort = (page.abort = new AbortController());
  page.request = { budget: page.choices.budget(), starts: page.runs[0].tracks.length };
  for (const run of page.runs) run.resume();
  document.body.dataset.thinking = true;
  rememberInAddress();
  say("Thinking.");
  player.time = from;
  player.arrived(from, true);
  player.play();
  await Promise.all(page.runs.map((run) => follow(run, abort.signal)));
  redraw();
}

async function follow(run, signal) {
  try {
    const request = { model: run.model.name, puzzle: toWire(run.model, run.puzzle), ...page.request };
    for await (const [name, data] of api.solve(request, signal)) {
      if (signal.aborted) return;
      if (name === "step") run.add(data);
      if (name === "result") run.finish(data);
      redraw();
    }
  } catch (error) {
    run.running = false;
    if (!signal.aborted) complain(error);
  } finally {
    run.running = false;
  }
}

/** Go on beyond where it stopped: the same steps again, which come out the same, and more of them. */
function keepThinking() {
  const reached = Math.max(...page.runs.map((run) => run.length));
  page.choices.extend(reached + MORE);
  launch(reached);
}

// --- the address ----------------------------------------------------------------------------------------------------

function rememberInAddress() {
  const wire = toWire(page.choices.model(), page.puzzle);
  const puzzle = typeof wire === "string" ? wire : JSON.stringify(wire);
  history.replaceState(null, "", `#${new URLSearchParams({ ...page.choices.asText(), puzzle })}`);
}

/** What is served, once at least one model's weights are there. */
async function waitForModels() {
  for (;;) {
    const served = await api.getModels();
    const models = served.models.filter((model) => model.ready !== false);
    if (models.length || !served.models.length) {
      find("message").hidden = true;
      return { ...served, models };
    }
    complain(new Error("The models are being loaded."));
    await new Promise((done) => setTimeout(done, 700));
  }
}

/** The puzzle that is seen first: one that is worth it, or any. */
async function showFirst() {
  const model = page.choices.model();
  const numbers = kindOf(model) === "bars" && model.any_length ? model.symbols.length - 1 : "";
  const showpiece = SHOWPIECES[model.task_config?.box] ?? SHOWPIECES[numbers];
  return (showpiece && tryPuzzle(showpiece, () => {})) || drawRandom();
}

async function start() {
  const [served, tasks] = await Promise.all([waitForModels(), api.getTasks().catch(() => [])]);
  const wanted = new URLSearchParams(location.hash.slice(1));
  page.choices = chooser(served, tasks, wanted, {
    changed: async (what) => {
      const fits = what === "model" ? rebuild() : true;
      if (!fits) await showFirst();
    },
  });
  rebuild();
  const given = wanted.get("puzzle");
  const ready = given ? tryPuzzle(given, complain) : await showFirst();
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  document.body.dataset.ready = true;
  if (ready && !calm) think();
}

// --- buttons --------------------------------------------------------------------------------------------------------

function listen() {
  const press = (id, act) => find(id).addEventListener("click", act);
  find("sentence").addEventListener("submit", (event) => {
    event.preventDefault();
    think();
  });
  press("random", drawRandom);
  press("hard", drawHard);
  press("clear", () => setPuzzle(emptyPuzzle(page.choices.model()).slice(0, page.puzzle.length)));
  press("play", () => player.toggle());
  press("back", () => player.seek(player.time - 1));
  press("forth", () => player.seek(player.time + 1));
  press("more", keepThinking);
  press("json", () => save(asJson(page.runs, page.request), `${fileName()}.json`));
  press("gif", downloadGif);
  press("paste", openPaste);
  press("pasteuse", usePasted);
  press("theme", switchTheme);
  find("speed").addEventListener("change", ({ target }) => (player.speed = Number(target.value)));
  find("keyform").addEventListener("submit", (event) => {
    event.preventDefault();
    api.useKey(find("key").value);
    find("keyform").hidden = find("message").hidden = true;
    (page.choices ? think() : start()).catch?.(complain);
  });
  document.addEventListener("paste", (event) => {
    if (event.target.closest("textarea, input, dialog")) return;
    const text = event.clipboardData.getData("text");
    if (text) tryPuzzle(text, complain);
  });
  darkScreen.addEventListener("change", nameTheme);
  nameTheme();
}

function fileName() {
  return `${page.runs.map((run) => run.model.name.replace(/[^\w.-]+/g, "-")).join("-")}-${page.runs[0].length}-steps`;
}

async function downloadGif() {
  const button = find("gif");
  button.disabled = true;
  const length = Math.max(...page.runs.map((run) => run.length), page.runs[0].model.trained_steps ?? 8);
  const blob = await asGif(page.runs, length, player.speed, (share) => {
    button.textContent = `${Math.round(share * 100)} %`;
  });
  save(blob, `${fileName()}.gif`);
  button.textContent = "GIF";
  button.disabled = false;
}

function openPaste() {
  find("pasteerror").hidden = true;
  find("pastetext").value = "";
  const wire = toWire(page.choices.model(), page.puzzle);
  find("pastehelp").textContent = `For example: ${(typeof wire === "string" ? wire : wire.join(" ")).slice(0, 90)}`;
  find("pastebox").showModal();
}

function usePasted() {
  const told = tryPuzzle(find("pastetext").value, (error) => {
    find("pasteerror").textContent = error.message;
    find("pasteerror").hidden = false;
  });
  if (told) find("pastebox").close();
}

function tryPuzzle(text, otherwise) {
  try {
    takePuzzle(fromWire(page.choices.model(), text));
    return true;
  } catch (error) {
    otherwise(error);
    return false;
  }
}

const darkScreen = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : darkScreen.matches;
}

function switchTheme() {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
}

function nameTheme() {
  find("theme").textContent = isDark() ? "Light" : "Dark";
  redraw();
}

listen();
start().catch(complain);
