// Elements from plain values, and changes to those that are shown already: what stays the same is never touched, so
// that focus, selection and scroll positions live on. All text becomes text nodes: a name is never markup.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "rect", "path"]);

/** An element with attributes (null and false are left out) and children (texts, elements, lists of them). */
export function h(tag, attributes, ...children) {
  const node = DRAWN.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Makes `parent` hold `children`, with as little change as may be. */
export function fill(parent, ...children) {
  const focused = document.activeElement;
  const fresh = document.createElement("div");
  fresh.append(...children.flat(Infinity).filter(Boolean));
  matchChildren(parent, fresh);
  if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
}

function matchChildren(old, fresh) {
  const keyed = new Map();
  for (const child of old.children) {
    if (child.dataset.key !== undefined) keyed.set(child.dataset.key, child);
  }
  let at = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const match = counterpart(child, at, keyed);
    if (match === null) {
      old.insertBefore(child, at);
      continue;
    }
    if (match === at) at = at.nextSibling;
    else old.insertBefore(match, at);
    matchNode(match, child);
  }
  while (at !== null) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

/** The node that is shown for `child` already, or null. */
function counterpart(child, at, keyed) {
  const key = child.dataset?.key;
  if (key === undefined) {
    return at !== null && at.nodeName === child.nodeName && at.dataset?.key === undefined ? at : null;
  }
  const found = keyed.get(key) ?? null;
  keyed.delete(key);
  return found !== null && found.nodeName === child.nodeName ? found : null;
}

function matchNode(old, fresh) {
  if (fresh.nodeType === Node.ELEMENT_NODE && fresh.dataset.version && fresh.dataset.version === old.dataset.version) return;
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name); // a viewer opened it: it stays so
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  matchChildren(old, fresh);
}
