// The landing page: a client of the public API like any other, refreshing by itself while it is looked at.

import { byId, clock, compact, day, el, number, span, text } from "./dom.js";
import { cells, curve } from "./plots.js";

const PERIOD_MS = 2000, DETAIL_MS = 4000, LETTERS_MS = 8000, RATE_OVER_MS = 10_000, PAGE = 50, BUCKET_S = 30;

class Refused extends Error {
  constructor(problem) {
    super(problem.detail);
    this.problem = problem;
  }
}

// web.auth = token: asked for once, and kept as a cookie that no script can read
let loggingIn = null;

function logIn() {
  loggingIn ??= (async () => {
    const token = window.prompt("This API needs a token (nevstream tokens add NAME):");
    if (!token) return false; // asked again when the page is loaded again
    const answer = await fetch("/v1/session", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ token: token.trim() }),
    });
    return answer.ok;
  })().catch(() => false);
  return loggingIn;
}

async function get(path) {
  let answer;
  try {
    answer = await fetch(path, { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(15_000) });
  } catch {
    throw new Refused({ status: 0, title: "The API does not answer", how_to_fix: "Is nevstream still running? Trying again." });
  }
  if (answer.status === 401 && (await logIn())) return get(path);
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({ title: `HTTP ${answer.status}`, how_to_fix: "See the server's log." }));
    throw new Refused({ ...problem, status: answer.status });
  }
  return answer.headers.get("content-type").startsWith("application/json") ? answer.json() : answer.text();
}

// -- status ------------------------------------------------------------------------------------------
function working(iso) {
  byId("banner").hidden = true;
  document.body.classList.remove("stale");
  byId("status").className = "status live";
  const offset = iso.slice(-6) === "+00:00" || iso.endsWith("Z") ? "UTC" : `UTC${iso.slice(-6)}`;
  text(byId("status-text"), `live · ${day(iso)} ${clock(iso)} ${offset}`);
}

function failing(error) {
  if (!(error instanceof Refused)) throw error;
  text(byId("banner-title"), error.problem.title);
  text(byId("banner-text"), error.problem.how_to_fix ?? "");
  byId("banner").hidden = false;
  document.body.classList.add("stale");
  byId("status").className = "status bad";
  text(byId("status-text"), samples.length ? "not live; what is shown is from before" : "not live; nothing to show yet");
}

// -- tiles -------------------------------------------------------------------------------------------
const samples = []; // {at, frames} of the last seconds, for the rate between them
let asOf = Date.now();

const TILES = ["Vehicles", "Reporting now", "Driving", "Charging", "Reports stored", "Frames per second", "Newest frame"];
const tiles = TILES.map((label) => {
  const value = el("div", { class: "value" }, "–");
  const note = el("div", { class: "note" }, "\u00a0");
  byId("tiles").append(el("div", { class: "tile" }, el("div", { class: "label" }, label), value, note));
  return (main, below, unit) => {
    value.replaceChildren(main, ...(unit ? [el("small", null, unit)] : []));
    text(note, below);
    note.title = below;
  };
});

function share(part, whole) {
  return whole ? `${number((100 * part) / whole)} % of ${number(whole)}` : "none yet";
}

function frameRate() {
  const last = samples.at(-1), first = samples[0];
  if (samples.length < 2 || last.at - first.at < PERIOD_MS / 2) return null; // too short to be a rate
  return { rate: ((last.frames - first.frames) * 1000) / (last.at - first.at), over: last.at - first.at };
}

