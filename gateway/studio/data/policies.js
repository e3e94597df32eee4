// All policies: which act, how, what was measured, what they flag.

import { get, post } from "./api.js";
import { flaggedOf, follow, latest, tiles, total } from "./counters.js";
import { h, notice, percent, problem, short, show } from "./dom.js";

const PAGE = 25;
const STATES = { corrupt: "Corrupts", refuse: "Refuses", observe: "Observes" };

export const stateOf = (policy) => (policy.active ? STATES[policy.action] || policy.action : "Off");

export function chip(policy) {
  return h("span", { class: `chip ${policy.active ? policy.action : "off"}` }, stateOf(policy));
}

export function scopeOf(policy) {
  if (!policy.active) return "–";
  const parts = [policy.share < 100 ? `${policy.share} % of prompts` : "all prompts"];
  if (policy.models) parts.push(`models ${policy.models.join(", ")}`);
  if (policy.tenants)
    parts.push(policy.tenants.length > 2 ? `${policy.tenants.length} tenants` : `tenants ${policy.tenants.join(", ")}`);
  return parts.join("; ");
}

/** What the page of all policies shows. `chosen` outlives it: whoever comes back finds what was searched for. */
const chosen = { words: "", state: "", page: 0 };

export async function policiesView(status) {
  let { policies, refused } = await get("/v1/policies");
  const table = h("div", {});
  const words = h("input", {
    type: "search",
    placeholder: "Name, version or digest",
    "aria-label": "Search policies",
    value: chosen.words,
  });
  const states = h(
    "select",
    { "aria-label": "State" },
    [
      ["", "Any state"],
      ["corrupt", "Corrupts"],
      ["refuse", "Refuses"],
      ["observe", "Observes"],
      ["off", "Off"],
    ].map(([value, said]) => h("option", { value, selected: value === chosen.state }, said)),
  );
  const refusals = h("div", {});

  const search = h("div", { class: "search", role: "search" }, words, states);
  const draw = () => {
    search.hidden = !policies.length;
    const sought = chosen.words.trim().toLowerCase();
    const found = policies.filter((policy) => {
      const state = policy.active ? policy.action : "off";
      const said = [policy.name, policy.version || "", policy.digest || ""].join("\n").toLowerCase();
      return (!chosen.state || chosen.state === state) && said.includes(sought);
    });
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    chosen.page = Math.min(chosen.page, pages - 1);
    const shown = found.slice(chosen.page * PAGE, (chosen.page + 1) * PAGE);
    if (!policies.length) show(table, empty(status));
    else if (!found.length) show(table, h("p", { class: "empty" }, "No policy matches."));
    else show(table, rows(shown), pages > 1 && pager(found.length, pages, draw, table));
    const reasons = Object.entries(refused);
    show(
      refusals,
      reasons.length > 0 &&
        h(
          "details",
          { class: "problem", open: reasons.length < 4 },
          h("summary", {}, `${reasons.length} could not act`),
          h(
            "dl",
            {},
            reasons.map(([where, reason]) => [h("dt", {}, where), h("dd", {}, reason)]),
          ),
        ),
    );
  };
  words.addEventListener("input", () => {
    [chosen.words, chosen.page] = [words.value, 0];
    draw();
  });
  states.addEventListener("change", () => {
    [chosen.state, chosen.page] = [states.value, 0];
    draw();
  });

  const reload = async () => {
    ({ policies, refused } = await get("/v1/policies"));
    draw();
  };
  draw();
  const view = h(
    "div",
    { class: "view" },
    h("h1", {}, "Policies"),
    tiles(),
    !status.writable && readOnly(status),
    refusals,
    h("div", { class: "tools" }, search, status.writable && upload(reload)),
    table,
  );
  let set = setOf();
  follow(view, () => {
    if (setOf() === set) return; // another operator, or the folder
    set = setOf();
    reload().catch(() => {});
  });
  return view;
}

/** Differs where what is in force does, or what could not act. */
const setOf = () =>
  JSON.stringify([
    (latest().get("eco_policy_set_info") || [])[0]?.labels.digest,
    total(latest(), "eco_policy_activations_total"),
  ]);

function rows(policies) {
  const line = (policy) => {
    const flagged = h("td", { "data-label": "Flagged" });
    follow(flagged, () => (flagged.textContent = policy.active ? flaggedOf(policy.name).toLocaleString() : "–"));
    const measured = policy.measured || {};
    return h(
      "tr",
      {},
      h(
        "th",
        { scope: "row" },
        h("a", { href: `#policy/${encodeURIComponent(policy.name)}` }, policy.name),
        h(
          "small",
          {},
          policy.active
            ? `version ${policy.version} · ${short(policy.digest)}`
            : `${policy.versions.length} kept ${policy.versions.length === 1 ? "version" : "versions"}`,
        ),
      ),
      h("td", { "data-label": "State" }, chip(policy)),
      h("td", { "data-label": "Acts on", class: "words" }, scopeOf(policy)),
      h("td", { "data-label": "Recall" }, percent(measured.recall)),
      h("td", { "data-label": "False positives" }, percent(measured.false_positive_rate)),
      flagged,
    );
  };
  return h(
    "table",
    { class: "policies" },
    h("caption", { class: "unseen" }, "Policies, measured on prompts left out of training; flagged since the start"),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        ["Policy", "State", "Acts on", "Recall", "False positives", "Flagged"].map((name) =>
          h("th", { scope: "col" }, name),
        ),
      ),
    ),
    h("tbody", {}, policies.map(line)),
  );
}

function pager(found, pages, draw, table) {
  const turn = (by) => () => {
    chosen.page += by;
    draw();
    table.querySelector("nav button:not([disabled])")?.focus();
  };
  const last = Math.min(found, (chosen.page + 1) * PAGE);
  return h(
    "nav",
    { class: "pager", "aria-label": "Pages" },
    h("button", { type: "button", disabled: chosen.page === 0, click: turn(-1) }, "Previous"),
    h("span", { role: "status" }, `${chosen.page * PAGE + 1}–${last} of ${found}`),
    h("button", { type: "button", disabled: chosen.page === pages - 1, click: turn(1) }, "Next"),
  );
}

export function readOnly(status) {
  const why = status.policy_dir
    ? `The policy folder ${status.policy_dir} cannot be written: policies act as it says.`
    : "This server was started without --policy-dir: its policies act as they were built, and none can be changed here.";
  return h("p", { class: "note" }, why);
}

function empty(status) {
  return h(
    "div",
    { class: "empty" },
    h("h2", {}, "No policies yet"),
    h("p", {}, "Prompts pass as in plain vLLM. Build one, and bring it here:"),
    h(
      "pre",
      {},
      `eco policy build --help\n${status.writable ? "eco policy push built/NAME" : "eco serve MODEL --policy-dir DIR"}`,
    ),
  );
}

function upload(reload) {
  const failed = h("div", {});
  const file = h("input", { type: "file", class: "unseen", id: "upload", accept: ".tar.gz,.tgz,application/gzip" });
  const label = h("label", { for: "upload", class: "button" }, "Upload a policy …");
  file.addEventListener("change", async () => {
    if (!file.files.length) return;
    label.textContent = "Checking …";
    show(failed);
    try {
      const kept = await post("/v1/policies", file.files[0]);
      notice(`${kept.name}, version ${kept.version}, is kept. It does not act yet.`);
      await reload();
    } catch (error) {
      show(failed, problem(error.message));
    }
    [label.textContent, file.value] = ["Upload a policy …", ""];
  });
  return h("div", { class: "upload" }, file, label, failed);
}
