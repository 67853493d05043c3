// SPDX-License-Identifier: Apache-2.0
// The videos of the directory, the newest first.

import { by, clock, inShort, make } from "./draw.js";
import { get } from "./server.js";

export class Gallery {
  /** `open(entry)` when one is to be shown, `reuse(recipe)` when its story is to be written on. */
  constructor(open, reuse) {
    this.open = open;
    this.reuse = reuse;
    this.entries = [];
  }

  async refresh() {
    this.entries = await get("/api/videos");
    by("empty").hidden = this.entries.length > 0;
    by("cards").replaceChildren(...this.entries.map((entry) => this.card(entry)));
    this.mark(this.current);
    return this.entries;
  }

  find(name) {
    return this.entries.find((entry) => entry.name === name);
  }

  mark(name) {
    this.current = name;
    for (const card of by("cards").children) {
      if (card.dataset.name === name) card.setAttribute("aria-current", "true");
      else card.removeAttribute("aria-current");
    }
  }

  card(entry) {
    const path = encodeURIComponent(entry.name);
    const picture = make("img", { src: `/api/videos/${path}/poster.jpg`, alt: "", loading: "lazy" });
    const title = entry.recipe ? inShort(entry.recipe.story) : entry.name;
    const open = make("button", { type: "button", className: "open" }, picture, make("span", { className: "title", textContent: title }));
    open.addEventListener("click", () => this.open(entry));
    const said = entry.recipe
      ? [clock(entry.recipe.seconds), entry.recipe.method, `seed ${entry.recipe.seed}`]
      : ["made elsewhere"];
    said.push(bytes(entry.bytes), new Date(entry.made).toLocaleString());
    const buttons = make("div", { className: "row" });
    if (entry.recipe) {
      const reuse = make("button", { type: "button", textContent: "Use this story" });
      reuse.addEventListener("click", () => this.reuse(entry.recipe));
      buttons.append(reuse);
    }
    buttons.append(make("a", { className: "button", href: `/videos/${path}`, download: entry.name, textContent: "Download" }));
    const card = make("li", {}, open, make("p", { className: "hint", textContent: said.join(" · ") }), buttons);
    card.dataset.name = entry.name;
    return card;
  }
}

function bytes(count) {
  return count < 1e6 ? `${Math.max(1, Math.round(count / 1e3))} kB` : `${(count / 1e6).toFixed(1)} MB`;
}