async function showOverview() {
  const [overview, exposition] = await Promise.all([get("/v1/overview"), get("/metrics").catch(() => "")]);
  asOf = Date.parse(overview.as_of);
  if (overview.ledger) samples.push({ at: asOf, frames: overview.ledger.frames });
  while (samples.length > 2 && asOf - samples[0].at > RATE_OVER_MS + PERIOD_MS) samples.shift();
  const { reporting, ledger } = overview;
  const within = overview.reporting_within_s / 60;
  const measured = frameRate();
  // the lag is only there when a pipeline of this machine has counted frames
  const lag = /^nevstream_pipeline_frames_total\{/m.test(exposition) && /^nevstream_pipeline_lag_seconds (\S+)/m.exec(exposition);
  tiles[0](compact(overview.vehicles), `${number(overview.ever_reported)} have reported`);
  tiles[1](compact(reporting.total), `within ${number(within)} min`);
  tiles[2](compact(reporting.driving), share(reporting.driving, reporting.total));
  tiles[3](compact(reporting.charging), share(reporting.charging, reporting.total));
  if (!ledger) tiles[4]("–", "not counted by fleet");
  else tiles[4](compact(ledger.rows), `${compact(ledger.rejected)} refused, ${compact(ledger.duplicates)} resent`);
  tiles[5](measured ? compact(Math.round(measured.rate)) : "–", measured ? `over the last ${span(measured.over)}` : "measuring");
  if (overview.newest_received_at) {
    const [value, unit] = span(asOf - Date.parse(overview.newest_received_at)).split(" ");
    tiles[6](value, lag ? `pipeline lag ${number(Number(lag[1]), 2)} s` : "since it arrived", `${unit} ago`);
  } else tiles[6]("–", "nothing has arrived");
  working(overview.as_of);
}

// -- vehicles ----------------------------------------------------------------------------------------
const STATES = { driving: "driving", charging: "charging", parked: "parked", unknown: "not said", never_reported: "no report" };
const lines = new Map(); // VIN → its line, so that a refresh rewrites text only
let chosen = decodeURIComponent(location.hash.slice(1)) || null;
let cursor = null;

function line(vin) {
  const cell = (attributes) => el("td", attributes);
  const parts = { state: el("span", null, ""), seen: cell({ class: "n" }), soc: el("span", { class: "number" }),
    fill: el("span", { class: "fill" }), speed: cell({ class: "n" }), volts: cell({ class: "n" }) };
  parts.badge = el("span", { class: "state" }, el("span", { class: "dot" }), parts.state);
  parts.meter = el("div", { class: "meter" }, el("span", { class: "track" }, parts.fill), parts.soc);
  parts.row = el("tr", { onclick: () => choose(vin) },
    el("td", null, el("button", { class: "vin", type: "button" }, vin)), el("td", null, parts.badge), parts.seen,
    el("td", null, parts.meter), parts.speed, parts.volts);
  return parts;
}

function showLine(vehicle) {
  if (!lines.has(vehicle.vin)) lines.set(vehicle.vin, line(vehicle.vin));
  const parts = lines.get(vehicle.vin);
  parts.row.className = `${vehicle.vin === chosen ? "chosen" : ""} ${vehicle.reporting ? "" : "silent"}`.trim();
  parts.badge.className = `state ${vehicle.reporting ? vehicle.activity : "hollow"}`;
  parts.badge.title = vehicle.reporting ? "" : "by its newest report; it is silent now";
  text(parts.state, STATES[vehicle.activity]);
  text(parts.seen, vehicle.last_received_at ? `${span(asOf - Date.parse(vehicle.last_received_at))} ago` : "–");
  text(parts.soc, vehicle.soc_pct === null ? "–" : `${vehicle.soc_pct} %`);
  parts.fill.style.width = `${vehicle.soc_pct ?? 0}%`;
  parts.fill.classList.toggle("low", vehicle.soc_pct !== null && vehicle.soc_pct < 20);
  text(parts.speed, number(vehicle.speed_kmh, 1));
  text(parts.volts, number(vehicle.total_voltage_v, 1));
  return parts.row;
}

async function showVehicles() {
  const query = new URLSearchParams({ limit: PAGE });
  const prefix = byId("search").value.trim();
  if (prefix) query.set("vin", prefix);
  if (cursor) query.set("cursor", cursor);
  const page = await get(`/v1/vehicles?${query}`);
  if (!chosen && page.vehicles.length) choose((page.vehicles.find((v) => v.reporting) ?? page.vehicles[0]).vin);
  const rows = page.vehicles.map(showLine);
  const body = byId("vehicles");
  if (rows.length !== body.children.length || rows.some((row, i) => row !== body.children[i])) body.replaceChildren(...rows);
  for (const vin of lines.keys()) if (lines.size > 10 * PAGE && !page.vehicles.some((v) => v.vin === vin)) lines.delete(vin);
  const empty = byId("vehicles-empty");
  empty.hidden = rows.length > 0;
  if (!rows.length) {
    empty.replaceChildren(...(prefix
      ? [el("strong", null, "No such vehicle"), `No VIN starts with ${prefix}.`]
      : [el("strong", null, "No vehicle yet"), "Connect one, or run ", el("code", null, "nevstream simulate"), "."]));
  }
  text(byId("vehicles-count"), rows.length ? `${number(rows.length)} on this page` : "");
  byId("first").hidden = cursor === null;
  byId("more").hidden = page.next_cursor === null;
  byId("more").onclick = () => { cursor = page.next_cursor; run(showVehicles); };
}

function choose(vin) {
  chosen = vin;
  history.replaceState(null, "", `#${encodeURIComponent(vin)}`);
  for (const [other, parts] of lines) parts.row.classList.toggle("chosen", other === vin);
  run(showVehicle);
}

// -- one vehicle -------------------------------------------------------------------------------------
const FACTS = [
  ["soc_pct", "State of charge", 0, "%"], ["speed_kmh", "Speed", 1, "km/h"], ["total_voltage_v", "Voltage", 1, "V"],
  ["total_current_a", "Current", 1, "A"], ["odometer_km", "Odometer", 1, "km"], ["insulation_resistance_kohm", "Insulation", 0, "kΩ"],
  ["motor_speed_rpm", "Motor speed", 0, "r/min"], ["motor_torque_nm", "Motor torque", 1, "N·m"], ["motor_temp_c", "Motor temp.", 0, "°C"],
  ["probe_max_c", "Warmest probe", 0, "°C"],
];
const PLOTS = [
  ["soc_pct", "State of charge", "%", "--soc", 0, [0, 100]], ["speed_kmh", "Speed", "km/h", "--speed", 1, null],
  ["total_voltage_v", "Voltage", "V", "--volt", 1, null],
];

function fact([name, label, digits, unit], latest) {
  const value = latest.signals[name], flaw = latest.flaws[name];
  if (value === undefined && flaw === undefined) return null;
  const shown = value === undefined
    ? el("div", { class: "value none" }, flaw.replaceAll("_", " "))
    : el("div", { class: "value", title: flaw ?? null }, number(value, digits), el("small", null, flaw ? `${unit} ?` : unit));
  return el("div", { class: "fact" }, el("h3", null, label), shown);
}

function chips(latest) {
  const found = [];
  const level = latest.signals.alarm_level;
  if (level > 0) found.push(el("span", { class: "chip bad" }, `alarm level ${level}`));
  for (const name of latest.alarms) found.push(el("span", { class: "chip bad" }, name.replaceAll("_", " ")));
  for (const [name, word] of Object.entries(latest.meanings)) {
    if (["vehicle_state", "charge_state", "run_mode"].includes(name)) found.push(el("span", { class: "chip" }, `${name.replace("_state", "").replace("_", " ")}: ${word.replaceAll("_", " ")}`));
  }
  for (const [name, state] of Object.entries(latest.flaws)) found.push(el("span", { class: "chip warn" }, `${name} ${state.replaceAll("_", " ")}`));
  for (const note of latest.notes) found.push(el("span", { class: "chip warn" }, note.replaceAll("_", " ")));
  return found.length ? el("div", { class: "chips" }, found) : null;
}

function plotOf([name, label, unit, colour, digits, range], telemetry) {
  const points = telemetry.rows.map((row) => ({
    at: Date.parse(row.time), iso: row.time, value: row[`${name}_avg`], low: row[`${name}_min`], high: row[`${name}_max`],
  }));
  const reading = el("span", { class: "reading" });
  const known = points.filter((p) => p.value !== null);
  const spread = known.length
    ? `${number(Math.min(...known.map((p) => p.low)), digits)} to ${number(Math.max(...known.map((p) => p.high)), digits)} ${unit}`
    : "no value in this hour";
  text(reading, spread);
  return el("div", null,
    el("div", { class: "plot-head" }, el("h3", null, label), reading),
    known.length ? curve({ points, from: Date.parse(telemetry.from), to: Date.parse(telemetry.to), bucketMs: BUCKET_S * 1000,
      colour: `var(${colour})`, digits, unit, range, onpoint: (said) => text(reading, said ?? spread) }) : null);
}

function packOf(pack, many) {
  const { plot, summary } = cells(pack);
  const title = `Cell voltages${many ? `, pack ${pack.no}` : ""}`;
  if (!summary) return el("div", null, el("h3", null, title), el("p", { class: "quiet" }, `${pack.cells_v.length} cells, none with a value`));
  const said = `${number(summary.count)} cells · axis from ${summary.low.toFixed(3)} V · spread ${number((summary.most - summary.least) * 1000)} mV`;
  const missing = summary.none + (pack.cells_missing || 0);
  return el("div", null,
    el("div", { class: "plot-head" }, el("h3", null, title, el("span", { class: "key most" }), "highest", el("span", { class: "key least" }), "lowest"),
      el("span", { class: "reading" }, missing ? `${said} · ${number(missing)} without value` : said)), plot);
}

function nothingOf(vin, title, words) {
  byId("vehicle").replaceChildren(
    el("div", { class: "head" }, el("h2", { class: "mono" }, vin ?? "Vehicle")),
    el("div", { class: "empty" }, el("strong", null, title), words));
}

async function showVehicle() {
  const vin = chosen;
  if (!vin && !samples.length) return;
  if (!vin) return nothingOf(null, "No vehicle chosen", "Its newest report and last hour will be here.");
  let latest, telemetry, hour;
  const path = encodeURIComponent(vin);
  try {
    latest = await get(`/v1/vehicles/${path}/latest`);
    const end = Date.parse(latest.time) + 1000;
    hour = new URLSearchParams({ from: new Date(end - 3_600_000).toISOString(), to: new Date(end).toISOString() });
    const fields = PLOTS.map(([name]) => name).join(",");
    telemetry = await get(`/v1/vehicles/${path}/telemetry?${hour}&bucket=${BUCKET_S}s&fields=${fields}`);
  } catch (error) {
    if (error instanceof Refused && [404, 422].includes(error.problem.status)) {
      if (vin === chosen) nothingOf(vin, error.problem.title, error.problem.detail);
      return;
    }
    throw error;
  }
  // a choice made meanwhile wins; and nothing moves under a pointer that is reading a curve
  if (vin !== chosen || byId("vehicle").querySelector("svg:hover")) return;
  byId("vehicle").replaceChildren(
    el("div", { class: "head" },
      el("h2", { class: "mono" }, vin),
      el("p", { class: "quiet" }, `${day(latest.time)} ${clock(latest.time)} · ${latest.kind} · ${latest.edition ? `GB/T 32960-${latest.edition}` : "JSON"} by ${latest.door}`)),
    el("div", { class: "body" },
      el("div", { class: "facts" }, FACTS.map((each) => fact(each, latest))),
      chips(latest),
      el("div", { class: "plots" }, PLOTS.map((each) => plotOf(each, telemetry))),
      latest.packs.map((pack) => packOf(pack, latest.packs.length > 1)),
      el("p", { class: "quiet" }, "The hour up to its newest report, 30 s buckets: mean, with lowest and highest shaded. ",
        el("a", { href: `/v1/vehicles/${path}/latest` }, "All values"), " · ",
        el("a", { href: `/v1/vehicles/${path}/telemetry?${hour}&format=csv&fields=all&limit=3600`, download: `${vin}.csv` }, "This hour as CSV"))));
}

// -- dead letters ------------------------------------------------------------------------------------
async function showLetters() {
  const page = await get("/v1/dead-letters?limit=20");
  byId("letters").replaceChildren(...page.dead_letters.map((letter) => el("tr", null,
    el("td", { title: letter.received_at }, `${day(letter.received_at)} ${clock(letter.received_at)}`),
    el("td", { title: letter.meaning }, el("a", { href: `/v1/dead-letters/${letter.id}` }, letter.reason)),
    el("td", { class: "mono" }, letter.vin ?? "–"),
    el("td", null, letter.door), el("td", { class: "n" }, number(letter.frame_bytes)),
    el("td", { class: "wrap" }, letter.how_to_fix))));
  const empty = byId("letters-empty");
  empty.hidden = page.count > 0;
  if (!page.count) empty.replaceChildren(el("strong", null, "No dead letters"), "Every frame so far has become a row or needed none.");
}

// -- refreshing --------------------------------------------------------------------------------------
const underWay = new Set();

async function run(task) {
  if (underWay.has(task)) return;
  underWay.add(task);
  try {
    await task();
  } catch (error) {
    failing(error);
  } finally {
    underWay.delete(task);
  }
}

function every(period, task) {
  const tick = async () => {
    if (!document.hidden) await run(task);
    setTimeout(tick, document.body.classList.contains("stale") ? 2 * period : period);
  };
  tick();
}

let typing;
byId("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => { cursor = null; run(showVehicles); }, 200);
});
byId("first").addEventListener("click", () => { cursor = null; run(showVehicles); });
window.addEventListener("hashchange", () => choose(decodeURIComponent(location.hash.slice(1))));
document.addEventListener("visibilitychange", () => { if (!document.hidden) [showOverview, showVehicles, showVehicle].forEach(run); });

nothingOf(chosen, "Waiting for the first answer", "");
for (const id of ["vehicles-empty", "letters-empty"]) {
  byId(id).replaceChildren(el("strong", null, "Waiting for the first answer"));
  byId(id).hidden = false;
}
every(PERIOD_MS, showOverview);
every(PERIOD_MS, showVehicles);
every(DETAIL_MS, showVehicle);
every(LETTERS_MS, showLetters);
