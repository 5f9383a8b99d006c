// Small pieces that several sections show.

import { h } from "./dom.js";
import { failed, STANDINGS } from "./model.js";
import { exact } from "./text.js";

const RESULTS = {
  success: ["ok", "good", "✓"],
  warning: ["warned", "doubt", "!"],
  failed: ["failed", "bad", "✕"],
  cancelled: ["cancelled", "doubt", "!"],
};

/** A word in its colour, with a sign before it. */
export function pill(word, tone, sign) {
  return h("span", { class: `pill ${tone}` }, h("span", { "aria-hidden": "true" }, sign), ` ${word}`);
}

/** How an age stands to its promise, as a word. */
export function standingPill(standing) {
  const { word, tone, sign } = STANDINGS[standing];
  return pill(word, tone, sign);
}

/** A bar of `share`, 0 to 1, drawn: style attributes are forbidden here. */
export function bar(share, tone, label = null) {
  const width = (Math.min(1, Math.max(0, share)) * 100).toFixed(1);
  const named = label ? { role: "img", "aria-label": label } : { "aria-hidden": "true" };
  return h("svg", { class: `meter ${tone}`, viewBox: "0 0 100 6", preserveAspectRatio: "none", ...named },
    h("rect", { class: "whole", width: 100, height: 6 }), h("rect", { class: "part", width, height: 6 }));
}

/** How a run ended, with when on hover. */
export function result(run) {
  if (!run) return h("span", { class: "dim" }, "–");
  const [word, tone, sign] = RESULTS[run.status] ?? [run.status ?? "running", "plain", "–"];
  const ended = run.finished ?? run.started;
  return h("span", { title: ended ? exact(new Date(ended)) : null }, pill(word, tone, sign));
}

/** What went wrong in a run, and what to do. */
export function trouble(run) {
  if (!failed(run) && !run?.error) return null;
  const hint = run.hint ? h("span", { class: "hint" }, run.hint) : null;
  return h("p", { class: "error" }, run.error ?? "it ended without a word", hint);
}

/** A row of a table, each cell with its column's title for narrow screens. */
export function row(titles, cells, attributes = {}) {
  return h("tr", attributes, cells.map((cell, index) =>
    h(index ? "td" : "th", { "data-title": titles[index], scope: index ? null : "row" }, h("div", null, cell))));
}

/** A table with plain titles. */
export function table(caption, titles, rows) {
  return h("table", { class: "cards" }, h("caption", { class: "out" }, caption),
    h("thead", null, h("tr", null, titles.map((title) => h("th", { scope: "col" }, title)))), h("tbody", null, rows));
}

/** A guest's name, which others chose: text, and never turning what stands beside it around. */
export const named = (name) => h("bdi", null, name);
