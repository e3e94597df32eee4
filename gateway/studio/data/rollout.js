// How one policy is rolled out: settings, versions, back, off, gone.

import { pathOf, post, remove } from "./api.js";
import { choices, confirmed, field, h, notice, problem, short, show } from "./dom.js";
import { readOnly, scopeOf } from "./policies.js";

const FOLLOW = "folder";
const ACTIONS = {
  corrupt: "corrupt: answer as if never learned",
  refuse: "refuse: an error to the client",
  observe: "observe: count, change nothing",
};
const ANSWERS = {
  restart: "restart: go on from a corrupted prompt",
  end: "end: stop there",
  observe: "observe: count",
  off: "off: do not read answers",
};

/** Names between commas; null for all. */
function listed(said) {
  const names = said
    .split(",")
    .map((name) => name.trim())
    .filter(Boolean);
  return names.length ? names : null;
}

/** How a policy acts, to be changed: `draw` is called with the policy as it acts then. */
export function rollout(status, policy, draw) {
  if (!status.writable || policy.static) {
    const note = status.writable
      ? h("p", { class: "note" }, "A policy of --policy: it acts as it was built as long as the server runs.")
      : readOnly(status);
    return h(
      "section",
      { class: "panel" },
      h("h2", { id: "rollout", tabindex: -1 }, "Rollout"),
      h("p", {}, scopeOf(policy)),
      note,
    );
  }
  const holds = policy.activation;
  const built = policy.built || { action: "?", answers: "?" };
  const version = choices(
    [
      ...(policy.follows_folder ? [[FOLLOW, "Follow the policy folder"]] : []),
      ...policy.versions.map((digest) => [digest, `${short(digest)}${digest === policy.digest ? " (acts)" : ""}`]),
    ],
    holds.digest || (policy.follows_folder ? FOLLOW : policy.report?.digest),
  );
  const action = choices([["", `As built (${built.action})`], ...Object.entries(ACTIONS)], holds.action || "");
  const answers = choices([["", `As built (${built.answers})`], ...Object.entries(ANSWERS)], holds.answers || "");
  const share = h("input", {
    type: "number",
    min: "0.01",
    max: "100",
    step: "any",
    required: true,
    value: holds.share,
    inputmode: "decimal",
  });
  const models = h("input", {
    type: "text",
    value: (holds.models || []).join(", "),
    placeholder: "all",
    autocomplete: "off",
    spellcheck: "false",
  });
  const tenants = h("input", {
    type: "text",
    value: (holds.tenants || []).join(", "),
    placeholder: "all",
    autocomplete: "off",
    spellcheck: "false",
  });
  const failed = h("div", {});
  const form = h("form", { class: "rollout", novalidate: true });

  /** Do one thing where it is wanted, and show what holds then, or why it does not. */
  const doing = (wanted, work, said) => async (event) => {
    event.preventDefault();
    if (!(await wanted())) return;
    show(failed);
    form.setAttribute("aria-busy", "true");
    const buttons = [...form.querySelectorAll("button")];
    buttons.forEach((button) => (button.disabled = true));
    try {
      const after = await work();
      notice(said(after) + (after.everywhere === false ? " Not yet in force on every front end." : ""));
      if (after.deleted) location.hash = "#policies";
      else draw(after);
      return;
    } catch (error) {
      show(failed, problem(error.message));
    }
    form.removeAttribute("aria-busy");
    buttons.forEach((button) => (button.disabled = false));
  };
  const activation = `${pathOf(policy.name)}/activation`;
  const apply = doing(
    () => true,
    async () => {
      const part = Number(share.value);
      if (!(part > 0 && part <= 100)) throw new Error("Share: a number above 0, 100 at most.");
      const asked = {
        action: action.value || null,
        answers: answers.value || null,
        share: part,
        models: listed(models.value),
        tenants: listed(tenants.value),
      };
      // What was not touched is not said: it may be another operator's by now.
      const change = Object.fromEntries(
        Object.entries(asked).filter(([name, said]) => JSON.stringify(said) !== JSON.stringify(holds[name])),
      );
      if (version.value && version.value !== (holds.digest || FOLLOW)) change.version = version.value;
      return post(activation, { active: true, ...change });
    },
    (after) => `${after.name} acts: ${scopeOf(after)}.`,
  );
  const stop = doing(
    () =>
      confirmed(
        `Stop ${policy.name}?`,
        "The model answers from then on as if the policy were not there. Its versions and settings stay.",
        "Stop acting",
      ),
    () => post(activation, { active: false }),
    () => `${policy.name} no longer acts.`,
  );
  const back = doing(
    () => confirmed(`Roll ${policy.name} back?`, "What held before the last change holds again.", "Roll back"),
    () => post(`${pathOf(policy.name)}/rollback`),
    (after) =>
      after.active
        ? `${after.name} is rolled back: ${scopeOf(after)}.`
        : `${after.name} is rolled back: it does not act.`,
  );
  const drop = doing(
    () =>
      confirmed(
        `Delete ${policy.name}?`,
        "It stops acting, and all its versions, its history and its folder are removed. This cannot be undone here.",
        `Delete ${policy.name}`,
      ),
    () => remove(pathOf(policy.name)),
    () => `${policy.name} is deleted.`,
  );
  form.addEventListener("submit", apply);
  form.append(
    field("Action on flagged prompts", action),
    field("Answers that give it away", answers),
    field("Share of prompts, in percent", share, "The same prompt is always on the same side."),
    field("Models", models, `Served names and LoRA adapters, between commas. Served: ${status.models.join(", ")}.`),
    field("Tenants", tenants, "Between commas. Requests of nobody known get every policy."),
    version.options.length > 0 && field("Version", version),
    failed,
    h(
      "div",
      { class: "actions" },
      h("button", { type: "submit", class: "primary" }, policy.active ? "Apply" : "Activate"),
      policy.active && h("button", { type: "button", click: stop }, "Stop acting …"),
      h("button", { type: "button", click: back, disabled: policy.history.length < 2 }, "Roll back …"),
      h("button", { type: "button", class: "danger", click: drop }, "Delete …"),
    ),
  );
  return h("section", { class: "panel" }, h("h2", { id: "rollout", tabindex: -1 }, "Rollout"), form);
}

export function versions(status, policy, draw) {
  if (!status.writable || policy.static || !policy.versions.length) return null;
  const failed = h("div", {});
  const seen = new Map(policy.history.filter((entry) => entry.digest).map((entry) => [entry.digest, entry.version]));
  const activate = (digest) => async () => {
    if (
      !(await confirmed(
        `Go to version ${seen.get(digest) || short(digest)}?`,
        `${policy.name} acts with ${short(digest)} from then on, with the settings that hold.`,
        "Go to it",
      ))
    )
      return;
    try {
      draw(await post(`${pathOf(policy.name)}/activation`, { version: digest }));
      notice(`${policy.name} acts with ${short(digest)}.`);
    } catch (error) {
      show(failed, problem(error.message));
    }
  };
  return h(
    "section",
    { class: "panel" },
    h("h2", {}, "Kept versions"),
    h(
      "ul",
      { class: "versions" },
      policy.versions.map((digest) =>
        h(
          "li",
          {},
          h("span", {}, seen.has(digest) && `version ${seen.get(digest)} `, h("code", {}, short(digest))),
          digest === policy.digest
            ? h("span", { class: "quiet" }, "acts")
            : h(
                "button",
                { type: "button", click: activate(digest), "aria-label": `Go to version ${short(digest)}` },
                "Go to it …",
              ),
        ),
      ),
    ),
    failed,
  );
}
