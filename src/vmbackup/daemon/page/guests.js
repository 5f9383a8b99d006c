// The table of guests: worst first unless told, filtered by text and by state.

import { fill, h } from "./dom.js";
import { compare, failed, nameOrder, progressOf, STANDINGS, worstFirst } from "./model.js";
import { bar, named, pill, result, row, standingPill } from "./parts.js";
import { addressed, ago, counted, exact, when } from "./text.js";

const time = (iso) => (iso ? new Date(iso).getTime() : 0);
const by = (value) => (one, other) => compare(value(one), value(other)) || nameOrder(one, other);

/** Title, and the order that it sorts by. */
const COLUMNS = [
  ["Guest", nameOrder],
  ["State", worstFirst],
  ["Last good", by((guest) => time(guest.last_success))],
  ["Next run", by((guest) => (guest.running ? 0 : time(guest.next_run) || Infinity))],
  ["Last run", by((guest) => (failed(guest.last_run) ? -1 : 1) * (time(guest.last_run?.started) || 1))],
  ["Verified", by((guest) => time(guest.last_verified))],
  ["Drill", by((guest) => (guest.drillBad ? 0 : time(guest.drill?.last_success) || Infinity))],
  ["Job", by((guest) => guest.job)],
  ["Repository", by((guest) => guest.repository)],
];
const TITLES = COLUMNS.map(([title]) => title);

/** Name, and which guests it shows. */
const CHIPS = [
  ["all", "All", () => true, "plain"],
  ["broken", "Broken", (guest) => guest.age.standing === "broken", "bad"],
  ["never", "Never", (guest) => guest.age.standing === "never", "bad"],
  ["trouble", "Trouble", (guest) => guest.troubled, "bad"],
  ["close", "Close", (guest) => guest.age.standing === "close", "doubt"],
  ["kept", "Kept", (guest) => guest.age.standing === "kept", "good"],
  ["none", "No promise", (guest) => guest.age.standing === "none", "plain"],
  ["busy", "Running or queued", (guest) => guest.running || guest.queued, "plain"],
];

export class Guests {
  #chosen = "all";
  #sorted = 1;
  #down = false; // the other way round
  #model = null;
  #versions = new Map(); // what each row shows that is there

