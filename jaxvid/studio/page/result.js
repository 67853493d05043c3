// SPDX-License-Identifier: Apache-2.0
// What is looked at: a run as its frames come, or a finished video with its story and the reader's verdict.

import { by, clock, drawRuler, make, percent, placeSegments, segmentsOf } from "./draw.js";
import { get } from "./server.js";

const SMALL = 200; // pixels a side, below which they are shown as they are

export class Result {
  constructor() {
    this.seconds = 1;
    this.story = [];
    this.verdict = null;
    this.video = by("video");
    this.still = by("still");
    const follow = () => this.follow(this.video.currentTime);
    const tick = () => {
      follow();
      if (!this.video.paused) requestAnimationFrame(tick);
    };
    this.video.addEventListener("play", tick);
    this.video.addEventListener("seeked", follow);
    this.video.addEventListener("loadedmetadata", () => this.crisp(this.video, this.video.videoWidth));
    this.still.addEventListener("load", () => this.crisp(this.still, this.still.naturalWidth));
    this.strip();
    new ResizeObserver(() => drawRuler(by("told-ruler"), this.seconds)).observe(by("watched"));
  }

  crisp(_element, width) {
    this.video.parentElement.classList.toggle("small", width < SMALL);
  }

  /** A run that waits or goes on; its pictures come by `preview`. */
  showJob(job) {
    this.clear(`Run ${job.number}`);
    this.job = job.number;
    this.tell(job.asked.story, job.asked.seconds);
    this.say("The first frames show here as soon as they are decoded.");
  }

  preview({ job, number, every, jpeg }) {
    if (job !== this.job || !jpeg) return;
    const source = `data:image/jpeg;base64,${jpeg}`;
    const film = by("film");
    // each at least as wide as the strip is high, so that it is not cut to a sliver
    const apart = Math.max(1, Math.ceil((36 * this.seconds) / (every * by("watched").clientWidth)));
    if (number % apart === 0 && !film.querySelector(`[data-number="${number}"]`)) {
      const picture = make("img", { src: source, alt: "" });
      picture.dataset.number = number;
      picture.style.left = percent(number * every, this.seconds);
      picture.style.width = percent(Math.min(every * apart, this.seconds - number * every), this.seconds);
      film.append(picture);
    }
    this.still.src = source;
    this.still.alt = `The frame at ${clock((number + 0.5) * every)}`;
    this.still.hidden = false;
    by("nothing").hidden = true;
  }

  /** How a run ended that has no video. */
  ended(text) {
    this.clear("Result");
    this.say(text);
  }

