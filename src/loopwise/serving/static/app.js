// Joins the parts: what is chosen, what is being solved, and what is shown.

import * as api from "./api.js";
import { chooser } from "./choices.js";
import { asGif, asJson, save } from "./download.js";
import { pause, waitForModels } from "./loading.js";
import { buildPalette } from "./palette.js";
import { Player } from "./player.js";
import { blankOf, emptyPuzzle, fromWire, kindOf, toWire } from "./puzzle.js";
import { drawHardest, drawMany, randomRow, showpieceOf } from "./random.js";
import { count, Run } from "./run.js";
import { Side } from "./side.js";
import { listenTheme } from "./theme.js";
import { Timeline } from "./timeline.js";

const find = (id) => document.getElementById(id);
const MORE = 16; // steps of "keep thinking"

const page = {
  choices: null,
  puzzle: [], // tokens
  version: 0, // how many puzzles there were: what is drawn for an older one comes too late
  runs: [],
  sides: [],
  abort: new AbortController(), // of what is being solved
  search: new AbortController(), // of the search for a hard puzzle
  request: null,
  drawn: false,
  saving: false, // a GIF
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
  const end = Math.max(...runs.map((run) => run.track.last)); // other starts may go on beyond
  const running = runs.some((run) => run.running);
  player.arrived(reached, running, end);
  const { time } = player;
  sides.forEach((side, index) => side.show(runs[index], time));
  const length = Math.max(reached, runs[0].model.trained_steps ?? 8);
  timeline.show({ runs, time, length, reached, words: runs.map((run) => run.phrase(time)).join(" ") });
  document.body.dataset.thinking = running || player.playing;
  find("play").setAttribute("aria-label", player.playing ? "Pause" : "Play");
  find("play").dataset.playing = player.playing;
  for (const id of ["back", "play", "forth", "json"]) allow(id, reached > 0);
  allow("gif", reached > 0 && !page.saving);
  allow("more", !running && reached > 0 && reached < page.choices.most);
  const unsolved = runs.some((run) => run.result && !run.result.verified);
  find("more").classList.toggle("primary", unsolved && !running && time >= end);
  if (!running && reached && time === end && !player.playing) announceEnd(end);
}

/** Tell those who listen rather than look how it ended; not each step, which the slider tells when it is moved. */
function announceEnd(end) {
  const words = page.runs.map((run) => `${page.runs.length > 1 ? `${run.model.name}: ` : ""}${run.phrase(end)}`);
  say(`After ${count(end, "step")}. ${words.join(" ")}`);
}

/** Whether a button does something; it stays where the Tab key finds it. */
function allow(id, yes) {
  find(id).setAttribute("aria-disabled", !yes);
}

function say(text) {
  if (find("live").textContent !== text) find("live").textContent = text;
}

function complain(error) {
  if (error.name === "AbortError") return;
  const wait = error.retryAfter ? ` Try again in ${count(error.retryAfter, "second")}.` : "";
  const text = `${error.message}${wait}`;
  if (find("message").textContent !== text) find("message").textContent = text; // else it would be read out again
  find("message").hidden = false;
  find("keyform").hidden = error.status !== 401;
}

// --- the puzzle -----------------------------------------------------------------------------------------------------

