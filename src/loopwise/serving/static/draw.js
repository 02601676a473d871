// Pictures of a board on a canvas: for the small multiples and for the GIF.

import { boxOf, columnsOf, isGiven, isPath, kindOf } from "./puzzle.js";

const SERIF = '"Iowan Old Style", "Palatino Linotype", "URW Palladio L", P052, Palatino, Georgia, serif';

/** The colours of the theme, as the style sheet has them. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["page", "paper", "ink", "muted", "hair", "pen", "pen-two", "wet", "wet-ink", "red", "wall"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** Draw a frame into a square of `size` pixels; `pen` is the colour in which the model writes. `plain`: what is there, not
 * what has changed. */
export function drawBoard(ctx, size, { model, puzzle, frame, time, pen, theme, wrong = [], plain = false }) {
  const kind = kindOf(model);
  const columns = columnsOf(model, frame.tokens);
  const rows = Math.ceil(frame.tokens.length / columns);
  const width = size / columns;
  const height = kind === "bars" ? size * 0.62 : Math.min(size / rows, width, size * 0.2 + width);
  const top = (size - height * rows) / 2;
  const broken = new Set(wrong);
  if (kind !== "bars") {
    ctx.fillStyle = theme.paper;
    ctx.fillRect(0, top, size, height * rows);
  }
  frame.tokens.forEach((token, at) => {
    const cell = {
      x: (at % columns) * width,
      y: top + Math.floor(at / columns) * height,
      width,
      height,
      token,
      given: time === 0 || isGiven(model, puzzle[at]),
      wet: !plain && time > 0 && frame.ages[at] < 4 ? [0.85, 0.45, 0.22, 0.1][frame.ages[at]] : 0,
      fresh: !plain && time > 0 && frame.ages[at] === 0 && pen === theme.pen,
      wrong: broken.has(at),
      ringed: !plain && broken.has(at),
      guessed: !plain && frame.guess?.position === at,
      links: kind === "maze" ? linksOf(model, frame.tokens, at) : [],
    };
    if (kind === "maze") drawMazeCell(ctx, model, cell, pen, theme);
    else if (kind === "bars") drawBar(ctx, model, cell, pen, theme);
    else drawSymbol(ctx, model, cell, pen, theme);
  });
  if (kind !== "bars") drawLines(ctx, model, { size, top, columns, rows, width, height }, theme);
}

/** The directions [dx, dy] in which a maze's path goes on from a cell. */
export function linksOf(model, tokens, at) {
  const columns = columnsOf(model, tokens);
  const column = at % columns;
  const goesOn = (other) => isPath(model, tokens[other]) || "SG".includes(model.symbols[tokens[other]] || "#");
  return [[0, -1], [1, 0], [0, 1], [-1, 0]].filter(([dx, dy]) => {
    const other = at + dx + dy * columns;
    return column + dx >= 0 && column + dx < columns && other >= 0 && other < tokens.length && goesOn(other);
  });
}

function wash(ctx, { x, y, width, height, wet, wrong }, theme) {
  if (!wet) return;
  ctx.globalAlpha = wrong ? wet * 0.45 : wet; // less behind red, which is to be read
  ctx.fillStyle = theme.wet;
  ctx.fillRect(x, y, width, height);
  ctx.globalAlpha = 1;
}

function drawSymbol(ctx, model, cell, pen, theme) {
  wash(ctx, cell, theme);
  const { x, y, width, height, token } = cell;
  const symbol = model.symbols[token];
  if (!token || symbol === ".") return;
  ctx.fillStyle = cell.wrong ? theme.red : cell.given ? theme.ink : cell.fresh ? theme["wet-ink"] : pen;
  if (width < 14) {
    // Too small to be read: a mark that says that there is something.
    const side = width * (cell.given ? 0.5 : 0.62);
    ctx.globalAlpha = cell.given ? 0.9 : 0.75;
    ctx.fillRect(x + (width - side) / 2, y + (height - side) / 2, side, side);
    ctx.globalAlpha = 1;
    return;
  }
  const points = Math.min(height, width) * 0.62 * Math.min(1, 2.2 / symbol.length);
  ctx.font = `${cell.given ? "600" : "italic 400"} ${points}px ${SERIF}`;
  ctx.textAlign = "center";
  ctx.textBaseline = "alphabetic";
  ctx.fillText(symbol, x + width / 2, y + height / 2 + points * 0.34);
  if (cell.guessed) {
    ctx.font = `italic 400 ${points / 2}px ${SERIF}`;
    ctx.fillText("?", x + width * 0.76, y + height / 2 - points * 0.1);
  }
  if (!cell.ringed || width < 30) return;
  ctx.strokeStyle = theme.red;
  ctx.lineWidth = Math.max(width * 0.022, 1);
  ctx.beginPath();
  ctx.ellipse(x + width / 2, y + height / 2, width * 0.25, height * 0.34, 0.3, 0, 2 * Math.PI);
  ctx.stroke();
}

