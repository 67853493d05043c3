// SPDX-License-Identifier: Apache-2.0
// What both timelines are made of: elements, times in words, a ruler, the segments of a story.

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export const by = (id) => document.getElementById(id);

/** Seconds as they are shown: 7 s, 1:05, with a tenth where there is one. */
export function clock(seconds) {
  const tenths = Math.round(seconds * 10) / 10;
  if (tenths < 60) return `${tenths} s`;
  const rest = Math.round((tenths % 60) * 10) / 10;
  return `${Math.floor(tenths / 60)}:${rest < 10 ? "0" : ""}${rest}`;
}

export const percent = (at, seconds) => `${(100 * Math.min(Math.max(at / seconds, 0), 1)).toFixed(3)}%`;

export function drawRuler(place, seconds) {
  const steps = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600];
  const most = Math.max(2, Math.floor(place.clientWidth / 64));
  const step = steps.find((one) => seconds / one <= most) ?? 1200;
  const marks = [];
  for (let at = 0; at <= seconds + 1e-6; at += step) {
    const mark = make("span", { textContent: clock(at) });
    mark.style.left = percent(at, seconds);
    marks.push(mark);
  }
  place.replaceChildren(...marks);
}

/** One element per entry [at, text]; `place` puts them where they belong. */
export function segmentsOf(story) {
  return story.map(([at, text]) =>
    make("div", { className: "segment", title: `${clock(at)}: ${text}` }, make("span", { textContent: text })));
}

export function placeSegments(elements, story, seconds) {
  elements.forEach((element, i) => {
    const end = i + 1 < story.length ? story[i + 1][0] : seconds;
    element.style.left = percent(story[i][0], seconds);
    element.style.width = percent(Math.max(0, Math.min(end, seconds) - story[i][0]), seconds);
  });
}

/** The words of a story, short: its first text, and how many follow. */
export function inShort(story) {
  return story[0][1] + (story.length > 1 ? ` (and ${story.length - 1} more)` : "");
}
