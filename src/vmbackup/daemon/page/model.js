// What the service's document comes to: who stands how, worst first, and what an operator must know.

import { ageOf, counted, listed, span } from "./text.js";

const CLOSE = 0.95; // of the promise

/** How something stands to its promise, worst first: the word and the sign, so that nothing hangs on colour alone. */
export const STANDINGS = {
  broken: { word: "Broken", sign: "✕", tone: "bad" },
  never: { word: "Never", sign: "✕", tone: "bad" },
  close: { word: "Close", sign: "!", tone: "doubt" },
  new: { word: "Not yet", sign: "–", tone: "plain" },
  kept: { word: "Kept", sign: "✓", tone: "good" },
  none: { word: "No promise", sign: "–", tone: "plain" },
};
const ORDER = Object.keys(STANDINGS);

export const failed = (run) => run !== null && run !== undefined && run.status === "failed";
const isBad = (age) => age.standing === "broken" || age.standing === "never";

/** The same of what is asked for `since` a time: it may be missing for as long as it may be old. */
export function agedSince(time, promise, now, since) {
  const age = aged(time, promise, now);
  const fresh = since && promise !== null && (now - new Date(since)) / 1000 <= promise;
  return age.standing === "never" && fresh ? { ...age, standing: "new" } : age;
}

/** The age of what was done at `time` and is done again at `following`, against its promise in seconds (or null). */
export function aged(time, promise, now, following = null) {
  const seconds = time ? Math.max(0, (now - new Date(time)) / 1000) : null;
  const share = seconds !== null && promise ? seconds / promise : 0;
  const soon = time && following && promise !== null && (new Date(following) - new Date(time)) / 1000 > promise;
  let standing = "kept";
  if (promise === null) standing = "none";
  else if (seconds === null) standing = "never";
  else if (seconds > promise) standing = "broken";
  else if (soon || share > CLOSE) standing = "close";
  return { seconds, promise, share, standing, text: ageOf(seconds, promise) };
}

/** A guest under a job, with all that is worked out about it. */
class Guest {
  constructor(state, several, now) {
    Object.assign(this, state);
    this.state = state;
    this.key = JSON.stringify([state.domain, state.job, state.repository]);
    this.name = several ? `${state.domain} (${state.job})` : state.domain;
    this.age = aged(state.last_success, state.max_age, now, state.running ? null : state.next_run);
    this.copyAges = state.copies.map((copy) => agedSince(copy.last, copy.max_age, now, state.known_since));
    const drill = state.drill;
    this.drillAge = drill ? agedSince(drill.last_success, drill.max_age, now, state.known_since) : null;
    this.failed = failed(state.last_run);
    this.copiesBad = state.copies.some((copy, index) => isBad(this.copyAges[index]) || failed(copy.last_run));
    this.drillBad = state.drill !== null && (isBad(this.drillAge) || failed(state.drill.last_run));
    this.troubled = this.failed || this.copiesBad || this.drillBad;
    const place = ORDER.indexOf(this.age.standing);
    this.rank = this.troubled ? Math.min(place, 1.5) : place;
    this.searched = [state.domain, state.job, state.repository].join("\n").toLowerCase();
  }

  get bad() {
    return isBad(this.age);
  }
}

/** The document, read. `now` is the service's time; it goes on while the service does not answer. */
export class Model {
  constructor(document, now) {
    this.document = document;
    this.now = now;
    const jobs = new Map();
    for (const { domain } of document.guests) jobs.set(domain, (jobs.get(domain) ?? 0) + 1);
    this.guests = document.guests.map((state) => new Guest(state, jobs.get(state.domain) > 1, now));
    this.guests.sort(worstFirst);
    this.runs = document.runs.filter((run) => run.state !== "queued");
    this.queue = document.runs.filter((run) => run.state === "queued");
    this.queue.sort((one, other) => compare(one.not_before ?? "", other.not_before ?? ""));
    this.repositories = document.repositories;
    this.runById = new Map(document.runs.map((run) => [run.id, run]));
  }

  of(standing) {
    return this.guests.filter((guest) => guest.age.standing === standing);
  }

  /** The state in one sentence: { tone, sign, text }. */
  get verdict() {
    const broken = this.of("broken"), never = this.of("never"), total = counted(this.guests.length, "guest");
    const none = `${never.length === 1 ? "has" : "have"} no restore point`;
    if (broken.length) {
      const breaks = broken.length === 1 ? "breaks its promise" : "break their promise";
      const rest = never.length ? `, ${never.length} ${none}` : "";
      return { tone: "bad", sign: "✕", text: `${broken.length} of ${total} ${breaks}${rest}` };
    }
    if (never.length) return { tone: "bad", sign: "✕", text: `${never.length} of ${total} ${none}` };
    return this.#allWell();
  }

