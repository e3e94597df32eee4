// Which view is shown, and who may see it.

import { get, session } from "./api.js";
import { watch } from "./counters.js";
import { field, h, problem, show } from "./dom.js";
import { policiesView } from "./policies.js";
import { policyView } from "./policy.js";
import { trialView } from "./trial.js";

const main = document.getElementById("main");
const sections = document.getElementById("sections");
const leave = document.getElementById("leave");
let asked = 0;

async function viewOf(hash) {
  const status = await get("/v1/status");
  if (hash.startsWith("#policy/")) return policyView(status, decodeURIComponent(hash.slice("#policy/".length)));
  return hash === "#try" ? trialView(status) : policiesView(status);
}

async function route({ focus = true } = {}) {
  const own = ++asked;
  const hash = location.hash || "#policies";
  for (const link of sections.querySelectorAll("a")) {
    const here = link.hash === hash || (link.hash === "#policies" && hash.startsWith("#policy/"));
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  main.setAttribute("aria-busy", "true");
  let view;
  try {
    view = await viewOf(hash);
    sections.hidden = false;
    leave.hidden = !session.key;
  } catch (error) {
    if (error.status === 401) return;
    view = failed(error);
  }
  if (own !== asked) return; // somebody has gone on
  main.removeAttribute("aria-busy");
  show(main, view);
  document.title = `${main.querySelector("h1")?.textContent || "Policies"} · Policy studio`;
  scrollTo(0, 0);
  if (focus) main.focus({ preventScroll: true });
}

function failed(error) {
  return h(
    "div",
    { class: "view" },
    h("h1", {}, error.status === 404 ? "Not known here" : "That did not work"),
    problem(error.message),
    h(
      "div",
      { class: "actions" },
      h("button", { type: "button", click: () => route() }, "Try again"),
      h("a", { href: "#policies" }, "All policies"),
    ),
  );
}

function lock() {
  asked++;
  const wrong = Boolean(session.key);
  session.forget();
  sections.hidden = leave.hidden = true;
  main.removeAttribute("aria-busy");
  const key = h("input", { type: "password", autocomplete: "current-password", required: true });
  const by = h("input", {
    type: "text",
    autocomplete: "username",
    maxlength: 128,
    value: session.by === "studio" ? "" : session.by,
  });
  const said = h("div", {}, wrong && problem("The gateway does not know this key."));
  const form = h(
    "form",
    { class: "panel lock", novalidate: true },
    h("h1", {}, "Admin key"),
    h(
      "p",
      { class: "quiet" },
      "One of the lines of the server's ",
      h("code", {}, "--eco-admin-key-file"),
      ". It stays in this tab until the tab is closed.",
    ),
    field("Key", key),
    field("Your name (optional)", by, "Stands beside your changes in the audit log."),
    said,
    h("div", { class: "actions" }, h("button", { type: "submit", class: "primary" }, "Open")),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!/^[\x21-\x7e]+$/.test(key.value.trim()))
      return show(said, problem("Key: letters, digits and signs without spaces."));
    if (!/^[\x20-\x7e]*$/.test(by.value))
      return show(said, problem("Your name: plain letters, digits and signs alone."));
    session.keep(key.value.trim(), by.value.trim());
    return route();
  });
  show(main, form);
  document.title = "Admin key · Policy studio";
  key.focus();
}

addEventListener("eco-locked", lock);
addEventListener("hashchange", () => route());
leave.addEventListener("click", () => {
  session.forget();
  route();
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
watch();
route({ focus: false });
