// Times, ages and sizes as they are read at a glance, in the viewer's own time zone.

import { h } from "./dom.js";

const MINUTE = 60, HOUR = 3600, DAY = 86400;
const NB = "\u00a0"; // a unit stays with its number
const DAYS = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
export const MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September",
  "October", "November", "December"];

const two = (number) => String(number).padStart(2, "0");

/** "02:04", with seconds "02:04:11". */
export function clock(date, seconds = false) {
  return `${two(date.getHours())}:${two(date.getMinutes())}${seconds ? `:${two(date.getSeconds())}` : ""}`;
}

/** "2026-11-28", to count days by. */
export function dayOf(date) {
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

/** "Sat 28 November 2026". */
export function longDay(date) {
  return `${DAYS[date.getDay()]} ${date.getDate()} ${MONTHS[date.getMonth()]} ${date.getFullYear()}`;
}

/** "Sat 2026-11-28 02:04:11 +01:00". */
export function exact(date) {
  const minutes = -date.getTimezoneOffset();
  const offset = `${minutes < 0 ? "-" : "+"}${two(Math.trunc(Math.abs(minutes) / 60))}:${two(Math.abs(minutes) % 60)}`;
  return `${DAYS[date.getDay()]} ${dayOf(date)} ${clock(date, true)} ${offset}`;
}

/** As short as it is still clear: "02:04", "Tue 02:04", "24 Nov", "2024-11-24". */
function short(date, now) {
  const far = Math.abs(now - date) / 1000;
  if (dayOf(date) === dayOf(now)) return clock(date);
  if (far < 6.5 * DAY) return `${DAYS[date.getDay()]} ${clock(date)}`;
  return far < 300 * DAY ? `${date.getDate()} ${MONTHS[date.getMonth()].slice(0, 3)}` : dayOf(date);
}

/** A time element: short, all of it on hover; `none` where there is no time. */
export function when(iso, now, none = "–") {
  if (!iso) return h("span", { class: "dim" }, none);
  const date = new Date(iso);
  return h("time", { datetime: iso, title: exact(date) }, short(date, now));
}

function unitOf(seconds) {
  if (seconds < 2 * MINUTE) return [1, "s"];
  if (seconds < 2 * HOUR) return [MINUTE, "min"];
  return seconds < 3 * DAY ? [HOUR, "h"] : [DAY, "d"];
}

/** A length of time in one unit: "45 s", "12 min", "31 h", "9 d". */
export function span(seconds) {
  const [unit, name] = unitOf(seconds);
  return `${Math.trunc(seconds / unit)}${NB}${name}`;
}

/** "3 h ago". */
export function ago(iso, now) {
  return `${span(Math.max(0, (now - new Date(iso)) / 1000))} ago`;
}

/** Age and promise in one unit, "31.2 of 26 h": rounded so that a broken promise never looks kept. */
export function ageOf(seconds, promise) {
  if (promise === null) return seconds === null ? "" : span(seconds);
  const [unit, name] = unitOf(promise);
  const most = `${Number((promise / unit).toPrecision(3))}${NB}${name}`;
  if (seconds === null) return `none in ${most}`;
  const tenths = (seconds / unit) * 10;
  const rounded = seconds > promise ? Math.ceil(tenths) : Math.floor(tenths);
  return `${rounded < 1000 ? rounded / 10 : Math.trunc(rounded / 10)} of ${most}`;
}

/** Two units at most: "0.34 s", "42 s", "3 min 05 s", "2 h 10 min", "3 d 04 h". */
export function lasting(seconds) {
  if (seconds < 10) return `${seconds.toFixed(seconds < 1 ? 2 : 1)}${NB}s`;
  const whole = Math.round(seconds);
  if (whole < MINUTE) return `${whole}${NB}s`;
  if (whole < HOUR) return `${Math.trunc(whole / MINUTE)}${NB}min${NB}${two(whole % MINUTE)}${NB}s`;
  if (whole < DAY) return `${Math.trunc(whole / HOUR)}${NB}h${NB}${two(Math.trunc((whole % HOUR) / MINUTE))}${NB}min`;
  return `${Math.trunc(whole / DAY)}${NB}d${NB}${two(Math.trunc((whole % DAY) / HOUR))}${NB}h`;
}

/** Three digits and a binary unit: "0 B", "312 MiB", "4.50 GiB". */
export function size(bytes) {
  let value = bytes, unit = "B";
  for (const larger of ["KiB", "MiB", "GiB", "TiB", "PiB"]) {
    if (value < 1000) break;
    [value, unit] = [value / 1024, larger];
  }
  if (unit === "B") return `${bytes}${NB}B`;
  return `${value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0)}${NB}${unit}`;
}

/** "1 guest", "2 guests", "1,203 objects". */
export function counted(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

/** A name within a sentence, which it cannot turn around: isolated, as Unicode calls it. */
export const isolated = (name) => `\u2068${name}\u2069`;

/** The first few names, and how many more there are. */
export function listed(names, most = 8) {
  const more = names.length > most + 1 ? ` and ${names.length - most} more` : "";
  return names.slice(0, more ? most : names.length).map(isolated).join(", ") + more;
}

/** Text as a part of an address; half a character, which some names hold, has none and is replaced. */
export function addressed(text) {
  return encodeURIComponent(text.replace(/\p{Surrogate}/gu, "\ufffd"));
}

/** A name as the shell takes it. */
export function quoted(name) {
  return /^[\w@%+=:,./-]+$/.test(name) ? name : `'${name.replaceAll("'", "'\\''")}'`;
}
