// What the guard counts, read from /metrics every few seconds while somebody looks.

import { readiness, text } from "./api.js";
import { h, percent, show, svg } from "./dom.js";

const EVERY_MS = 5000;
const KEPT = 60;

/** The guard's series of a scrape: name -> [{labels, value}]. */
export function parsed(scrape) {
  const found = new Map();
  for (const line of scrape.split("\n")) {
    if (!line.startsWith("eco_")) continue;
    const [, name, inside, value] = line.match(/^(\w+)(?:\{(.*)\})? (\S+)/) || [];
    if (!name) continue;
    const labels = {};
    for (const [, label, said] of (inside || "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[label] = said;
    if (!found.has(name)) found.set(name, []);
    found.get(name).push({ labels, value: Number(value) });
  }
  return found;
}

export function total(scrape, name, labels = {}) {
  const wanted = Object.entries(labels);
  return (scrape.get(name) || [])
    .filter((one) => wanted.every(([label, said]) => one.labels[label] === said))
    .reduce((sum, one) => sum + one.value, 0);
}

/** The latency that 95 of 100 prompts between two scrapes stayed below, in seconds; null without prompts. */
function latency95(before, after) {
  const buckets = (scrape) =>
    new Map((scrape.get("eco_guard_latency_seconds_bucket") || []).map((one) => [one.labels.le, one.value]));
  const old = buckets(before);
  const grown = [...buckets(after)].map(([le, count]) => [
    le === "+Inf" ? Infinity : Number(le),
    count - (old.get(le) || 0),
  ]);
  grown.sort((one, other) => one[0] - other[0]);
  const all = grown.length ? grown[grown.length - 1][1] : 0;
  if (all <= 0) return null;
  const reached = grown.find(([, count]) => count >= 0.95 * all)[0];
  return Number.isFinite(reached) ? reached : grown[grown.length - 2][0];
}

const samples = [];
const listeners = new Set();

export const latest = () => samples[samples.length - 1]?.scrape || new Map();

export const flaggedOf = (policy) => total(latest(), "eco_verdicts_total", { policy, flagged: "true" });

/** Call `listener` after each look, until its node is no longer shown. */
export function follow(node, listener) {
  const own = { node, listener };
  listeners.add(own);
  if (samples.length) listener();
}

async function look() {
  const health = document.getElementById("health");
  try {
    const [scrape, ready] = [parsed(await text("/metrics")), await readiness()];
    samples.push({ at: performance.now(), scrape });
    samples.splice(0, Math.max(0, samples.length - KEPT));
    say(health, ready.ready ? "ready" : "unready", ready.ready ? "Ready" : `Not ready: ${ready.reason}`);
  } catch {
    say(health, "lost", "Does not answer");
  }
  for (const own of listeners) {
    if (own.node.isConnected) own.listener();
    else listeners.delete(own);
  }
}

function say(health, kind, words) {
  if (health.textContent !== words) health.textContent = words; // it is read out where it changes
  health.className = `health ${kind}`;
}

/** Look now and every few seconds while the page can be seen; call once. */
export function watch() {
  let timer = 0;
  const again = async () => {
    clearTimeout(timer);
    if (!document.hidden) await look();
    clearTimeout(timer);
    timer = setTimeout(again, EVERY_MS);
  };
  document.addEventListener("visibilitychange", again);
  return again();
}

/** Differences of a counter from sample to sample; one that fell was of a server that started anew. */
function growth(count) {
  const grown = [];
  for (let number = 1; number < samples.length; number++) {
    const gained = count(samples[number].scrape) - count(samples[number - 1].scrape);
    grown.push(Math.max(0, gained));
  }
  return grown;
}

const KINDS = [
  {
    name: "Prompts",
    count: (scrape) => total(scrape, "eco_prompts_total"),
    since: (scrape) => `${total(scrape, "eco_prompts_total").toLocaleString()} since the start`,
  },
  {
    name: "Corrupted or refused",
    count: (scrape) =>
      total(scrape, "eco_prompts_total", { outcome: "corrupted" }) +
      total(scrape, "eco_prompts_total", { outcome: "refused" }),
    since(scrape) {
      const all = total(scrape, "eco_prompts_total");
      return all ? `${percent(this.count(scrape) / all)} since the start` : "none since the start";
    },
  },
  {
    name: "Answers caught",
    count: (scrape) => total(scrape, "eco_answer_hits_total"),
    since: (scrape) => `of ${total(scrape, "eco_answers_total").toLocaleString()} read since the start`,
  },
  {
    name: "Failed or turned away",
    count: (scrape) => total(scrape, "eco_guard_errors_total") + total(scrape, "eco_guard_turned_away_total"),
    since(scrape) {
      return `${this.count(scrape).toLocaleString()} since the start`;
    },
  },
];

/** Tiles that follow the counters of the last minutes. */
export function tiles() {
  const box = h("section", { class: "tiles live", "aria-label": "Live counters" });
  const made = KINDS.map((kind) => tile(kind.name));
  const delay = tile("Verdict within");
  box.append(...made.map((one) => one.node), delay.node);
  follow(box, () => {
    const scrape = latest();
    const minutes = Math.max(1 / 60, (performance.now() - (samples[0]?.at || 0)) / 60000);
    const span =
      samples.length > 1 ? `in ${minutes < 1 ? `${Math.round(minutes * 60)} s` : `${Math.round(minutes)} min`}` : "";
    KINDS.forEach((kind, number) => {
      const grown = growth(kind.count);
      made[number].set(grown.reduce((sum, one) => sum + one, 0).toLocaleString(), span, kind.since(scrape), grown);
    });
    const each = samples.slice(1).map((one, number) => latency95(samples[number].scrape, one.scrape));
    const now = samples.length > 1 ? latency95(samples[0].scrape, scrape) : null;
    const waiting = scrape.has("eco_guard_queue_prompts")
      ? `${total(scrape, "eco_guard_queue_prompts")} waiting now`
      : "";
    delay.set(
      now === null ? "–" : now < 1 ? `${+(now * 1000).toPrecision(2)} ms` : `${now} s`,
      now === null ? "" : "for 95 %",
      waiting,
      each.map((one) => one || 0),
    );
  });
  return box;
}

function tile(name) {
  const [number, span, since, chart] = [
    h("span", { class: "number" }, "–"),
    h("span", { class: "span" }),
    h("p", { class: "since" }),
    h("div", { class: "chart" }),
  ];
  const node = h("div", { class: "tile" }, h("h3", {}, name), h("p", {}, number, " ", span), chart, since);
  return {
    node,
    set(value, over, whole, grown) {
      [number.textContent, span.textContent, since.textContent] = [value, over, whole];
      show(chart, sparkline(grown));
    },
  };
}

function sparkline(values) {
  const most = Math.max(...values, 1e-9);
  const step = 100 / (Math.max(values.length, KEPT / 3) - 1);
  const first = 100 - step * (values.length - 1);
  const points = values.map(
    (value, number) => `${(first + number * step).toFixed(2)},${(23 - (22 * value) / most).toFixed(2)}`,
  );
  return svg(
    "svg",
    { viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("line", { x1: 0, x2: 100, y1: 23.5, y2: 23.5, class: "ground" }),
    points.length > 1 && svg("polyline", { points: points.join(" "), class: "curve" }),
  );
}
