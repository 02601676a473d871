// One model at work: its board, what it did in words, and all its starts as small multiples.

import { Board } from "./board.js";
import { colours, drawBoard } from "./draw.js";
import { clashes } from "./puzzle.js";
import { count } from "./run.js";

const MINI = 96; // pixels of a small multiple, before the screen's own ratio

export class Side {
  /** `hooks` are the board's, and chosen(), called when a person has picked another start. */
  constructor(template, index, hooks) {
    this.root = template.content.firstElementChild.cloneNode(true);
    this.root.dataset.side = index;
    this.index = index;
    this.hooks = hooks;
    const find = (name) => this.root.querySelector(`.${name}`);
    [this.name, this.count, this.phrase, this.minis] = ["name", "count", "phrase", "minis"].map(find);
    this.board = new Board(find("board"), hooks);
  }

  build(model, length) {
    this.model = model;
    this.board.build(model, length);
    const size = Intl.NumberFormat("en", { notation: "compact" }).format(model.parameters ?? 0);
    this.name.textContent = `${model.name} · ${model.reasoner} · ${size} parameters`;
  }

  /** Show a run at a time. */
  show(run, time) {
    const frame = run.track.at(time);
    const wrong = time === 0 ? clashes(this.model, run.puzzle) : frame.violations ?? [];
    this.board.show(run.puzzle, frame, time, wrong);
    const at = Math.min(time, run.track.last);
    const ended = run.ended(time);
    this.root.dataset.state = !ended || !run.answered(time) ? "thinking" : run.result.verified ? "solved" : "ended";
    const [number, beside] = this.count.children;
    number.textContent = at;
    beside.textContent = run.track.last ? `of ${count(run.track.last, "step")}` : "";
    this.count.hidden = !run.track.last;
    this.phrase.textContent = run.phrase(time);
    this.#showMinis(run, time);
  }

  #showMinis(run, time) {
    const { tracks } = run;
    const many = tracks.length > 1 && run.length > 0;
    this.minis.hidden = !many;
    this.minis.parentElement.dataset.many = many;
    this.minis.style.setProperty("--columns", Math.ceil(Math.sqrt(tracks.length)));
    if (!many) return;
    if (this.minis.children.length !== tracks.length) {
      this.minis.replaceChildren(...tracks.map((_, start) => this.#mini(start)));
    }
    this.run = run;
    const theme = colours();
    const pen = this.index ? theme["pen-two"] : theme.pen;
    tracks.forEach((track, start) => this.#draw(this.minis.children[start], { run, track, start, time, theme, pen }));
  }

  #mini(start) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(document.createElement("canvas"), document.createElement("small"));
    button.firstChild.width = button.firstChild.height = MINI * Math.min(window.devicePixelRatio || 1, 2);
    button.addEventListener("click", () => {
      this.run.pick(start);
      this.hooks.chosen();
    });
    return button;
  }

  #draw(button, { run, track, start, time, theme, pen }) {
    const frame = track.at(time);
    const best = run.result && (run.result.start ?? 0) === start && time >= track.last;
    button.setAttribute("aria-pressed", run.chosen === start);
    button.classList.toggle("best", Boolean(best));
    const step = Math.min(time, track.last);
    button.dataset.solved = Boolean(frame.verified);
    button.lastChild.textContent = step;
    const said = [`Start ${start + 1}, step ${step}`, frame.verified ? "solved" : "", best ? "the answer" : ""];
    button.setAttribute("aria-label", said.filter(Boolean).join(", "));
    const signature = `${step} ${theme.page} ${pen} ${start} ${run.puzzle.length}`;
    if (button.frame === frame && button.signature === signature) return;
    [button.frame, button.signature] = [frame, signature];
    const canvas = button.firstChild;
    const ctx = canvas.getContext("2d");
    ctx.clearRect(0, 0, canvas.width, canvas.height);
    const { puzzle } = run;
    const wrong = frame.violations ?? [];
    drawBoard(ctx, canvas.width, { model: this.model, puzzle, frame, time, pen, theme, wrong, plain: true });
  }
}
