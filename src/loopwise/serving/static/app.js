// Joins the parts: what is chosen, what is being solved, and what is shown.

import * as api from "./api.js";
import { chooser } from "./choices.js";
import { asGif, asJson, save } from "./download.js";
import { Player } from "./player.js";
import { blankOf, brushesOf, emptyPuzzle, fromWire, kindOf, spoken, toWire } from "./puzzle.js";
import { count, Run } from "./run.js";
import { Side } from "./side.js";
import { Timeline } from "./timeline.js";

const find = (id) => document.getElementById(id);
const FIRST_SEED = 0;
const MORE = 16; // steps of "keep thinking"

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
const timeline = new Timeline(find("timeline"), (time) => player.seek(time));

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
  redraw();
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
  buildPalette(models[0]);
  setPuzzle(page.puzzle);
  return fits;
}

function sameForm(one, other) {
  return one.task === other.task && String(one.symbols) === String(other.symbols) && String(one.shape) === String(other.shape);
}

function buildPalette(model) {
  const kind = kindOf(model);
  const paints = model.shape.length === 2 && kind !== "boxed";
  const tokens = kind === "bars" ? [] : brushesOf(model);
  find("palette").hidden = tokens.length > 40;
  find("palette").replaceChildren(...tokens.map((token) => {
    const button = document.createElement("button");
    button.type = "button";
    const symbol = model.symbols[token];
    button.dataset.symbol = kind === "maze" ? spoken(model, token) : symbol;
    button.textContent = kind === "maze" ? spoken(model, token) : symbol === "." || token === 0 ? "␣" : symbol;
    button.setAttribute("aria-label", paints ? `Paint: ${spoken(model, token)}` : `Write: ${spoken(model, token)}`);
    if (paints) button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => (paints ? setBrush(button, token) : edit(page.sides[0].board.current, token)));
    return button;
  }));
  if (kind === "bars" && model.any_length) {
    for (const [text, by, label] of [["−", -1, "Shorter"], ["+", 1, "Longer"]]) {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: text });
      button.setAttribute("aria-label", label);
      button.addEventListener("click", () => lengthen(by));
      find("palette").append(button);
    }
  }
  find("hint").textContent = {
    boxed: "Choose a cell, then type a symbol or press one here.",
    maze: "Press a symbol, then draw. Or move with the arrow keys and type # . S G.",
    bars: "Drag a bar, or choose a place and type a number.",
    table: paints ? "Press a symbol, then paint; or choose a cell and type." : "Choose a place, then type a symbol.",
  }[kind];
}

function setBrush(button, token) {
  const on = button.getAttribute("aria-pressed") !== "true";
  for (const other of find("palette").children) other.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-pressed", on);
  for (const { board } of page.sides) board.brush = on ? token : null;
  find("stage").dataset.brush = on;
}

function lengthen(by) {
  const tokens = by > 0 ? [...page.puzzle, 1 + (page.puzzle.length % (page.choices.model().symbols.length - 1))] : page.puzzle.slice(0, -1);
  if (tokens.length < 1 || tokens.length > 128) return;
  page.sides.forEach((side, index) => side.build(page.choices.models()[index], tokens.length));
  setPuzzle(tokens);
}

async function drawRandom() {
  try {
    const model = page.choices.model();
    const value = await api.getPuzzle(model.name, page.seed);
    page.seed = 1 + Math.floor(Math.random() * 1_000_000);
    takePuzzle(fromWire(model, value));
    return true;
  } catch (error) {
    complain(error);
    return false;
  }
}

function takePuzzle(tokens) {
  if (tokens.length !== page.puzzle.length) {
    page.sides.forEach((side, index) => side.build(page.choices.models()[index], tokens.length));
  }
  setPuzzle(tokens);
}

// --- thinking -------------------------------------------------------------------------------------------------------

async function think({ from = 0 } = {}) {
  const { choices, puzzle } = page;
  setPuzzle(puzzle);
  const abort = (page.abort = new AbortController());
  page.request = { budget: choices.budget(), starts: choices.starts() };
  page.runs = choices.models().map((model) => new Run(model, puzzle, choices.starts()));
  for (const run of page.runs) run.running = true;
  rememberInAddress();
  say("Thinking.");
  player.time = from;
  player.arrived(0, true);
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
  const chosen = page.runs.map((run) => run.chosen);
  page.choices.extend(reached + MORE);
  think({ from: reached });
  page.runs.forEach((run, index) => (run.chosen = chosen[index]));
}

// --- the address ----------------------------------------------------------------------------------------------------

function rememberInAddress() {
  const wire = toWire(page.choices.model(), page.puzzle);
  const puzzle = typeof wire === "string" ? wire : JSON.stringify(wire);
  history.replaceState(null, "", `#${new URLSearchParams({ ...page.choices.asText(), puzzle })}`);
}

async function start() {
  const [models, tasks] = await Promise.all([api.getModels(), api.getTasks().catch(() => [])]);
  const wanted = new URLSearchParams(location.hash.slice(1));
  page.choices = chooser(models, tasks, wanted, {
    changed: async (what) => {
      const fits = what === "model" ? rebuild() : true;
      if (!fits && (await drawRandom())) redraw();
    },
  });
  rebuild();
  const given = wanted.get("puzzle");
  try {
    if (given) takePuzzle(fromWire(page.choices.model(), given));
  } catch (error) {
    complain(error);
  }
  const ready = given ? find("message").hidden : await drawRandom();
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