  async showVideo(entry) {
    this.clear("Result");
    this.name = entry.name;
    by("nothing").hidden = true;
    this.video.hidden = false;
    this.video.src = `/videos/${encodeURIComponent(entry.name)}`;
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) this.video.play().catch(() => {});
    by("recipe").hidden = false;
    Object.assign(by("download"), { href: this.video.src, download: entry.name });
    by("again").hidden = !entry.recipe;
    by("copy").hidden = !entry.command;
    by("command").textContent = entry.command ?? entry.why ?? "";
    if (!entry.recipe) return;
    this.tell(entry.recipe.story, entry.recipe.seconds);
    this.follow(0);
    by("score").textContent = "The reader is looking at it.";
    try {
      const found = await get(`/api/videos/${encodeURIComponent(entry.name)}/verdict`);
      if (this.name === entry.name) this.judge(found);
    } catch (error) {
      if (this.name === entry.name) by("score").textContent = error.message;
    }
  }

  clear(title) {
    this.job = this.name = null;
    this.verdict = null;
    by("result-title").textContent = title;
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    for (const id of ["video", "still", "watched", "verdict", "detail", "recipe"]) by(id).hidden = true;
    by("film").replaceChildren();
    by("score").textContent = "";
  }

  say(text) {
    by("nothing").textContent = text;
    by("nothing").hidden = false;
  }

  tell(story, seconds) {
    [this.story, this.seconds] = [story, seconds];
    by("watched").hidden = false;
    const segments = segmentsOf(story);
    by("told").replaceChildren(...segments);
    placeSegments(segments, story, seconds);
    drawRuler(by("told-ruler"), seconds);
    by("playhead").hidden = true;
  }

  judge(found) {
    if (found.why) {
      by("score").textContent = `No verdict: ${found.why}.`;
      return;
    }
    this.verdict = found.seconds;
    by("verdict").replaceChildren(...found.seconds.map((one) => this.bar(one)));
    by("verdict").setAttribute("aria-valuemin", 0);
    by("verdict").setAttribute("aria-valuemax", found.seconds.length - 1);
    by("verdict").hidden = by("detail").hidden = false;
    const rows = Object.entries(found.accuracy).filter(([name]) => name !== "all");
    const said = rows.map(([name, row]) => `${name} ${Math.round(100 * row.accuracy)} %`).join(", ");
    by("score").textContent = said ? `A bar is the share that the reader found right in its second; in all: ${said}.` : "";
    this.follow(this.video.currentTime || 0);
  }

  bar({ second, right }) {
    const bar = make("i");
    const [good, all] = right ? sum(right) : [0, 0];
    bar.style.left = percent(second, this.seconds);
    bar.style.width = percent(Math.min(1, this.seconds - second), this.seconds);
    bar.style.height = all ? `${Math.max(8, (100 * good) / all)}%` : "8%";
    bar.className = !all ? "unscored" : good === all ? "all" : good < all / 2 ? "few" : "";
    return bar;
  }

  /** Puts the playhead at a time and says what was asked and seen in that second. */
  follow(time) {
    const head = by("playhead");
    head.hidden = this.video.hidden;
    head.style.left = percent(time, this.seconds);
    if (!this.verdict) return;
    const second = Math.min(Math.floor(time), this.verdict.length - 1);
    const one = this.verdict[second];
    const [, asked] = this.story.filter(([at]) => at <= second + 1e-6).at(-1);
    const line = (name, text) => make("p", {}, make("b", { textContent: `${name}: ` }), text);
    const marks = make("p");
    if (one.right) {
      for (const [name, [good, all]] of Object.entries(one.right)) {
        if (!all) continue;
        const fine = good === all;
        const words = `${fine ? "✓" : "✗"} ${name}${all > 1 ? ` ${good}/${all}` : ""}`;
        marks.append(make("span", { className: fine ? "yes" : "no", textContent: words }), "  ");
      }
    } else marks.append("not scored: the text changes in this second");
    by("detail").replaceChildren(line(`Second ${second}, asked`, asked), line("seen", one.seen), marks);
    const strip = by("verdict");
    strip.setAttribute("aria-valuenow", second);
    const [good, all] = one.right ? sum(one.right) : [0, 0];
    const score = all ? `${good} of ${all} right` : "not scored";
    strip.setAttribute("aria-valuetext", `second ${second}: asked ${asked}; seen ${one.seen}; ${score}`);
  }

  /** The strip of verdicts leads the video: by pointer, and by keys. */
  strip() {
    const strip = by("verdict");
    const to = (time) => {
      this.video.currentTime = Math.max(0, Math.min(this.seconds - 0.05, time));
    };
    const point = (event) => {
      const box = strip.getBoundingClientRect();
      to(((event.clientX - box.left) / box.width) * this.seconds);
    };
    strip.addEventListener("pointerdown", (event) => {
      strip.setPointerCapture(event.pointerId);
      point(event);
    });
    strip.addEventListener("pointermove", (event) => event.buttons && point(event));
    strip.addEventListener("keydown", (event) => {
      const second = Math.floor(this.video.currentTime);
      const wanted = { ArrowLeft: second - 1, ArrowDown: second - 1, ArrowRight: second + 1, ArrowUp: second + 1,
        Home: 0, End: this.seconds }[event.key];
      if (wanted === undefined) return;
      this.video.pause();
      to(wanted);
      event.preventDefault();
    });
  }
}

function sum(right) {
  const pairs = Object.values(right);
  return [pairs.reduce((all, [good]) => all + good, 0), pairs.reduce((all, [, total]) => all + total, 0)];
}
