// One policy: its numbers and plots, and what happened to it.

import { get, pathOf, picture } from "./api.js";
import { flaggedOf, follow } from "./counters.js";
import { h, percent, short, show, when } from "./dom.js";
import { chip } from "./policies.js";
import { rollout, versions } from "./rollout.js";

const PLOTS = {
  scores: "Scores of prompts to forget and to keep",
  roc: "Recall against false positives",
  precision_recall: "Precision against recall",
  reliability: "Whether scores are probabilities",
  search: "Every strength tried, and what it did",
};
const RECENT = 8;

export async function policyView(status, name) {
  const view = h("div", { class: "view" });
  const draw = (policy) => {
    show(view, page(status, policy, draw));
    if (view.isConnected) view.querySelector("#rollout").focus({ preventScroll: true }); // what had the focus is gone
  };
  draw(await get(pathOf(name)));
  return view;
}

function page(status, policy, draw) {
  return [
    h("p", { class: "crumb" }, h("a", { href: "#policies" }, "← All policies")),
    h("div", { class: "title" }, h("h1", {}, policy.name), chip(policy)),
    policy.report && h("p", { class: "lead" }, policy.report.summary),
    h(
      "div",
      { class: "split" },
      h("div", { class: "side" }, rollout(status, policy, draw), versions(status, policy, draw)),
      h("div", { class: "body" }, numbers(policy), report(policy), plots(policy), history(policy)),
    ),
  ];
}

function numbers(policy) {
  const measured = policy.measured || {};
  const flagged = h("span", { class: "number" }, "–");
  if (policy.active) follow(flagged, () => (flagged.textContent = flaggedOf(policy.name).toLocaleString()));
  const of = (count, all) =>
    typeof all === "number" ? `${count.toLocaleString()} of ${all.toLocaleString()}` : "not measured";
  const tile = (name, number, since) =>
    h("div", { class: "tile" }, h("h3", {}, name), h("p", {}, number), h("p", { class: "since" }, since));
  const big = (said) => h("span", { class: "number" }, said);
  return h(
    "section",
    { class: "tiles", "aria-label": "Measured" },
    tile("Recall", big(percent(measured.recall)), `missed ${of(measured.missed, measured.positives)} to forget`),
    tile(
      "False positives",
      big(percent(measured.false_positive_rate)),
      `flagged ${of(measured.false_positives, measured.negatives)} to keep`,
    ),
    measured.level !== undefined &&
      tile(
        "Guarantee",
        big(`≤ ${percent(measured.level)}`),
        measured.error === "miss"
          ? "missed, of prompts as calibrated on"
          : "wrongly flagged, of prompts as calibrated on",
      ),
    tile("Flagged", flagged, policy.active ? "prompts since the server's start" : "does not act"),
  );
}

function report(policy) {
  if (!policy.report)
    return h("p", { class: "empty" }, "No version of it can be read: nothing is known of what was measured.");
  return h(
    "section",
    {},
    h("h2", {}, "What was measured"),
    h(
      "dl",
      { class: "rows" },
      policy.report.rows.map(([word, sentence]) => [h("dt", {}, word), h("dd", {}, sentence)]),
    ),
  );
}

function plots(policy) {
  const names = Object.keys(PLOTS).filter((name) => (policy.plots || []).includes(name));
  const rest = (policy.plots || []).filter((name) => !names.includes(name));
  if (!names.length && !rest.length) return null;
  const figure = (name) => {
    const title = PLOTS[name] || name;
    const image = h("img", { alt: `${title}, of policy ${policy.name}` });
    const place = h("figure", {}, image, h("figcaption", {}, title));
    picture(`${pathOf(policy.name)}/plots/${encodeURIComponent(name)}`)
      .then((url) => {
        image.addEventListener("load", () => {
          URL.revokeObjectURL(url);
          place.classList.toggle("wide", image.naturalWidth > 1.6 * image.naturalHeight);
        });
        image.src = url;
      })
      .catch((error) => show(place, h("figcaption", {}, `${title}: ${error.message}`)));
    return place;
  };
  return h("section", {}, h("h2", {}, "Plots"), h("div", { class: "plots" }, [...names, ...rest].map(figure)));
}

function saidOf({ activation, digest, version }) {
  const parts = [];
  if (digest) parts.push(`version ${version ?? "?"} (${short(digest)})`);
  if (activation.action) parts.push(activation.action);
  if (activation.answers) parts.push(`answers ${activation.answers}`);
  if (activation.share < 100) parts.push(`${activation.share} %`);
  if (activation.models) parts.push(`models ${activation.models.join(", ")}`);
  if (activation.tenants) parts.push(`tenants ${activation.tenants.join(", ")}`);
  return parts.join(" · ");
}

function history(policy) {
  if (!policy.history.length) return null;
  const line = (entry) =>
    h(
      "li",
      {},
      h("span", { class: "quiet" }, when(entry.at), h("small", {}, `by ${entry.by}`)),
      h("span", {}, h("strong", {}, entry.event), " ", saidOf(entry)),
    );
  const lines = [...policy.history].reverse().map(line);
  return h(
    "section",
    {},
    h("h2", {}, "History"),
    h("ol", { class: "history" }, lines.slice(0, RECENT)),
    lines.length > RECENT &&
      h(
        "details",
        {},
        h("summary", {}, `${lines.length - RECENT} earlier`),
        h("ol", { class: "history" }, lines.slice(RECENT)),
      ),
  );
}
