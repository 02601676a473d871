// The time before there is anything to choose from: the service starts, its models are loaded.

import * as api from "./api.js";

const PATIENCE = 30_000; // milliseconds after which some of the models are enough

export const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

/** What is served, once all of it is there, or what the address asks for; `tell(error)` says what is waited for. */
export async function waitForModels(wanted, tell) {
  const end = performance.now() + PATIENCE;
  const names = [wanted.get("model"), wanted.get("rival")].filter(Boolean);
  for (;;) {
    try {
      const served = await api.getModels();
      const models = served.models.filter((model) => model.ready !== false);
      const asked = wanted.has("model") && names.every((name) => models.some((model) => model.name === name));
      const late = models.length && performance.now() > end;
      if (asked || late || models.length === served.models.length) return { ...served, models };
      tell(new Error("The models are being loaded."));
      await pause(700);
    } catch (error) {
      if (error.status !== 0) throw error;
      tell(error); // it may be about to start
      await pause(2000);
    }
  }
}