  #allWell() {
    const tone = !this.guests.length || this.problems.some((problem) => problem.bad) ? "doubt" : "good";
    const sign = tone === "good" ? "✓" : "!";
    const promised = this.guests.filter((guest) => guest.age.standing !== "none").length;
    const rest = this.guests.length - promised;
    if (!this.guests.length) return { tone, sign, text: "No guest is backed up: no job of the configuration means one" };
    if (!promised) return { tone, sign, text: `${counted(rest, "guest")}; nothing is promised: no job has a max_age` };
    const kept = promised === 1 ? "The promise to the one guest is kept" : `All ${promised} guests are kept as promised`;
    return { tone, sign, text: rest ? `${kept}; ${rest} more without a promise` : kept };
  }

  /** What else somebody should know, the bad first: [{ text, bad }]. */
  get problems() {
    const found = [...this.#ofService(), ...this.#ofGuests(), ...this.#ofRepositories()];
    const free = this.document.unprotected;
    if (free.length) {
      const are = free.length === 1 ? "domain is" : "domains are";
      found.push({ bad: false, text: `${free.length} ${are} in no scheduled job: ${listed(free)}` });
    }
    return found.sort((one, other) => Number(other.bad) - Number(one.bad));
  }

  *#ofService() {
    const said = this.document;
    if (said.state !== "running") yield { bad: false, text: `The service is ${said.state}` };
    if (!said.config_ok) yield { bad: true, text: `The configuration is wrong, the old one is in force: ${said.config_error}` };
    if (!said.libvirt_up && said.libvirt_error) yield { bad: true, text: `libvirt: ${said.libvirt_error}` };
  }

  *#ofGuests() {
    const names = (guests) => listed(guests.map((guest) => guest.name));
    const failures = this.guests.filter((guest) => guest.failed && !guest.bad);
    const copies = this.guests.filter((guest) => guest.copiesBad);
    const drills = this.guests.filter((guest) => guest.drillBad);
    const close = this.of("close");
    const last = failures.length === 1 ? "The last run" : `The last runs of ${failures.length} guests`;
    if (failures.length) yield { bad: true, text: `${last} failed, no promise is broken yet: ${names(failures)}` };
    if (copies.length) yield { bad: true, text: `Copies are late or failed: ${names(copies)}` };
    if (drills.length) yield { bad: true, text: `Drills are late or failed: ${names(drills)}` };
    if (close.length) yield { bad: false, text: `Close to breaking: ${names(close)}` };
  }

  *#ofRepositories() {
    for (const repository of this.repositories) {
      const { name } = repository;
      if (isDown(repository)) yield { bad: true, text: `Repository ${name} is down: ${repository.error ?? "it does not answer"}` };
      if (repository.damaged_objects) {
        const damaged = counted(repository.damaged_objects, "damaged object");
        yield { bad: true, text: `Repository ${name} has ${damaged}: run 'vmbackup --repository ${name} repair'` };
      }
      for (const [what, done, age, run] of upkeep(repository, this.now)) {
        if (failed(run)) yield { bad: true, text: `The last ${what} of repository ${name} failed: ${run.error}` };
        else if (isBad(age)) yield { bad: true, text: `Repository ${name} was not ${done} in time: ${age.text}` };
      }
    }
  }
}

export const compare = (one, other) => (one < other ? -1 : one > other ? 1 : 0);
const byName = new Intl.Collator("en", { numeric: true }).compare;
export const nameOrder = (one, other) => byName(one.name, other.name) || compare(one.key, other.key);
export const worstFirst = (one, other) =>
  one.rank - other.rank || other.age.share - one.age.share || nameOrder(one, other);

/** Whether it was looked at, in vain. */
export const isDown = (repository) => !repository.up && Boolean(repository.error || repository.looked);

/** Of prune and verify: the noun, the word for done, its age, its last run. */
export function upkeep(repository, now) {
  const age = (time, promise) => agedSince(time, promise, now, repository.known_since);
  return [
    ["prune", "pruned", age(repository.last_prune, repository.prune_max_age), repository.last_prune_run],
    ["verify", "verified", age(repository.last_verified, repository.verify_max_age), repository.last_verify_run],
  ];
}

/** How far a run is: { share (null: not known), done, left } in parts, bytes and seconds. */
export function progressOf(run) {
  const { done_bytes: done, total_bytes: total, bytes_per_second: rate } = run.progress;
  const share = total ? Math.min(1, done / total) : null;
  const left = total && rate && done < total ? (total - done) / rate : null;
  return { share, done, total, rate, left, leftText: left === null ? "" : span(left) };
}
