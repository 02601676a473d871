// The timeline: the model's belief, how much its state moves, and which cells change, step by step; a slider too.

import { colours } from "./draw.js";

const LABEL = 16; // pixels above each strip
const CURVE = 44;
const ROLL = 72;
const ROLL_OF_TWO = 58;
const WORDS = 190; // pixels that the first strip's label may take
const GAP = 10;
const AXIS = 22;

/** The height in pixels of the drawing for so many runs. */
export function heightOf(runs) {
  const roll = runs > 1 ? ROLL_OF_TWO : ROLL;
  return 2 * (LABEL + CURVE + GAP) + runs * roll + LABEL + (runs - 1) * 6 + AXIS;
}

/** Draw the runs up to a time. `length` is the number of steps that the axis has room for. */
export function drawTimeline(ctx, width, { runs, time, length, theme, font }) {
  const column = width / (length + 1);
  const pens = [theme.pen, theme["pen-two"]];
  const x = (step) => (step + 0.5) * column;
  const sketch = { ctx, width, column, runs, time, pens, theme, x, font };
  let y = 0;
  const foot = heightOf(runs.length) - AXIS;
  const depth = markDepth(sketch, length, foot);
  playhead(sketch, foot);
  if (depth) nameDepth(sketch, depth);
  y += label(sketch, y, "belief that it is right", (frame) => percent(frame.belief));
  curve(sketch, y, (frame) => frame.belief);
  y += CURVE + GAP;
  y += label(sketch, y, "movement of the state", (frame) => frame.residual?.toPrecision(2));
  const most = largest(runs);
  curve(sketch, y, (frame) => frame.residual == null ? null : frame.residual / most);
  y += CURVE + GAP;
  y += label(sketch, y, "cells that change", (frame) => frame.changed.length);
  const roll = runs.length > 1 ? ROLL_OF_TWO : ROLL;
  runs.forEach((run, index) => {
    drawRoll(sketch, y, roll, run, pens[index]);
    y += roll + (index < runs.length - 1 ? 6 : 0);
  });
  axis(sketch, y, length);
}

/** Text that stays readable where a line crosses it. */
function write({ ctx, theme }, text, x, y, colour) {
  ctx.strokeStyle = theme.page;
  ctx.lineWidth = 5;
  ctx.lineJoin = "round";
  ctx.strokeText(text, x, y);
  ctx.fillStyle = colour;
  ctx.fillText(text, x, y);
}

function percent(value) {
  return value === undefined ? undefined : `${Math.round(value * 100)} %`;
}

/** The largest movement of all starts, to which the others are drawn. */
function largest(runs) {
  const frames = runs.flatMap((run) => run.tracks.flatMap((track) => track.frames));
  return frames.reduce((most, { residual }) => Math.max(most, residual ?? 0), 0) || 1;
}

/** Shade the steps beyond the depth that the model was trained with: from where to where, or null. */
function markDepth({ ctx, x, column, runs, theme }, length, bottom) {
  const trained = runs[0]?.model.trained_steps;
  if (!trained || trained >= length) return null;
  const from = x(trained) + column / 2;
  ctx.fillStyle = theme.wet;
  ctx.globalAlpha = 0.16;
  const to = x(length) + column / 2;
  ctx.fillRect(from, 0, to - from, bottom);
  ctx.globalAlpha = 1;
  return [from, to];
}

function nameDepth({ ctx, theme, font }, [from, to]) {
  const [text, left] = ["beyond training", Math.max(from + 6, WORDS)];
  ctx.font = `11px ${font}`;
  ctx.textAlign = "left";
  ctx.textBaseline = "alphabetic";
  ctx.fillStyle = theme.muted;
  if (left + ctx.measureText(text).width + 6 <= to) ctx.fillText(text, left, 11);
}

function label(sketch, y, text, value) {
  const { ctx, runs, time, pens, theme, font } = sketch;
  ctx.font = `11px ${font}`;
  ctx.textAlign = "left";
  ctx.textBaseline = "alphabetic";
  write(sketch, text, 0, y + 11, theme.muted);
  let left = ctx.measureText(text).width + 8;
  ctx.font = `600 11px ${font}`;
  runs.forEach((run, index) => {
    const shown = time > 0 && run.track.last > 0 ? value(run.track.at(time)) : undefined;
    if (shown === undefined || shown === null) return;
    write(sketch, shown, left, y + 11, pens[index]);
    left += ctx.measureText(shown).width + 10;
  });
  return LABEL;
}

function curve({ ctx, width, runs, time, pens, theme, x }, y, value) {
  ctx.strokeStyle = theme.hair;
  ctx.lineWidth = 1;
  ctx.beginPath();
  ctx.moveTo(0, y + CURVE - 0.5);
  ctx.lineTo(width, y + CURVE - 0.5);
  ctx.stroke();
  runs.forEach((run, index) => {
    const points = [];
    run.track.frames.forEach((frame, step) => {
      const share = step ? value(frame) : null;
      if (share !== null && share !== undefined) points.push([x(step), y + CURVE - 1 - share * (CURVE - 4), step]);
    });
    for (const other of run.tracks.filter((track) => track !== run.track)) {
      const faint = other.frames.map((frame, step) => [x(step), step ? value(frame) : null]);
      const known = faint.filter(([, share]) => share !== null && share !== undefined);
      ctx.globalAlpha = 0.35;
      stroke(ctx, known.map(([px, share]) => [px, y + CURVE - 1 - share * (CURVE - 4)]), pens[index], 1);
    }
    const past = points.filter(([, , step]) => step <= time);
    ctx.globalAlpha = 0.5;
    stroke(ctx, points, pens[index], 1.25);
    if (past.length > 1 && index === 0) fill(ctx, past, y + CURVE - 1, pens[index]);
    ctx.globalAlpha = 1;
    stroke(ctx, past, pens[index], 1.75);
    const now = past.at(-1);
    if (now) {
      ctx.fillStyle = pens[index];
      ctx.beginPath();
      ctx.arc(now[0], now[1], 3, 0, 2 * Math.PI);
      ctx.fill();
    }
  });
}

