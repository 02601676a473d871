// What people take home: the whole run as JSON, or as a moving picture.

import { colours, drawBoard } from "./draw.js";
import { Gif } from "./gif.js";
import { clashes, toWire } from "./puzzle.js";
import { count } from "./run.js";
import { drawTimeline, heightOf } from "./timeline.js";

const BOARD = 400; // pixels
const EDGE = 32;
const HEAD = 40;
const MOST_FRAMES = 64;

/** Everything that the service said about these runs. */
export function asJson(runs, request) {
  const frames = (track) => track.frames.slice(1).map((frame, index) => ({
    step: index + 1,
    tokens: frame.tokens,
    changed: frame.changed,
    guess: frame.guess,
    halt_probability: frame.belief,
    residual: frame.residual,
    confidence: frame.confidence,
    violations: frame.violations,
  }));
  const one = (run) => ({
    model: run.model.name,
    task: run.model.task,
    symbols: run.model.symbols,
    puzzle: toWire(run.model, run.puzzle),
    request,
    result: run.result,
    starts: run.tracks.map(frames),
  });
  return new Blob([JSON.stringify({ loopwise: 1, runs: runs.map(one) }, null, 1)], { type: "application/json" });
}

/** The runs as an animated GIF at so many steps a second; `progress(share)` is called as it is made. */
export async function asGif(runs, length, speed, progress) {
  const theme = colours();
  const width = EDGE + runs.length * (BOARD + EDGE);
  const strip = heightOf(runs.length);
  const height = HEAD + BOARD + EDGE + strip + EDGE / 2;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const ctx = canvas.getContext("2d", { willReadFrequently: true });
  const names = ["page", "paper", "ink", "muted", "hair", "pen", "pen-two", "wet", "wet-ink", "red", "wall"];
  const gif = new Gif(width, height, names.map((name) => channels(ctx, theme[name])));
  const last = Math.max(...runs.map((run) => run.track.last));
  const stride = Math.ceil(last / MOST_FRAMES);
  const axis = Math.max(last, Math.min(length, last + 4));
  for (let time = 0; time <= last; time = time === last ? last + 1 : Math.min(time + stride, last)) {
    drawPicture(ctx, { runs, time, length: axis, theme, width, height });
    const hold = time === 0 ? 900 : time === last ? 2600 : 1000 / Math.min(speed, 20);
    gif.add(ctx.getImageData(0, 0, width, height).data, hold);
  }
  const bytes = await gif.bytes(async (share) => {
    progress(share);
    await new Promise((done) => setTimeout(done)); // lets the page stay alive
  });
  return new Blob([bytes], { type: "image/gif" });
}

function drawPicture(ctx, { runs, time, length, theme, width, height }) {
  const font = getComputedStyle(document.body).fontFamily;
  ctx.fillStyle = theme.page;
  ctx.fillRect(0, 0, width, height);
  runs.forEach((run, index) => {
    const frame = run.track.at(time);
    const pen = index ? theme["pen-two"] : theme.pen;
    const left = EDGE + index * (BOARD + EDGE);
    ctx.save();
    ctx.translate(left, HEAD);
    const wrong = time ? frame.violations ?? [] : clashes(run.model, run.puzzle);
    drawBoard(ctx, BOARD, { model: run.model, puzzle: run.puzzle, frame, time, pen, theme, wrong });
    ctx.restore();
    ctx.font = `13px ${font}`;
    ctx.textBaseline = "alphabetic";
    ctx.fillStyle = theme.muted;
    ctx.textAlign = "left";
    ctx.fillText(index ? run.model.name : `loopwise · ${run.model.name}`, left, HEAD - 13);
    const solved = run.answered(time) && run.result.verified;
    ctx.fillStyle = solved ? pen : theme.muted;
    ctx.textAlign = "right";
    const words = solved ? `solved in ${count(run.solvedAt, "step")}` : `step ${Math.min(time, run.track.last)}`;
    ctx.fillText(words, left + BOARD, HEAD - 13);
  });
  ctx.save();
  ctx.translate(EDGE, HEAD + BOARD + EDGE * 0.75);
  drawTimeline(ctx, width - 2 * EDGE, { runs, time, length, theme, font });
  ctx.restore();
}

/** A colour of the style sheet as [r, g, b]. */
function channels(ctx, colour) {
  ctx.fillStyle = colour;
  ctx.fillRect(0, 0, 1, 1);
  return [...ctx.getImageData(0, 0, 1, 1).data.slice(0, 3)];
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
