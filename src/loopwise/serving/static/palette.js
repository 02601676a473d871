// The symbols beside the board: to write one into the current cell, or to paint with.

import { brushesOf, kindOf, spoken } from "./puzzle.js";

const HINTS = {
  boxed: "Choose a cell, then type a symbol or press one here.",
  maze: "Press one, then draw. Or move with the arrow keys and type # . S G.",
  bars: "Drag a bar, or choose a place and type a number.",
  table: "Press a symbol, then paint. Or choose a cell and type.",
};

const LEGENDS = {
  boxed: "Print is the puzzle, italics are the network’s proposal: bright where it has just changed, ringed in red where it breaks a rule. The line under a cell is as long as the network is sure.",
  maze: "Blue is the way that the network proposes, bright where it has just changed, red where it is wrong. The dots are as large as the network is sure.",
  bars: "Outlines are the puzzle, bars the network’s proposal: bright where it has just changed, red where it is wrong.",
  table: "Print is the puzzle, italics are the network’s proposal: bright where it has just changed. The line under a cell is as long as the network is sure.",
};

/** Fill the palette for a model. `hooks`: write(token), brush(token or null), lengthen(by). */
export function buildPalette(root, hint, legend, model, hooks) {
  const kind = kindOf(model);
  const paints = model.shape.length === 2 && kind !== "boxed";
  const tokens = kind === "bars" ? [] : brushesOf(model);
  root.hidden = tokens.length > 40;
  root.replaceChildren(...tokens.map((token) => symbolButton(root, model, token, paints, hooks)));
  if (kind === "bars" && model.any_length) {
    for (const [text, by] of [["shorter", -4], ["longer", 4]]) {
      const button = makeButton(text, "wide");
      button.addEventListener("click", () => hooks.lengthen(by));
      root.append(button);
    }
  }
  hint.textContent = kind === "table" && !paints ? "Choose a place, then type a symbol." : HINTS[kind];
  legend.textContent = LEGENDS[kind];
}

function makeButton(text, className = "") {
  return Object.assign(document.createElement("button"), { type: "button", textContent: text, className });
}

function symbolButton(root, model, token, paints, hooks) {
  const kind = kindOf(model);
  const blank = token === 0 || (kind === "boxed" && model.symbols[token] === ".");
  const text = kind === "maze" ? spoken(model, token) : blank ? "erase" : model.symbols[token];
  const button = makeButton(text, blank ? "wide" : "");
  button.setAttribute("aria-label", `${paints ? "Paint" : "Write"}: ${spoken(model, token)}`);
  if (!paints) {
    button.addEventListener("click", () => hooks.write(token));
    return button;
  }
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    for (const other of root.children) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", on);
    hooks.brush(on ? token : null);
  });
  return button;
}