function stroke(ctx, points, colour, width) {
  ctx.strokeStyle = colour;
  ctx.lineWidth = width;
  ctx.lineJoin = "round";
  ctx.beginPath();
  points.forEach(([px, py], index) => (index ? ctx.lineTo(px, py) : ctx.moveTo(px, py)));
  ctx.stroke();
}

function fill(ctx, points, bottom, colour) {
  ctx.globalAlpha = 0.12;
  ctx.fillStyle = colour;
  ctx.beginPath();
  ctx.moveTo(points[0][0], bottom);
  for (const [px, py] of points) ctx.lineTo(px, py);
  ctx.lineTo(points.at(-1)[0], bottom);
  ctx.fill();
}

/** One column a step, one line a cell, ink where a cell has changed. */
function drawRoll({ ctx, column, time, theme, x }, y, height, run, pen) {
  const lines = Math.min(run.puzzle.length, Math.floor(height));
  const tall = height / lines;
  const wide = Math.max(column - 1, 1);
  ctx.strokeStyle = theme.hair;
  run.track.frames.forEach((frame, step) => {
    if (!step) return;
    const ink = new Float32Array(lines);
    for (const cell of frame.changed) ink[Math.floor((cell * lines) / run.puzzle.length)] += lines / run.puzzle.length;
    ctx.fillStyle = pen;
    ink.forEach((share, line) => {
      if (!share) return;
      ctx.globalAlpha = Math.min(0.25 + 0.75 * Math.sqrt(share), 1) * (step <= time ? 1 : 0.22) * (step === 1 ? 0.45 : 1);
      ctx.fillRect(x(step) - wide / 2, y + line * tall, wide, Math.max(tall - (tall > 3 ? 0.75 : 0), 0.75));
    });
  });
  ctx.globalAlpha = 1;
}

function axis({ ctx, x, time, theme, font, column }, y, length) {
  const every = [1, 2, 4, 8, 16, 32, 64, 128, 256].find((step) => step * column > 34) ?? 512;
  ctx.font = `11px ${font}`;
  ctx.fillStyle = theme.muted;
  ctx.textAlign = "center";
  ctx.textBaseline = "alphabetic";
  for (let step = every; step <= length; step += every) {
    if (Math.abs(x(step) - x(time)) > 22) ctx.fillText(step, x(step), y + AXIS - 6);
  }
}

/** A line through all strips, with the number of the step at its foot. */
function playhead({ ctx, x, time, theme, font, width }, bottom) {
  const at = x(time);
  ctx.strokeStyle = ctx.fillStyle = theme.ink;
  ctx.lineWidth = 1;
  ctx.beginPath();
  ctx.moveTo(at, 2);
  ctx.lineTo(at, bottom + 4);
  ctx.stroke();
  const half = 15;
  const middle = Math.max(half, Math.min(at, width - half));
  ctx.beginPath();
  ctx.roundRect(middle - half, bottom + 4, 2 * half, AXIS - 4, 4);
  ctx.fill();
  ctx.font = `600 11px ${font}`;
  ctx.textAlign = "center";
  ctx.fillStyle = theme.page;
  ctx.fillText(time, middle, bottom + AXIS - 5);
}

export class Timeline {
  /** `seek(time)` goes to a step; `now()` is the step that is current, drawn or not. */
  constructor(root, seek, now) {
    this.root = root;
    this.canvas = root.querySelector("canvas");
    this.view = { runs: [], time: 0, length: 1 };
    const point = (event) => {
      const box = this.canvas.getBoundingClientRect();
      seek(Math.floor(((event.clientX - box.left) / box.width) * (this.view.length + 1)));
    };
    root.addEventListener("pointerdown", (event) => {
      root.setPointerCapture(event.pointerId);
      point(event);
    });
    root.addEventListener("pointermove", (event) => root.hasPointerCapture(event.pointerId) && point(event));
    root.addEventListener("keydown", (event) => {
      const [time, { reached }] = [now(), this.view];
      const to = {
        ArrowRight: time + 1, ArrowUp: time + 1, ArrowLeft: time - 1, ArrowDown: time - 1,
        PageUp: time + 8, PageDown: time - 8, Home: 0, End: reached,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      seek(to);
    });
    new ResizeObserver(() => this.draw()).observe(root);
  }

  /** Show runs at a time; `reached` is the last step there is, `words` what happened at this one. */
  show(view) {
    this.view = view;
    this.root.setAttribute("aria-valuemax", view.reached);
    this.root.setAttribute("aria-valuenow", view.time);
    this.root.setAttribute("aria-valuetext", `step ${view.time} of ${view.reached}. ${view.words}`);
    this.draw();
  }

  draw() {
    const { canvas, view } = this;
    const width = this.root.clientWidth;
    if (!width || !view.runs.length) return;
    const height = heightOf(view.runs.length);
    const ratio = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
      canvas.style.height = `${height}px`;
    }
    const ctx = canvas.getContext("2d");
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, width, height);
    drawTimeline(ctx, width, { ...view, theme: colours(), font: getComputedStyle(this.root).fontFamily });
  }
}
