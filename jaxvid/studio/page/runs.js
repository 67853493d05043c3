// SPDX-License-Identifier: Apache-2.0
// The runs that wait or go on: how far each stage is, and a way to end them.

import { by, clock, inShort, make } from "./draw.js";
import { post } from "./server.js";

const OPEN = ["waiting", "running", "reading"];
const WORDS = { waiting: "waits for its turn", running: "begins", reading: "the reader is looking at the file" };
export const isOpen = (job) => OPEN.includes(job.status);

export class Runs {
  /** `watch(job)` when one is to be looked at, `complain(text)` when it cannot be ended. */
  constructor(watch, complain) {
    this.rows = new Map();
    this.watch = watch;
    this.complain = complain;
  }

  show(jobs) {
    const open = jobs.filter(isOpen);
    for (const [number, row] of this.rows) {
      if (open.some((job) => job.number === number)) continue;
      row.element.remove();
      this.rows.delete(number);
    }
    for (const job of open) {
      if (!this.rows.has(job.number)) this.add(job);
      this.update(this.rows.get(job.number), job);
    }
  }

  add(job) {
    const words = `${inShort(job.asked.story)}, ${clock(job.asked.seconds)}`;
    const said = make("button", { type: "button", className: "said", textContent: words, title: "Watch this run" });
    said.addEventListener("click", () => this.watch(job));
    const cancel = make("button", { type: "button", className: "cancel", textContent: "Cancel" });
    cancel.setAttribute("aria-label", `Cancel run ${job.number}`);
    cancel.addEventListener("click", () => {
      cancel.disabled = true;
      post(`/api/jobs/${job.number}/cancel`, {}).catch((error) => this.complain(error.message));
    });
    const status = make("span", { className: "hint" });
    const element = make("li", {}, said, cancel, status);
    this.rows.set(job.number, { element, cancel, status, stages: new Map() });
    by("runs").append(element);
  }

  update(row, job) {
    const begun = Object.keys(job.stages).length && job.status === "running";
    row.status.textContent = job.stopping ? "ends after this step" : begun ? "" : WORDS[job.status];
    row.status.hidden = !row.status.textContent;
    row.cancel.disabled = job.stopping || job.status === "reading";
    for (const [name, stage] of Object.entries(job.stages)) {
      if (name === "text") continue; // over in a moment
      if (!row.stages.has(name)) row.stages.set(name, this.stage(row, name));
      const { bar, words } = row.stages.get(name);
      [bar.max, bar.value] = [stage.total, stage.done];
      const left = stage.left && stage.done < stage.total ? `, ${clock(Math.ceil(stage.left))} left` : "";
      words.textContent = `${stage.done}/${stage.total} ${stage.unit}${stage.note ? `, ${stage.note}` : left}`;
    }
  }

  stage(row, name) {
    const bar = make("progress");
    bar.setAttribute("aria-label", name);
    const words = make("span");
    row.element.append(make("div", { className: "stage" }, make("span", { textContent: name }), bar, words));
    return { bar, words };
  }
}
