// What a puzzle is on this page: a list of tokens, whose form follows from the model's symbols and shape.
// A model is an entry of /v1/models; token 0 is padding, and token k is written symbols[k].

/** How a model's puzzles are drawn: "boxed" (a Sudoku), "maze", "bars" (a row of numbers) or "table". */
export function kindOf(model) {
  const symbols = model.symbols.slice(1);
  if (model.shape.length === 2) {
    if (["#", "S", "G"].every((symbol) => symbols.includes(symbol))) return "maze";
    return boxOf(model) ? "boxed" : "table";
  }
  return symbols.every((symbol) => /^\d+$/.test(symbol)) ? "bars" : "table";
}

/** Rows and columns of a Sudoku's box, or null. */
export function boxOf(model) {
  const match = /^(\d+)x(\d+)$/.exec(model.task_config?.box ?? "");
  if (!match || model.shape.length !== 2) return null;
  const box = { rows: Number(match[1]), columns: Number(match[2]) };
  return box.rows * box.columns === model.shape[0] ? box : null;
}

export function columnsOf(model, tokens) {
  return model.shape.length === 2 ? model.shape[1] : Math.max(tokens.length, 1);
}

/** The token of a cell that nobody has filled in. */
export function blankOf(model) {
  const kind = kindOf(model);
  if (kind === "table") return 0;
  if (kind === "bars") return 1;
  return Math.max(model.symbols.findIndex((symbol, token) => token && (symbol === "." || symbol === " ")), 0);
}

/** The tokens that a person may put down: for a maze all but the path, which is the answer's. */
export function brushesOf(model) {
  const tokens = model.symbols.map((_, token) => token).slice(1);
  const kind = kindOf(model);
  if (kind === "maze") return tokens.filter((token) => !isPath(model, token));
  return kind === "table" ? [...tokens, 0] : tokens;
}

export function isPath(model, token) {
  return kindOf(model) === "maze" && !["", "#", "S", "G", " ", "."].includes(model.symbols[token]);
}

export function emptyPuzzle(model) {
  const length = model.shape.reduce((product, size) => product * size, 1);
  return new Array(length).fill(blankOf(model));
}

/** Whether a cell is part of the puzzle rather than of the answer. */
export function isGiven(model, token) {
  const kind = kindOf(model);
  return token !== blankOf(model) && (kind === "boxed" || (kind === "maze" && !isPath(model, token)));
}

/** What a symbol is called aloud. */
export function spoken(model, token) {
  const symbol = model.symbols[token] ?? "";
  if (kindOf(model) === "maze") return { "#": "wall", S: "start", G: "goal", " ": "open", ".": "open" }[symbol] ?? "path";
  return token === 0 || symbol === "." ? "empty" : symbol === " " ? "space" : symbol;
}

/** Where a cell is, in words. */
export function placeOf(model, at) {
  if (model.shape.length === 1) return `place ${at + 1}`;
  const columns = model.shape[1];
  return `row ${Math.floor(at / columns) + 1}, column ${(at % columns) + 1}`;
}

/** The form in which the service reads a puzzle. */
export function toWire(model, tokens) {
  const kind = kindOf(model);
  const symbols = tokens.map((token) => model.symbols[token]);
  if (kind === "boxed") return symbols.map((symbol) => symbol || ".").join("");
  const columns = columnsOf(model, tokens);
  if (kind === "maze") return rowsOf(symbols, columns).map((row) => row.join("")).join("\n").replaceAll(" ", ".");
  if (model.shape.length === 2) return symbols.map((symbol) => (symbol === "" ? null : symbol));
  let end = symbols.length;
  while (end > 0 && symbols[end - 1] === "") end -= 1;
  return symbols.slice(0, end).map((symbol) => (symbol === "" ? null : symbol));
}

function rowsOf(items, columns) {
  const rows = [];
  for (let at = 0; at < items.length; at += columns) rows.push(items.slice(at, at + columns));
  return rows;
}