function drawMazeCell(ctx, model, cell, pen, theme) {
  const { x, y, width, height, token } = cell;
  const symbol = model.symbols[token];
  if (symbol === "#") {
    ctx.fillStyle = theme.wall;
    ctx.fillRect(x, y, width + 0.5, height + 0.5);
    return;
  }
  wash(ctx, cell, theme);
  const [cx, cy] = [x + width / 2, y + height / 2];
  const end = symbol === "S" || symbol === "G";
  if (!end && !isPath(model, token)) return;
  ctx.fillStyle = ctx.strokeStyle = end ? theme.ink : cell.wrong ? theme.red : pen;
  if (!end) {
    ctx.lineWidth = width * 0.3;
    for (const [dx, dy] of cell.links) {
      ctx.beginPath();
      ctx.moveTo(cx, cy);
      ctx.lineTo(cx + dx * width * 0.52, cy + dy * height * 0.52);
      ctx.stroke();
    }
  }
  ctx.beginPath();
  ctx.arc(cx, cy, width * (end ? 0.46 : 0.24), 0, 2 * Math.PI);
  ctx.fill();
  if (!end || width < 9) return;
  ctx.fillStyle = theme.paper;
  ctx.font = `600 ${width * 0.62}px ${SERIF}`;
  ctx.textAlign = "center";
  ctx.textBaseline = "alphabetic";
  ctx.fillText(symbol, cx, cy + width * 0.21);
}

function drawBar(ctx, model, cell, pen, theme) {
  const { x, y, width, height, token } = cell;
  const share = (token - 1) / Math.max(model.symbols.length - 2, 1);
  const tall = Math.max(height * 0.94 * share, height * 0.012);
  const gap = Math.min(width * 0.14, 4);
  ctx.fillStyle = cell.wrong ? theme.red : cell.given ? theme.ink : pen;
  ctx.fillRect(x + gap, y + height - tall, width - 2 * gap, tall);
  if (!cell.wet) return;
  ctx.globalAlpha = cell.wet * 0.7;
  ctx.fillStyle = theme.wet;
  ctx.fillRect(x + gap, y + height - tall, width - 2 * gap, tall);
  ctx.globalAlpha = 1;
}

function drawLines(ctx, model, { size, top, columns, rows, width, height }, theme) {
  const box = boxOf(model);
  const thin = kindOf(model) === "maze" ? 0 : Math.max(size / 700, 0.4);
  const line = (x1, y1, x2, y2, strong) => {
    if (!strong && !thin) return;
    ctx.strokeStyle = strong ? theme.ink : theme.hair;
    ctx.lineWidth = strong ? Math.max(size / 280, 1) : thin;
    ctx.beginPath();
    ctx.moveTo(x1, y1);
    ctx.lineTo(x2, y2);
    ctx.stroke();
  };
  for (const strong of [false, true]) {
    for (let c = 1; c < columns; c += 1) {
      if (strong === Boolean(box && c % box.columns === 0)) line(c * width, top, c * width, top + rows * height, strong);
    }
    for (let r = 1; r < rows; r += 1) {
      if (strong === Boolean(box && r % box.rows === 0)) line(0, top + r * height, size, top + r * height, strong);
    }
  }
  ctx.strokeStyle = theme.ink;
  ctx.lineWidth = Math.max(size / 200, 1);
  const inset = ctx.lineWidth / 2;
  ctx.strokeRect(inset, top + inset, size - 2 * inset, rows * height - 2 * inset);
}
