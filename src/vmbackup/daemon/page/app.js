// Asks the service every few seconds, and shows what it says; says so when it says nothing.

import { Detail } from "./detail.js";
import { fill } from "./dom.js";
import { Guests } from "./guests.js";
import { Model } from "./model.js";
import { addressed, clock, exact, span } from "./text.js";
import { showRepositories, showRuns, showVerdict } from "./top.js";

const EVERY = 5000, PATIENCE = 10000; // milliseconds
const RUNS = 20; // of a guest
const place = (name) => document.getElementById(name);

let newest = null; // { document, at (of this machine's steady clock), answered }
const guests = new Guests();
const detail = new Detail(lastRuns);

/** JSON from the service; throws where there is none. */
async function ask(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (answer.status === 401) location.reload(); // the form asks for the token
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  return answer.json();
}

/** The last runs of a guest, null where they cannot be had. */
async function lastRuns(domain) {
  try {
    return (await ask(`/api/runs?limit=${RUNS}&domain=${addressed(domain)}`)).runs;
  } catch {
    return null;
  }
}

async function refresh() {
  try {
    const document = await ask("/api/status");
    newest = { document, at: performance.now(), answered: new Date() };
    place("silence").hidden = true;
    globalThis.document.body.classList.remove("stale");
  } catch {
    tellSilence();
  }
  if (newest !== null) show();
}

const opened = new Date();

function tellSilence() {
  const since = newest?.answered ?? opened;
  const text = `The service has not answered since ${clock(since, true)} (${span((new Date() - since) / 1000)}). `
    + (newest ? "What stands below is of then; ages go on." : "Is it running? systemctl status vmbackup");
  if (place("silence").textContent !== text) place("silence").textContent = text;
  place("silence").hidden = false;
  document.body.classList.add("stale");
}

function show() {
  const said = newest.document;
  const now = new Date(new Date(said.now).getTime() + performance.now() - newest.at);
  const model = new Model(said, now);
  const broken = model.guests.filter((guest) => guest.bad).length;
  document.title = `${broken ? `(${broken}) ` : ""}${said.host} - vmbackup`;
  place("host").textContent = `on ${said.host}`;
  place("updated").textContent = `as of ${clock(newest.answered, true)}`;
  place("updated").title = `${exact(newest.answered)} here, ${said.now} there`;
  showVerdict(place("verdict"), model);
  showRuns(place("runs"), place("runs-body"), model);
  showRepositories(place("repositories"), place("repositories-body"), model);
  guests.show(model);
  detail.show(model);
  const up = span((now - new Date(said.started)) / 1000);
  fill(place("footer"), `vmbackup ${said.version}, up for ${up}. Times are in your time zone, ${exact(now).slice(-6)}; point at one for all of it.`);
}

/** One question at a time, none while nobody looks. */
async function turn() {
  if (!document.hidden) await refresh();
  setTimeout(turn, EVERY);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});
turn();