/** Show a puzzle, and give up what was being done with the one before. */
function setPuzzle(tokens) {
  page.version += 1;
  page.abort.abort();
  page.search.abort();
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
  const hooks = {
    edit,
    enter: think,
    moved: (cell) => page.sides.forEach(({ board }) => board.mark(cell)),
    rewind: () => player.seek(0),
    chosen: redraw,
  };
  page.sides = models.map((_, index) => new Side(find("side"), index, hooks));
  find("stage").prepend(...page.sides.map((side) => side.root));
  find("stage").dataset.sides = models.length;
  page.sides.forEach((side, index) => side.build(models[index], page.puzzle.length));
  document.body.dataset.kind = kindOf(models[0]);
  find("stage").dataset.flat = models[0].shape.length === 1;
  buildPalette(find("palette"), find("hint"), find("legend"), models[0], {
    write,
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

/** Put a symbol into the current cell; before one was chosen, show which that is. */
function write(token) {
  const { board } = page.sides[0];
  if (board.chosen) return edit(board.current, token);
  board.focus(board.current);
  say("Choose a cell, then press a symbol.");
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
  takePuzzle([...page.puzzle.slice(0, length), ...randomRow(model, more)]);
}

/** Draw another puzzle; a service that is not ready yet is asked again, unless there is another puzzle meanwhile. */
async function drawRandom() {
  const model = page.choices.model();
  const { version } = page;
  say("");
  while (version === page.version) {
    try {
      const [value] = await drawMany(model, page.puzzle.length, 1);
      if (version !== page.version) return false;
      takePuzzle(fromWire(model, value), "A new puzzle.");
      return true;
    } catch (error) {
      if (version !== page.version) return false;
      complain(error);
      if (error.status !== 503 || !error.retryAfter) return false;
      await pause(1000 * error.retryAfter);
    }
  }
  return false;
}

async function drawHard() {
  const model = page.choices.model();
  const search = (page.search = new AbortController());
  const { signal } = search;
  allow("hard", false);
  say("Looking for a hard puzzle.");
  try {
    const value = await drawHardest(model, page.puzzle.length, signal);
    if (!signal.aborted) takePuzzle(fromWire(model, value), "A hard puzzle.");
  } catch (error) {
    if (!signal.aborted) complain(error);
  }
  allow("hard", true);
}

/** Take a puzzle that was drawn or written elsewhere, and tell those who listen. */
function takePuzzle(tokens, told = "") {
  if (tokens.length !== page.puzzle.length) {
    page.sides.forEach((side, index) => side.build(page.choices.models()[index], tokens.length));
  }
  setPuzzle(tokens);
  rememberInAddress();
  if (told) say(told);
}

// --- thinking -------------------------------------------------------------------------------------------------------

function think() {
  const { choices, puzzle } = page;
  if (!choices) return undefined;
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
  player.arrived(from, true, from);
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
  launch(player.end);
}

// --- the address ----------------------------------------------------------------------------------------------------

function rememberInAddress() {
  const wire = toWire(page.choices.model(), page.puzzle);
  const puzzle = typeof wire === "string" ? wire : JSON.stringify(wire);
  history.replaceState(null, "", `#${new URLSearchParams({ ...page.choices.asText(), puzzle })}`);
}

/** The puzzle that is seen first: one that is worth it, or any. */
function showFirst() {
  const showpiece = showpieceOf(page.choices.model());
  return (showpiece && tryPuzzle(showpiece, () => {})) || drawRandom();
}

async function start() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const served = await waitForModels(wanted, complain);
  const tasks = await api.getTasks().catch(() => []);
  page.choices = chooser(served, tasks, wanted, {
    changed: (what) => {
      if (what === "model" && !rebuild()) showFirst();
      else rememberInAddress();
    },
  });
  rebuild();
  find("stage").inert = find("think").disabled = false;
  const given = wanted.get("puzzle");
  const ready = given ? tryPuzzle(given, complain) : await showFirst();
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  document.body.dataset.ready = true;
  if (ready && !calm) think();
}

// --- buttons --------------------------------------------------------------------------------------------------------

function listen() {
  const idle = (id) => !page.choices || find(id).getAttribute("aria-disabled") === "true";
  const press = (id, act) => find(id).addEventListener("click", () => idle(id) || act());
  for (const id of ["back", "play", "forth", "more", "json", "gif"]) allow(id, false);
  find("sentence").addEventListener("submit", (event) => {
    event.preventDefault();
    think();
  });
  press("random", drawRandom);
  press("hard", drawHard);
  press("clear", () => takePuzzle(page.puzzle.map(() => blankOf(page.choices.model())), "The board is empty."));
  press("play", () => player.toggle());
  press("back", () => player.seek(player.time - 1));
  press("forth", () => player.seek(player.time + 1));
  press("more", keepThinking);
  press("json", () => save(asJson(page.runs, page.request), `${fileName()}.json`));
  press("gif", downloadGif);
  press("paste", openPaste);
  press("pasteuse", usePasted);
  find("speed").addEventListener("change", ({ target }) => (player.speed = Number(target.value)));
  find("keyform").addEventListener("submit", (event) => {
    event.preventDefault();
    api.useKey(find("key").value);
    find("keyform").hidden = find("message").hidden = true;
    (page.choices ? think() : start()).catch?.(complain);
  });
  document.addEventListener("paste", (event) => {
    if (!page.choices || event.target.closest("textarea, input, dialog")) return;
    const text = event.clipboardData.getData("text");
    if (text) tryPuzzle(text, complain, "The puzzle is pasted.");
  });
  addEventListener("hashchange", () => location.reload()); // another address, another puzzle
  listenTheme(find("theme"), redraw);
}

function fileName() {
  return `${page.runs.map((run) => run.model.name.replace(/[^\w.-]+/g, "-")).join("-")}-${page.runs[0].length}-steps`;
}

async function downloadGif() {
  if (page.saving) return;
  const { runs } = page;
  const [button, name] = [find("gif"), `${fileName()}.gif`];
  page.saving = true;
  allow("gif", false);
  try {
    const length = Math.max(...runs.map((run) => run.length), runs[0].model.trained_steps ?? 8);
    const told = (share) => (button.textContent = `${Math.round(share * 100)} %`);
    save(await asGif(runs, length, player.speed, told), name);
  } catch (error) {
    complain(error);
  } finally {
    page.saving = false;
    button.textContent = "GIF";
    redraw();
  }
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
  }, "The puzzle is pasted.");
  if (told) find("pastebox").close();
}

function tryPuzzle(text, otherwise, told) {
  try {
    takePuzzle(fromWire(page.choices.model(), text), told);
    return true;
  } catch (error) {
    otherwise(error);
    return false;
  }
}

listen();
start().catch(complain);
