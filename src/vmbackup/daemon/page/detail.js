// One guest: its facts, a calendar of its restore points, copies, drills, last runs.

import { calendar } from "./calendar.js";
import { fill, h } from "./dom.js";
import { linkTo, standing } from "./guests.js";
import { named, result, row, table, trouble } from "./parts.js";
import { addressed, ago, lasting, quoted, size, when } from "./text.js";

const RUNS = ["Began", "What", "Result", "Took", "Stored"];

export class Detail {
  #model = null;
  #runs = null; // of the guest that is shown; null: not known
  #asked = "";

  constructor(ask) {
    this.ask = ask;
    this.dialog = document.getElementById("detail");
    this.dialog.addEventListener("close", () => this.#closed());
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog || event.target.closest("[data-close]")) this.dialog.close();
    });
    addEventListener("hashchange", () => this.#route());
  }

  /** The newest state; the last runs are asked for again. */
  show(model) {
    this.#model = model;
    this.#route();
  }

  #closed() {
    if (location.hash.startsWith("#/guest/")) history.replaceState(null, "", "#/");
  }

  #route() {
    if (this.#model === null) return;
    if (!location.hash.startsWith("#/guest/")) {
      if (this.dialog.open) this.dialog.close();
      return;
    }
    const guest = this.#model.guests.find((one) => linkTo(one) === location.hash);
    const hash = location.hash;
    if (hash !== this.#asked) [this.#asked, this.#runs] = [hash, null];
    this.#draw(guest);
    if (!this.dialog.open) {
      this.dialog.showModal();
      this.dialog.scrollTop = 0;
    }
    if (guest) this.#load(guest, hash);
  }

  async #load(guest, hash) {
    const runs = await this.ask(guest.domain);
    if (hash !== this.#asked || runs === null) return;
    this.#runs = runs.filter((run) => run.job === guest.job || run.job === null);
    this.#draw(this.#model.guests.find((one) => linkTo(one) === hash));
  }

  #draw(guest) {
    const close = h("button", { type: "button", "data-close": true, class: "close", "aria-label": "Close" }, "✕");
    if (!guest) {
      const known = "The service does not know this guest (any more).";
      fill(this.dialog, h("div", { class: "sheet" }, h("div", { class: "split" }, h("h2", { id: "detail-title" }, "No such guest"), close), h("p", null, known)));
      return;
    }
    const { now } = this.#model;
    fill(this.dialog, h("div", { class: "sheet", "data-key": guest.key },
      h("div", { class: "split top" }, h("h2", { id: "detail-title" }, named(guest.domain)), close),
      standing(guest.age), trouble(guest.last_run), this.#facts(guest, now), calendar(guest, now),
      drillPart(guest, now), copiesPart(guest, now), this.#lastRuns(now), restorePart(guest)));
  }

  #facts(guest, now) {
    const frozen = guest.quiesce_ok ? `file systems frozen for ${lasting(guest.freeze_seconds)}` : "as after a power cut";
    const facts = [
      ["Last good point", [when(guest.last_success, now, "never"), guest.last_success ? ` (${ago(guest.last_success, now)})` : ""]],
      ["Next run", guest.running ? "running now" : guest.queued ? "in the queue" : when(guest.next_run, now, "not planned")],
      ["Consistency", guest.last_success ? frozen : "–"],
      ["Verified", when(guest.last_verified, now, "never")],
      ["Job", named(guest.job)],
      ["Repository", named(guest.repository)],
    ];
    if (guest.totals.read_bytes) facts.push(["So far", `${size(guest.totals.read_bytes)} read, ${size(guest.totals.stored_bytes)} stored`]);
    if (!guest.present && this.#model.document.libvirt_up) facts.push(["libvirt", "does not know this guest any more"]);
    return h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));
  }

  #lastRuns(now) {
    if (this.#runs === null) return null;
    const rows = this.#runs.map((run) => row(RUNS, [
      when(run.started, now),
      [run.kind, run.target ? [" to ", named(run.target)] : null, run.attempt > 1 ? `, attempt ${run.attempt}` : null],
      [run.finished ? result(run) : h("span", { class: "busy" }, "running"), trouble(run)],
      run.finished ? lasting(Math.max(0, (new Date(run.finished) - new Date(run.started)) / 1000)) : "–",
      run.points?.length ? size(run.points.reduce((sum, point) => sum + (point.stored_bytes ?? 0), 0)) : "–",
    ], { "data-key": run.id + run.started }));
    return h("section", { "data-key": "runs" }, h("h3", null, "Last runs"),
      rows.length ? table("Last runs", RUNS, rows) : h("p", { class: "dim" }, "None is remembered."));
  }
}

function held(checks) {
  if (!checks?.length) return null;
  const said = checks.length === 1 ? ", one check held" : `, ${checks.length} checks held`;
  return [said, ` (${checks.join("; ")})`];
}

function drillPart(guest, now) {
  const { drill } = guest;
  if (!drill) return null;
  const named = { alt: `The screen of ${guest.domain} at the end of its last drill`, loading: "lazy" };
  return h("section", { "data-key": "drill" }, h("h3", null, "Drills"), standing(guest.drillAge),
    h("p", null, "Last success ", when(drill.last_success, now, "never"),
      drill.boot_seconds ? `, booted in ${lasting(drill.boot_seconds)}` : null, held(drill.checks), "; next ", when(drill.next_run, now, "not planned"), ". ",
      drill.last_run ? ["Last drill: ", result(drill.last_run)] : null),
    trouble(drill.last_run),
    drill.picture ? h("img", { class: "picture", src: `/pictures/${addressed(drill.picture)}`, ...named }) : null);
}

function copiesPart(guest, now) {
  if (!guest.copies.length) return null;
  const titles = ["Copies in", "Newest point", "Age", "Last copy"];
  const rows = guest.copies.map((copy, index) => row(titles, [
    named(copy.repository), when(copy.last, now, "none yet"), standing(guest.copyAges[index]),
    [result(copy.last_run), trouble(copy.last_run)],
  ], { "data-key": copy.repository }));
  return h("section", { "data-key": "copies" }, h("h3", null, "Copies"), table("Copies", titles, rows));
}

function restorePart(guest) {
  if (!guest.last_success) return null;
  const domain = quoted(`${guest.domain}@latest`), repository = quoted(guest.repository);
  return h("section", { "data-key": "restore" }, h("h3", null, "To restore"),
    h("p", null, "On this host, as root. The page itself can change nothing."),
    h("pre", { tabindex: 0 }, `vmbackup --repository ${repository} list ${quoted(guest.domain)}\n`
      + `vmbackup --repository ${repository} restore ${domain} --output DIR`));
}
