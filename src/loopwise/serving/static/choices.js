// The sentence at the top: which task, which models, how long, from how many starts.

import { count } from "./run.js";

const STEPS = [8, 16, 32, 64, 128, 1024];
const USUAL = 64;
const SEARCH = 1024;

/** Fill the sentence's lists, as the address `wanted` says, and keep them in step with each other. */
export function chooser({ models, limits }, tasks, wanted, { changed }) {
  const list = (id) => document.getElementById(id);
  const [task, model, rival, stop, steps, starts] = ["task", "model", "rival", "stop", "steps", "starts"].map(list);
  const most = limits?.max_steps ?? Infinity;
  const named = (name) => models.find((one) => one.name === name);
  const names = [...new Set(models.map((one) => one.task))];
  if (!names.length) throw new Error("This service has no model yet.");

  const fill = (select, options, chosen) => {
    select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
    if (options.some(([value]) => String(value) === String(chosen))) select.value = chosen;
  };
  const fillModels = (chosen) => {
    const own = models.filter((one) => one.task === task.value);
    fill(model, own.map((one) => [one.name, one.name]), chosen);
    fillRivals(rival.value);
    const summary = tasks.find((one) => one.name === task.value)?.summary;
    task.title = summary ?? "";
  };
  const fillRivals = (chosen) => {
    const now = named(model.value);
    const form = (one) => JSON.stringify([one.task, one.symbols, one.any_length && now.any_length ? 0 : one.shape]);
    const others = models.filter((one) => one !== now && form(one) === form(now));
    fill(rival, [["", "no other"], ...others.map((one) => [one.name, one.name])], chosen);
    list("beside").hidden = others.length === 0;
  };
  const fillSteps = (chosen) => {
    const trained = named(model.value).trained_steps ?? 16;
    const wish = Math.min(Math.max(Math.trunc(chosen) || USUAL, 1), most);
    const all = [...new Set([...STEPS, trained, wish])].filter((n) => n <= most).sort((a, b) => a - b);
    fill(steps, all.map((n) => [n, n === trained ? `${n} steps, as trained` : count(n, "step")]), wish);
  };

  /** A search has many steps and starts, and no belief of its own. */
  const suit = (search) => {
    stop.value = search ? "whole" : "solved";
    starts.value = search ? named(model.value).default_starts : 1;
    fillSteps(search ? SEARCH : USUAL);
  };
  const isSearch = () => (named(model.value).default_starts ?? 1) > 1;

  for (const option of starts.options) option.hidden = option.disabled = option.value > (limits?.max_starts ?? Infinity);
  const first = named(wanted.get("model")) ?? models[0];
  fill(task, names.map((name) => [name, name.replaceAll("-", " ")]), first.task);
  fillModels(first.name);
  fillRivals(wanted.get("rival"));
  suit(isSearch());
  if (wanted.get("steps")) fillSteps(wanted.get("steps"));
  for (const [select, key] of [[stop, "stop"], [starts, "starts"]]) {
    if ([...select.options].some((option) => option.value === wanted.get(key))) select.value = wanted.get(key);
  }

  let usual = named(model.value).default_starts;
  const modelChanged = () => {
    if (named(model.value).default_starts === usual) fillSteps(steps.value);
    else suit(isSearch());
    usual = named(model.value).default_starts;
    changed("model");
  };
  task.addEventListener("change", () => {
    fillModels();
    modelChanged();
  });
  model.addEventListener("change", () => {
    fillRivals(rival.value);
    modelChanged();
  });
  rival.addEventListener("change", () => changed("model"));
  for (const select of [stop, steps, starts]) select.addEventListener("change", () => changed("budget"));

  return {
    most, // steps that the service allows
    model: () => named(model.value),
    models: () => [named(model.value), named(rival.value)].filter(Boolean),
    starts: () => Number(starts.value),
    /** The budget as the service reads it. */
    budget: () => ({ solved: "verified|halted|", whole: "verified|", sure: "halted|", end: "" })[stop.value] + `steps=${steps.value}`,
    /** Ask for so many steps, whatever the model believes. */
    extend: (number) => {
      stop.value = "end";
      fillSteps(number);
    },
    asText: () => ({
      model: model.value,
      ...(rival.value && { rival: rival.value }),
      stop: stop.value,
      steps: steps.value,
      starts: starts.value,
    }),
  };
}
