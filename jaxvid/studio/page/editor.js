// SPDX-License-Identifier: Apache-2.0
// The story that is being written: segments that are dragged or moved by keys, and a line of text for each.

import { by, clock, drawRuler, make, percent, placeSegments, segmentsOf } from "./draw.js";

const SHORTEST = 0.5; // seconds of a segment
const round = (seconds) => Math.round(seconds * 10) / 10;

export class Editor {
  /** `changed()` is called after every change by hand. */
  constructor(changed) {
    this.story = [[0, ""]];
    this.seconds = 4;
    this.changed = changed;
    this.track = by("track");
    this.lines = by("lines");
    by("add").addEventListener("click", () => this.add());
    new ResizeObserver(() => drawRuler(by("ruler"), this.seconds)).observe(this.track);
  }

  set(story, seconds) {
    this.story = story.map(([at, text]) => [at, text]);
    this.seconds = seconds;
    this.build();
  }

  setSeconds(seconds) {
    if (!(seconds > 0)) return;
    this.seconds = seconds;
    this.place();
  }

  /** A further segment takes the second half of the last one; where that is too short, there is more room to be given. */
  add() {
    const last = this.story.length - 1;
    const at = round((this.story[last][0] + this.seconds) / 2);
    if (at - this.story[last][0] < SHORTEST || this.seconds - at < SHORTEST) {
      by("error").textContent = "There is no room for a further segment; give the video more seconds, or move the last one.";
      return;
    }
    this.story.push([at, ""]);
    this.build();
    this.lines.children[last + 1].querySelector(".text").focus();
    this.changed();
  }

  drop(i) {
    this.story.splice(i, 1);
    this.story[0][0] = 0;
    this.build();
    this.lines.children[Math.max(0, i - 1)].querySelector(".text").focus();
    this.changed();
  }

  /** Moves the start of segment i as far as its neighbours let it. */
  moveStart(i, to) {
    const most = (this.story[i + 1]?.[0] ?? this.seconds) - SHORTEST;
    this.story[i][0] = round(Math.max(this.story[i - 1][0] + SHORTEST, Math.min(most, to)));
    this.place();
    this.changed();
  }

  /** Moves segment i with its length: its own start, and that of the one after it. */
  moveWhole(i, to) {
    const next = this.story[i + 1];
    if (!next) return this.moveStart(i, to);
    const length = next[0] - this.story[i][0];
    const most = (this.story[i + 2]?.[0] ?? this.seconds) - SHORTEST - length;
    const at = round(Math.max(this.story[i - 1][0] + SHORTEST, Math.min(most, to)));
    this.story[i][0] = at;
    next[0] = round(at + length);
    this.place();
    this.changed();
  }

  build() {
    this.segments = segmentsOf(this.story);
    this.edges = this.story.slice(1).map((_, i) => this.edge(i + 1));
    this.segments.forEach((segment, i) => {
      segment.addEventListener("click", () => this.lines.children[i].querySelector(".text").focus());
      if (i) {
        segment.classList.add("movable");
        this.draggable(segment, i, (to) => this.moveWhole(i, to));
      }
    });
    this.track.replaceChildren(...this.segments, ...this.edges);
    this.lines.replaceChildren(...this.story.map((_, i) => this.line(i)));
    this.place();
  }

  place() {
    placeSegments(this.segments, this.story, this.seconds);
    this.story.forEach(([at, text], i) => {
      this.segments[i].firstChild.textContent = text;
      this.segments[i].title = `${clock(at)}: ${text}`;
      const field = this.lines.children[i].querySelector(".at");
      if (document.activeElement !== field) field.value = at;
      if (!i) return;
      const edge = this.edges[i - 1];
      edge.style.left = percent(at, this.seconds);
      edge.setAttribute("aria-valuemin", round(this.story[i - 1][0] + SHORTEST));
      edge.setAttribute("aria-valuemax", round((this.story[i + 1]?.[0] ?? this.seconds) - SHORTEST));
      edge.setAttribute("aria-valuenow", at);
      edge.setAttribute("aria-valuetext", `${clock(at)}: ${text || "no text yet"}`);
    });
    drawRuler(by("ruler"), this.seconds);
  }

  line(i) {
    const [at, text] = this.story[i];
    const time = make("input", { className: "at", type: "number", min: 0, step: 0.1, value: at, disabled: !i });
    time.setAttribute("aria-label", `Start of segment ${i + 1}, in seconds`);
    time.addEventListener("change", () => {
      this.moveStart(i, Number(time.value) || 0);
      time.value = this.story[i][0];
    });
    const words = make("input", { className: "text", type: "text", value: text, autocomplete: "off" });
    words.placeholder = i ? "what comes then" : "a large yellow circle slides up and down on a white background";
    words.setAttribute("aria-label", `Text of segment ${i + 1}`);
    words.addEventListener("input", () => {
      this.story[i][1] = words.value;
      this.place();
      this.changed();
    });
    const drop = make("button", { type: "button", className: "drop", textContent: "×", disabled: this.story.length < 2 });
    drop.setAttribute("aria-label", `Remove segment ${i + 1}`);
    drop.addEventListener("click", () => this.drop(i));
    return make("li", {}, time, words, drop);
  }

  edge(i) {
    const edge = make("button", { type: "button", className: "edge" });
    edge.setAttribute("role", "slider");
    edge.setAttribute("aria-label", `Start of segment ${i + 1}; with Alt the segment moves`);
    this.draggable(edge, i, (to) => this.moveStart(i, to));
    edge.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -0.5, ArrowDown: -0.5, ArrowRight: 0.5, ArrowUp: 0.5, PageDown: -5, PageUp: 5 }[event.key];
      if (event.key === "Delete") this.drop(i);
      else if (event.key === "Home") this.moveStart(i, 0);
      else if (event.key === "End") this.moveStart(i, this.seconds);
      else if (event.key === "Enter") this.lines.children[i].querySelector(".text").focus();
      else if (!step) return;
      else if (event.altKey) this.moveWhole(i, this.story[i][0] + step);
      else this.moveStart(i, this.story[i][0] + (event.shiftKey ? step / 5 : step));
      event.preventDefault();
    });
    return edge;
  }

  /** While the pointer holds `element`, `move(to)` hears where segment i is to begin. */
  draggable(element, i, move) {
    element.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      const [from, begin, width] = [event.clientX, this.story[i][0], this.track.clientWidth];
      const moved = (now) => {
        if (Math.abs(now.clientX - from) > 2) element.classList.add("dragged");
        if (element.classList.contains("dragged")) move(begin + ((now.clientX - from) / width) * this.seconds);
      };
      const ended = () => {
        element.removeEventListener("pointermove", moved);
        element.removeEventListener("lostpointercapture", ended);
        setTimeout(() => element.classList.remove("dragged")); // after the click that follows
      };
      element.setPointerCapture(event.pointerId);
      element.addEventListener("pointermove", moved);
      element.addEventListener("lostpointercapture", ended);
    });
    element.addEventListener("click", (event) => {
      if (element.classList.contains("dragged")) event.stopImmediatePropagation();
    }, true);
  }
}