  constructor() {
    this.section = document.getElementById("guests");
    this.input = document.getElementById("filter");
    this.sorter = document.getElementById("sorter");
    this.table = document.getElementById("table");
    this.chips = document.getElementById("states");
    this.count = document.getElementById("count");
    fill(this.sorter, TITLES.map((title, index) => h("option", { value: index, selected: index === 1 }, title)));
    this.input.addEventListener("input", () => this.#draw());
    this.sorter.addEventListener("change", () => this.#sort(Number(this.sorter.value), false));
    this.chips.addEventListener("click", (event) => this.#choose(event.target.closest("button")?.dataset.key));
    this.table.addEventListener("click", (event) => this.#clicked(event));
  }

  show(model) {
    this.#model = model;
    this.section.hidden = !model.guests.length;
    this.#draw();
  }

  #clicked(event) {
    const column = event.target.closest("thead button")?.dataset.column;
    if (column !== undefined) {
      this.#sort(Number(column), Number(column) === this.#sorted && !this.#down);
      return;
    }
    const link = event.target.closest("tbody tr")?.querySelector("a");
    if (link && !event.target.closest("a") && !String(getSelection())) link.click();
  }

  #sort(column, down) {
    [this.#sorted, this.#down] = [column, down];
    this.sorter.value = column;
    this.#draw();
  }

  #choose(chip) {
    if (chip === undefined) return;
    this.#chosen = chip;
    this.#draw();
  }

  #draw() {
    const { guests, now } = this.#model;
    const words = this.input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const [, , chosen] = CHIPS.find(([name]) => name === this.#chosen);
    const shown = guests.filter((guest) => chosen(guest) && words.every((word) => guest.searched.includes(word)));
    const order = COLUMNS[this.#sorted][1];
    shown.sort(this.#down ? (one, other) => order(other, one) : order);
    fill(this.chips, CHIPS.map((chip) => this.#chip(chip, guests)));
    fill(this.table, h("table", { class: "cards guests" }, h("caption", { class: "out" }, "Guests"), this.#head(),
      h("tbody", null, this.#rows(shown, now))));
    this.count.textContent = shown.length === guests.length ? counted(guests.length, "guest")
      : `${shown.length} of ${counted(guests.length, "guest")} shown`;
  }

  /** Of hundreds of rows few change from one time to the next: the others are named, and not made again. */
  #rows(shown, now) {
    const before = this.#versions;
    this.#versions = new Map(shown.map((guest) => [guest.key, this.#version(guest, now)]));
    return shown.map((guest) => {
      const version = this.#versions.get(guest.key);
      const told = { "data-key": guest.key, "data-version": version };
      return before.get(guest.key) === version ? h("tr", told) : row(TITLES, this.#cells(guest, now), told);
    });
  }

  /** All that a row is made of; times look different from one hour to the next. */
  #version(guest, now) {
    const { point_times: _points, totals: _totals, copies: _copies, ...state } = guest.state;
    const run = this.#model.runById.get(guest.running);
    return JSON.stringify([state, guest.age.text, guest.age.share.toFixed(2), guest.age.standing, guest.drillBad, run?.progress,
      guest.last_success ? ago(guest.last_success, now) : null, this.#model.document.libvirt_up, Math.floor(now / 3600e3)]);
  }

  #chip([name, title, chosen, tone], guests) {
    const count = guests.filter(chosen).length;
    if (!count && name !== "all" && name !== this.#chosen) return null;
    return h("button", { type: "button", class: `chip ${tone}`, "data-key": name, "aria-pressed": String(name === this.#chosen) },
      title, " ", h("b", null, count));
  }

  #head() {
    const sorted = this.#down ? "descending" : "ascending";
    return h("thead", null, h("tr", null, TITLES.map((title, index) =>
      h("th", { scope: "col", "aria-sort": index === this.#sorted ? sorted : null },
        h("button", { type: "button", "data-column": index }, title,
          h("span", { class: "arrow", "aria-hidden": "true" }, index === this.#sorted ? (this.#down ? "▼" : "▲") : ""))))));
  }

  #cells(guest, now) {
    return [
      [h("a", { href: linkTo(guest), class: "guest" }, named(guest.domain)),
        guest.present || !this.#model.document.libvirt_up ? null : h("span", { class: "doubt note" }, "gone from libvirt")],
      standing(guest.age),
      h("span", null, when(guest.last_success, now, "never"), guest.last_success ? h("span", { class: "dim note" }, ago(guest.last_success, now)) : null),
      this.#next(guest, now),
      h("span", { title: guest.last_run?.error }, result(guest.last_run), " ", guest.last_run ? h("span", { class: "dim" }, when(guest.last_run.finished ?? guest.last_run.started, now)) : null),
      when(guest.last_verified, now, "never"),
      drill(guest, now),
      named(guest.job),
      named(guest.repository),
    ];
  }

  #next(guest, now) {
    const run = this.#model.runById.get(guest.running);
    if (run) {
      const { share } = progressOf(run);
      return h("span", { class: "busy" }, share === null ? "running" : `running ${Math.trunc(share * 100)} %`);
    }
    if (guest.queued && !(guest.next_run && new Date(guest.next_run) > now)) return h("span", { class: "busy" }, "queued");
    return when(guest.next_run, now, "not planned");
  }
}

/** State against promise: a word, a bar of age over promise, both in numbers. */
export function standing(age) {
  const { tone } = STANDINGS[age.standing];
  const share = age.standing === "never" ? 1 : age.share;
  return h("div", { class: "age" },
    h("div", { class: "split" }, standingPill(age.standing), h("span", { class: "dim" }, age.text)),
    age.promise === null ? null : bar(share, tone));
}

function drill(guest, now) {
  if (!guest.drill) return h("span", { class: "dim" }, "–");
  const { last_run: run, last_success: good } = guest.drill;
  const at = run?.finished ?? good;
  if (failed(run)) return h("span", { title: run.error }, pill("failed", "bad", "✕"), " ", h("span", { class: "dim" }, when(at, now)));
  if (!good) return guest.drillBad ? pill("never", "bad", "✕") : h("span", { class: "dim" }, "never");
  const word = guest.drillBad ? pill("late", "bad", "✕") : pill("ok", "good", "✓");
  return h("span", { title: exact(new Date(good)) }, word, " ", h("span", { class: "dim" }, when(good, now)));
}

/** The address of a guest's detail. */
export function linkTo(guest) {
  return `#/guest/${addressed(guest.domain)}/${addressed(guest.job)}`;
}
