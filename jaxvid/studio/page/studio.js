// SPDX-License-Identifier: Apache-2.0
// The page: a form that asks, a line of events that tells, and what is being looked at.

import { by, make } from "./draw.js";
import { Editor } from "./editor.js";
import { Gallery } from "./gallery.js";
import { Result } from "./result.js";
import { isOpen, Runs } from "./runs.js";
import { get, post } from "./server.js";

const DRAFT = "jaxvid studio draft";
const complain = (text) => {
  by("error").textContent = text;
};

const editor = new Editor(keep);
const result = new Result();
const runs = new Runs(watch, complain);
const gallery = new Gallery(show, write);
let model = null;
let followed = null; // the run whose video is to be shown when it is done
let heardLast = [];
const pictures = new Map(); // of runs that go on, as they came

function show(entry) {
  followed = null;
  gallery.mark(entry.name);
  result.showVideo(entry);
  by("result").scrollIntoView({ block: "nearest" });
}

/** Looks at a run that waits or goes on, from its beginning. */
function watch(job) {
  followed = job.number;
  gallery.mark(null);
  result.showJob(job);
  for (const picture of pictures.get(job.number) ?? []) result.preview(picture);
}

/** Fills the form with a story and how it was made. */
function write(recipe) {
  by("seconds").value = recipe.seconds;
  for (const name of ["seed", "steps", "guidance", "negative"]) by(name).value = recipe[name] ?? "";
  if (model.methods.some((method) => method.name === recipe.method && method.fits)) by("method").value = recipe.method;
  chooseMethod(recipe.options);
  editor.set(recipe.story, recipe.seconds);
  keep();
  by("form").scrollIntoView({ block: "nearest" });
}

const numberIn = (id) => (by(id).value.trim() === "" ? undefined : Number(by(id).value));

function asked() {
  const options = {};
  for (const field of by("options").querySelectorAll("input")) if (field.value.trim()) options[field.name] = field.value.trim();
  return {
    story: editor.story, seconds: numberIn("seconds"), method: by("method").value, seed: numberIn("seed"),
    steps: numberIn("steps"), guidance: numberIn("guidance"), negative: by("negative").value.trim() || undefined, options,
  };
}

function keep() {
  try {
    localStorage.setItem(DRAFT, JSON.stringify(asked()));
  } catch { /* a browser that keeps nothing */ }
}

function kept() {
  try {
    const draft = JSON.parse(localStorage.getItem(DRAFT));
    const fine = draft.story.length && draft.story.every(([at, text]) => at >= 0 && typeof text === "string");
    return fine && draft.seconds > 0 ? draft : null;
  } catch {
    return null;
  }
}

function chooseMethod(values = {}) {
  const method = model.methods.find((one) => one.name === by("method").value);
  by("method-says").textContent = `${method.summary.replaceAll("`", "")}.`;
  const fields = Object.entries(method.options).map(([name, value]) => {
    const field = make("input", { type: "text", name, placeholder: String(value ?? ""), value: values[name] ?? "", autocomplete: "off" });
    return make("label", {}, name.replaceAll("_", " "), field);
  });
  by("options").hidden = !fields.length;
  by("options").querySelector(".settings").replaceChildren(...fields);
}

function heard(jobs) {
  heardLast = jobs;
  runs.show(jobs);
  for (const job of jobs) if (!isOpen(job)) pictures.delete(job.number);
  const mine = jobs.find((job) => job.number === followed);
  const going = jobs.find((job) => job.status === "running");
  if (followed === null && going && !result.name) followed = going.number; // a page that came, or came again
  const watched = mine ?? jobs.find((job) => job.number === followed);
  if (!watched) return;
  if (isOpen(watched) && !watched.file) {
    if (result.job !== watched.number) watch(watched);
    return;
  }
  followed = null;
  if (watched.status === "cancelled") result.ended("The run was cancelled; no video was written.");
  if (watched.status === "failed") result.ended(watched.error);
  if (watched.file) gallery.refresh().then(() => gallery.find(watched.file)).then((entry) => entry && show(entry));
}

function listen() {
  const events = new EventSource("/api/events");
  let ended = null;
  events.addEventListener("jobs", (event) => {
    const jobs = JSON.parse(event.data);
    heard(jobs);
    const now = jobs.filter((job) => job.status === "done").length;
    if (now !== ended) gallery.refresh();
    ended = now;
  });
  events.addEventListener("preview", (event) => {
    const picture = JSON.parse(event.data);
    pictures.set(picture.job, [...(pictures.get(picture.job) ?? []), picture]);
    result.preview(picture);
  });
  events.addEventListener("open", () => { by("connection").textContent = ""; });
  events.addEventListener("error", () => { by("connection").textContent = "No connection; trying again."; });
}

async function begin() {
  model = await get("/api/model");
  const where = model.name.split("/").at(-1);
  by("about").textContent = `Model ${where}, ${model.width}×${model.height}, ${model.fps} frames per second`;
  by("method").replaceChildren(...model.methods.map(({ name, fits, needs }) =>
    make("option", { value: name, disabled: !fits, textContent: fits ? name : `${name} (needs ${needs})` })));
  by("method").value = model.defaults.method;
  by("steps").placeholder = model.defaults.steps;
  by("guidance").placeholder = model.defaults.guidance;
  if (model.most) by("seconds").max = model.most;
  by("seconds").value = model.defaults.seconds;
  const draft = kept();
  if (draft) write(draft);
  else {
    chooseMethod();
    editor.set([[0, ""]], model.defaults.seconds);
  }
  await gallery.refresh();
  listen();
}

by("form").addEventListener("input", (event) => {
  if (event.target === by("method")) chooseMethod();
  if (event.target === by("seconds")) editor.setSeconds(numberIn("seconds"));
  keep();
});
by("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  complain("");
  by("make").disabled = true;
  try {
    const job = await post("/api/jobs", asked());
    watch(job);
    heard(heardLast); // it may be over already
  } catch (error) {
    complain(error.message);
  } finally {
    by("make").disabled = false;
  }
});
by("dice").addEventListener("click", () => {
  by("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  keep();
});
by("again").addEventListener("click", () => write(gallery.find(result.name).recipe));
by("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(by("command").textContent);
    by("copy").textContent = "Copied";
  } catch { // it is selected, to be copied by hand
    getSelection().selectAllChildren(by("command"));
    by("copy").textContent = "Selected";
  }
  setTimeout(() => { by("copy").textContent = "Copy the command"; }, 2000);
});

begin().catch((error) => complain(error.message));
