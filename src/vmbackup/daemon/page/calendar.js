// Restore points by month and day, in the viewer's time zone.

import { h } from "./dom.js";
import { clock, counted, dayOf, longDay, MONTHS } from "./text.js";

const SHOWN = 6; // months; older ones fold away
const WEEK = ["Mo", "Tu", "We", "Th", "Fr", "Sa", "Su"];
const TIMES = 12; // that a day tells

/** The section with the months that have restore points, newest first. */
export function calendar(guest, now) {
  const months = byMonth(guest.point_times);
  const drawn = months.map(([name, days]) => month(name, days, now));
  const rest = drawn.slice(SHOWN);
  const total = guest.point_times.length;
  return h("section", { "data-key": "points" },
    h("h3", null, total ? `Restore points: ${total.toLocaleString("en")}` : "Restore points"),
    total ? h("p", { class: "dim" }, "Point at a day, or go to it with the Tab key, for its times.") : h("p", { class: "dim" }, "There are none yet."),
    h("div", { class: "months" }, drawn.slice(0, SHOWN)),
    rest.length ? h("details", null, h("summary", null, `${counted(rest.length, "older month")}`), h("div", { class: "months" }, rest)) : null);
}

/** [["2026-11", Map of day to dates]], newest first. */
function byMonth(times) {
  const months = new Map();
  for (const iso of times) {
    const date = new Date(iso), day = dayOf(date), name = day.slice(0, 7);
    if (!months.has(name)) months.set(name, new Map());
    const days = months.get(name);
    days.set(day, [...(days.get(day) ?? []), date]);
  }
  return [...months].sort(([one], [other]) => (one < other ? 1 : -1));
}

function month(name, days, now) {
  const [year, number] = name.split("-").map(Number);
  const before = (new Date(year, number - 1, 1).getDay() + 6) % 7; // days of the week before the first, from Monday
  const last = new Date(year, number, 0).getDate();
  const cells = [...Array(before).fill(null), ...Array.from({ length: last }, (_, index) => index + 1)];
  while (cells.length % 7) cells.push(null);
  const weeks = Array.from({ length: cells.length / 7 }, (_, week) => cells.slice(week * 7, week * 7 + 7));
  const count = [...days.values()].reduce((sum, dates) => sum + dates.length, 0);
  return h("table", { class: "month", "data-key": name },
    h("caption", null, `${MONTHS[number - 1]} ${year}`, h("span", { class: "dim" }, ` ${counted(count, "point")}`)),
    h("thead", null, h("tr", null, WEEK.map((day) => h("th", { scope: "col" }, day)))),
    h("tbody", null, weeks.map((week) => h("tr", null, week.map((day) => cell(year, number, day, days, now))))));
}

function cell(year, month, number, days, now) {
  if (number === null) return h("td", null);
  const date = new Date(year, month - 1, number), day = dayOf(date);
  const today = day === dayOf(now) ? "today" : null;
  const dates = days.get(day);
  if (!dates) return h("td", { class: today }, h("span", { class: "empty" }, number));
  const times = [...dates].sort((one, other) => one - other).map((date) => clock(date));
  const told = times.slice(0, TIMES).join(", ") + (times.length > TIMES ? ` and ${times.length - TIMES} more` : "");
  return h("td", { class: today },
    h("button", { type: "button", class: "day", "aria-label": `${longDay(date)}: ${counted(dates.length, "restore point")}, ${told}` },
      number, dates.length > 1 ? h("sup", { "aria-hidden": "true" }, dates.length) : null,
      h("span", { class: "tip", "aria-hidden": "true" }, `${longDay(date)}: ${told}`)));
}
