// Elements without markup in strings: what a vehicle or a peer says can only ever become text.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
export const byId = (id) => document.getElementById(id);

// Write only what differs, so that a refresh moves neither the focus nor a selection.
export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

const NUMBERS = new Map();
export function number(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  if (!NUMBERS.has(digits)) {
    NUMBERS.set(digits, new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  }
  return NUMBERS.get(digits).format(value);
}

export function compact(value) {
  if (value === null || value === undefined) return "–";
  return value < 100_000 ? number(value) : new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 }).format(value);
}

// "12 s", "4 min", "3 h", "2 d": both times come from the server, so the reader's clock does not matter.
export function span(milliseconds) {
  const s = milliseconds / 1000;
  if (s < 0) return "0 s";
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 100) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 129_600) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86_400)} d`;
}

// The clock of the fleet, as the answer has it: 2026-11-24T11:59:50+08:00 → 11:59:50
export const clock = (iso) => (iso ? iso.slice(11, 19) : "–");
export const day = (iso) => (iso ? iso.slice(0, 10) : "–");
