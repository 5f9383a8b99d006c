// The top of the page: the state in a sentence, what runs and waits, the repositories.

import { fill, h } from "./dom.js";
import { isDown, progressOf, STANDINGS, upkeep } from "./model.js";
import { bar, named, pill, row, table, trouble } from "./parts.js";
import { counted, size, when } from "./text.js";

const PROBLEMS = 6, QUEUED = 5;

/** The verdict and what else is wrong. */
export function showVerdict(place, model) {
  const { tone, sign, text } = model.verdict;
  const problems = model.problems.map((problem) =>
    h("li", { class: problem.bad ? "bad" : "doubt" }, h("span", { class: "out" }, problem.bad ? "Bad: " : "Note: "), problem.text));
  const rest = problems.slice(PROBLEMS);
  fill(place,
    h("h1", { class: tone }, h("span", { class: "sign", "aria-hidden": "true" }, sign), h("span", null, text)),
    problems.length ? h("ul", { class: "problems" }, problems.slice(0, PROBLEMS)) : null,
    rest.length ? h("details", null, h("summary", null, `${rest.length} more`), h("ul", { class: "problems" }, rest)) : null,
    model.guests.length ? null : firstSteps(model.document));
}

/** What to do where nothing is backed up yet. */
function firstSteps(said) {
  return h("div", { class: "card start" }, h("h2", null, "To begin"),
    h("p", null, "Say in ", h("code", null, said.config_file ?? "/etc/vmbackup/config.toml"), " which guests are backed up, when, and how old their backups may be:"),
    h("pre", { tabindex: 0 }, '[jobs.nightly]\ndomains = ["*"]\nschedule = "0 2 * * *"\nmax_age = "26h"'),
    h("p", null, "Then ", h("code", null, "systemctl reload vmbackup"), ". Guests that libvirt knows appear here by themselves."));
}

/** What goes on and what waits. */
export function showRuns(section, place, model) {
  section.hidden = !model.document.runs.length;
  const waiting = model.queue.map((run) => h("li", { "data-key": run.id }, what(run), " ", h("span", { class: "dim" }, waits(run, model.now))));
  const rest = waiting.slice(QUEUED);
  fill(place,
    model.runs.length ? h("ul", { class: "runs" }, model.runs.map(going)) : h("p", { class: "dim" }, "Nothing runs at this moment."),
    waiting.length ? h("h3", null, `${counted(waiting.length, "run")} in the queue`) : null,
    waiting.length ? h("ol", { class: "queue" }, waiting.slice(0, QUEUED)) : null,
    rest.length ? h("details", null, h("summary", null, `${rest.length} more in the queue`), h("ol", { class: "queue" }, rest)) : null);
}

const what = (run) => [`${run.kind} `, named(run.domain ?? run.repository), run.target ? [" to ", named(run.target)] : null];

function waits(run, now) {
  const later = run.not_before && new Date(run.not_before) > now;
  const attempt = run.attempt > 1 ? `, attempt ${run.attempt}` : "";
  return later ? [h("span", null, "at "), when(run.not_before, now), attempt] : `waits for its turn${attempt}`;
}

function going(run) {
  const { share, done, total, rate, leftText } = progressOf(run);
  const percent = share === null ? "" : `${Math.trunc(share * 100)} %`;
  const told = [run.state === "running" ? null : "being cancelled", total ? `${size(done)} of ${size(total)}` : done ? size(done) : "begun",
    rate ? `${size(Math.round(rate))}/s` : null, leftText ? `${leftText} left` : null, run.attempt > 1 ? `attempt ${run.attempt}` : null];
  return h("li", { "data-key": run.id },
    h("div", { class: "split" }, h("span", null, what(run)), h("strong", null, percent)),
    h("progress", { max: 1, value: share, "aria-label": `${run.kind} of ${run.domain ?? run.repository}` }),
    h("div", { class: "dim split" }, h("span", null, told.filter(Boolean).join(" · ")), h("code", { title: "its id" }, run.id)),
    run.progress.note ? h("div", { class: "dim" }, run.progress.note) : null);
}

const TITLES = ["Repository", "State", "Stored", "Points", "Damaged", "Pruned", "Verified"];

/** The repositories against their promises. */
export function showRepositories(section, place, model) {
  section.hidden = !model.repositories.length;
  const rows = model.repositories.map((repository) => row(TITLES, cells(repository, model.now), { "data-key": repository.name }));
  fill(place, table("Repositories", TITLES, rows));
}

function cells(repository, now) {
  const down = isDown(repository);
  const state = repository.up ? pill("up", "good", "✓") : down ? pill("down", "bad", "✕") : pill("not looked at yet", "plain", "–");
  const { bytes, objects, damaged_objects: damaged } = repository;
  return [
    h("span", { title: repository.url }, named(repository.name)),
    h("span", { title: repository.error }, state),
    bytes === null ? h("span", { class: "dim" }, "–") : h("span", { title: objects === null ? null : counted(objects, "object") }, size(bytes)),
    repository.points.toLocaleString("en"),
    damaged ? pill(damaged.toLocaleString("en"), "bad", "✕") : "none",
    ...upkeep(repository, now).map(([noun, , age, run]) => kept(age, run, repository[`next_${noun}`], now)),
  ];
}

function kept(age, run, next, now) {
  const { tone, word } = STANDINGS[age.standing];
  const quiet = ["kept", "new", "none"].includes(age.standing);
  const text = age.standing === "new" ? "not yet" : age.seconds === null ? "never" : `${age.text}${age.promise === null ? " ago" : ""}`;
  return h("div", { class: "age" },
    h("span", { class: quiet ? null : tone }, quiet ? text : `${word}: ${text}`),
    age.promise === null ? null : bar(age.standing === "never" ? 1 : age.share, tone),
    next ? h("span", { class: "dim" }, "next ", when(next, now)) : null,
    trouble(run));
}