/** The tokens of a puzzle as the service or a person writes it; throws an Error that says what is wrong. */
export function fromWire(model, value) {
  if (typeof value === "string" && /^\s*\[/.test(value)) value = JSON.parse(value);
  const kind = kindOf(model);
  const rows = typeof value === "string" ? readText(model, kind, value) : readList(value);
  const cells = model.shape.length === 2 ? intoShape(model, kind, rows) : rows.flat();
  const tokens = cells.map((cell, at) => tokenOf(model, kind, cell, at));
  if (model.shape.length === 2 || kind === "bars") return checkLength(model, tokens);
  const [length] = model.shape;
  if (tokens.length > length) throw new Error(`That has ${tokens.length} symbols; ${length} is the most.`);
  return [...tokens, ...new Array(length - tokens.length).fill(0)];
}

function readText(model, kind, text) {
  if (kind === "boxed") return [[...text.replace(/[\s|+-]/g, "")]];
  if (kind === "maze") return text.replaceAll("\r", "").replace(/^\n+|\n+$/g, "").split("\n").map((row) => [...row]);
  const single = model.symbols.every((symbol) => symbol.length <= 1);
  const lines = model.shape.length === 2 ? text.trim().split(/\r?\n/) : [text.trim()];
  const words = (line) => line.split(/\s*[,;]\s*|\s+/).filter(Boolean);
  return lines.map((line) => (single && !/[\s,;]/.test(line.trim()) ? [...line.trim()] : words(line)));
}

function readList(value) {
  if (!Array.isArray(value)) throw new Error("That is no puzzle.");
  const rows = value.every((row) => Array.isArray(row) || (typeof row === "string" && row.length > 1)) ? value : [value];
  return rows.map((row) => [...row]);
}

function intoShape(model, kind, rows) {
  const [height, width] = model.shape;
  if (rows.length === 1 && rows[0].length === height * width) return rows[0];
  if (rows.length > height || rows.some((row) => row.length > width)) {
    throw new Error(`That is too large; this model takes ${height} × ${width} cells.`);
  }
  if (kind === "boxed" && rows.flat().length !== height * width) {
    throw new Error(`That has ${rows.flat().length} cells; this model takes ${height * width}.`);
  }
  const fill = kind === "table" ? "" : model.symbols[blankOf(model)];
  return Array.from({ length: height }, (_, r) => Array.from({ length: width }, (_, c) => rows[r]?.[c] ?? fill)).flat();
}

function tokenOf(model, kind, cell, at) {
  const text = cell === null || cell === undefined ? "" : String(cell);
  let token = model.symbols.indexOf(text);
  if (token < 0) token = model.symbols.indexOf(text.toUpperCase());
  const blank = kind === "boxed" ? ["", ".", "0", "_", "*"] : kind === "maze" ? ["", " ", "."] : [""];
  if (blank.includes(text)) token = kind === "bars" ? -1 : blankOf(model);
  if (token >= 0) return token;
  const known = brushesOf(model).filter(Boolean).map((known) => model.symbols[known]);
  const list = known.length > 24 ? `${known.slice(0, 24).join(" ")} …` : known.join(" ");
  throw new Error(`“${text}” at place ${at + 1} is no symbol of this task; it knows ${list}.`);
}

function checkLength(model, tokens) {
  const length = model.shape.reduce((product, size) => product * size, 1);
  if (!tokens.length) throw new Error("There is nothing in it.");
  if (tokens.length !== length && !model.any_length) {
    throw new Error(`That has ${tokens.length} cells; this model takes ${length}.`);
  }
  return tokens;
}

/** The cells of a Sudoku that share their digit with another of their row, column or box. */
export function clashes(model, tokens) {
  const box = boxOf(model);
  if (!box) return [];
  const side = model.shape[0];
  const blank = blankOf(model);
  const seen = new Map();
  tokens.forEach((token, cell) => {
    if (token <= blank) return;
    const [row, column] = [Math.floor(cell / side), cell % side];
    const inBox = Math.floor(row / box.rows) * box.rows + Math.floor(column / box.columns);
    for (const unit of [`r${row}`, `c${column}`, `b${inBox}`]) {
      const key = `${unit}:${token}`;
      seen.set(key, [...(seen.get(key) ?? []), cell]);
    }
  });
  return [...new Set([...seen.values()].filter((cells) => cells.length > 1).flat())];
}
