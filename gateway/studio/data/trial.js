// A prompt tried: what the policies in force make of it, and its answers with and without the guard.

import { events, get, post } from "./api.js";
import { choices, field, h, percent, problem, show } from "./dom.js";

const SAMPLE = JSON.stringify([{ role: "user", content: "" }], null, 2);
const HINTS = {
  question: "One message of a user, in the model's chat template. Ctrl+Enter tries it.",
  text: "As it stands, as for completions. Ctrl+Enter tries it.",
  messages: "The messages of a chat, as a client sends them. Ctrl+Enter tries it.",
};
const SHOWN_POLICIES = 8;
const SHOWN_WINDOWS = 40;
/** What was typed, while the tab is open. */
const typed = { kind: "question", question: "", text: "", messages: SAMPLE, tokens: 96, answers: true };
let running = null;

export async function trialView(status) {
  const { policies } = await get("/v1/policies");
  const thresholds = new Map(
    policies.filter((policy) => policy.active).map((policy) => [policy.name, policy.threshold]),
  );
  const box = h("textarea", { rows: 6, spellcheck: "false", required: true });
  const [found, said, answers, failed] = [
    h("div", {}),
    h("p", { class: "verdict", role: "status" }),
    h("div", {}),
    h("div", {}),
  ];
  const tokens = h("input", { type: "number", min: 1, max: 4096, value: typed.tokens, inputmode: "numeric" });
  const compare = h("input", { type: "checkbox", id: "compare", checked: typed.answers });
  const button = h("button", { type: "submit", class: "primary" }, "Try");
  const stop = h("button", { type: "button", hidden: true, click: () => running?.abort() }, "Stop");

  const kinds = h("fieldset", { class: "kinds" }, h("legend", { class: "unseen" }, "Kind of prompt"));
  for (const [value, name] of [
    ["question", "Question"],
    ["text", "Text"],
    ["messages", "Chat (JSON)"],
  ]) {
    const choice = h("input", { type: "radio", name: "kind", value, checked: typed.kind === value });
    choice.addEventListener("change", () => {
      typed.kind = value;
      box.value = typed[value];
      document.getElementById(`${box.id}-hint`).textContent = HINTS[value];
    });
    kinds.append(h("label", {}, choice, h("span", {}, name)));
  }
  box.value = typed[typed.kind];
  box.addEventListener("input", () => (typed[typed.kind] = box.value));
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });

  const form = h(
    "form",
    { class: "trial", novalidate: true },
    kinds,
    field("Prompt", box, HINTS[typed.kind]),
    status.compares &&
      h(
        "div",
        { class: "compare" },
        h(
          "label",
          { for: "compare", class: "check" },
          compare,
          h("span", {}, "Answer it too, with and without the guard"),
        ),
        field("Tokens at most", tokens),
        h("p", { class: "hint" }, "Each use stands in the audit log."),
      ),
    failed,
    h("div", { class: "actions" }, button, stop),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    [typed.tokens, typed.answers] = [Number(tokens.value), compare.checked];
    running?.abort();
    const own = (running = new AbortController());
    show(failed);
    button.disabled = true;
    form.setAttribute("aria-busy", "true");
    [said.textContent, said.className] = ["Reading …", "verdict"];
    try {
      const asked = promptOf(box.value);
      const made = await post("/v1/classify", asked);
      show(found, result(made, thresholds, said));
      if (status.compares && compare.checked && made.token_ids.length) {
        stop.hidden = false;
        await sideBySide({ ...asked, max_tokens: typed.tokens }, answers, own.signal);
      } else show(answers);
    } catch (error) {
      said.textContent = "";
      if (error.name !== "AbortError") show(failed, problem(error.message));
    }
    stop.hidden = true;
    button.disabled = false;
    form.removeAttribute("aria-busy");
  });

  return h(
    "div",
    { class: "view" },
    h("h1", {}, "Try a prompt"),
    h(
      "div",
      { class: "halves" },
      h(
        "section",
        { class: "panel", "aria-label": "Prompt" },
        form,
        !status.compares &&
          h(
            "p",
            { class: "hint" },
            "This server gives no answers without the guard to compare with; --eco-compare-answers lets it.",
          ),
      ),
      h("section", { "aria-label": "Verdict", class: "outcome" }, said, found),
    ),
    answers,
  );
}

function promptOf(said) {
  if (!said.trim()) throw new Error("Prompt: is empty.");
  if (typed.kind === "text") return { text: said };
  if (typed.kind === "question") return { messages: [{ role: "user", content: said }] };
  let messages;
  try {
    messages = JSON.parse(said);
  } catch (error) {
    throw new Error(`Prompt: not JSON (${error.message}).`);
  }
  if (!Array.isArray(messages)) messages = messages?.messages;
  if (!Array.isArray(messages)) throw new Error('Prompt: expected a list of messages, or an object with "messages".');
  return { messages };
}

function result(made, thresholds, said) {
  const flagged = made.verdicts.filter((verdict) => verdict.flagged);
  const names = flagged.map((verdict) => verdict.policy).join(", ");
  const count = made.corrupted.length;
  let [words, kind] = ["Passes: no policy flags it.", "passes"];
  if (!made.verdicts.length) [words, kind] = ["Passes: no policy acts.", "passes"];
  else if (made.refused_by) [words, kind] = [`Refused by ${made.refused_by}.`, "refused"];
  else if (count)
    [words, kind] = [`Corrupted: ${count} of ${made.token_ids.length} tokens, flagged by ${names}.`, "corrupted"];
  else if (flagged.length) [words, kind] = [`Passes: ${names} flags it and only observes.`, "observed"];
  [said.textContent, said.className] = [words, `verdict ${kind}`];
  if (!made.verdicts.length) return null;
  return [tokensOf(made), scores("Policies", policiesOf(made, thresholds)), windows(made, thresholds)];
}

function tokensOf(made) {
  const corrupted = new Set(made.corrupted);
  const pieces = made.tokens.map((token, number) => {
    const word = token === "" ? "∅" : token.replaceAll("\n", "⏎\n");
    return corrupted.has(number) ? h("mark", { title: `token ${made.token_ids[number]}: corrupted` }, word) : word;
  });
  return h(
    "section",
    {},
    h("h2", {}, "The prompt's tokens"),
    h("p", { class: "tokens", tabindex: "0", role: "group", "aria-label": "Tokens of the prompt" }, pieces),
    corrupted.size > 0 &&
      h("p", { class: "hint" }, h("mark", {}, "Marked"), " tokens reach the model corrupted; all else as it is."),
  );
}

function policiesOf(made, thresholds) {
  const known = made.verdicts.map((verdict) => ({ ...verdict, threshold: thresholds.get(verdict.policy) }));
  known.sort((one, other) => other.flagged - one.flagged || (other.score ?? 0) - (one.score ?? 0));
  return known;
}

/** Bars of scores with the threshold on them: those that flag, then the highest. */
function scores(title, all) {
  const line = (one) =>
    h(
      "li",
      {},
      h("a", { href: `#policy/${encodeURIComponent(one.policy)}` }, one.policy),
      bar(one.score, one.threshold, one.flagged),
    );
  const rest = all.slice(SHOWN_POLICIES);
  const flagged = rest.filter((one) => one.flagged).length;
  return h(
    "section",
    {},
    h("h2", {}, title),
    h("ul", { class: "scores" }, all.slice(0, SHOWN_POLICIES).map(line)),
    rest.length > 0 &&
      h(
        "details",
        {},
        h("summary", {}, `${rest.length} more, of which ${flagged || "none"} ${flagged > 1 ? "flag" : "flags"} it`),
        h("ul", { class: "scores" }, rest.map(line)),
      ),
  );
}

function bar(score, threshold, flagged) {
  const fill = h("span", { class: "fill" });
  const mark = h("span", { class: "threshold" });
  fill.style.width = `${100 * Math.min(1, Math.max(0, score ?? 0))}%`;
  const is = typeof threshold === "number";
  if (is) mark.style.left = `${100 * threshold}%`;
  const said = typeof score === "number" ? score.toFixed(3) : "–";
  return h(
    "span",
    { class: `bar ${flagged ? "flagged" : ""}` },
    h("span", { class: "track", "aria-hidden": "true" }, fill, is && mark),
    h(
      "span",
      { class: "figure" },
      said,
      h("span", { class: "unseen" }, `${flagged ? ", flagged" : ""}${is ? `, threshold ${threshold.toFixed(3)}` : ""}`),
    ),
  );
}

function windows(made, thresholds) {
  const lines = made.windows.map(({ positions, scores: seen }) => {
    const [policy, score] = Object.entries(seen).sort((one, other) => other[1] - one[1])[0] || ["", null];
    const words = positions
      .map((position) => made.tokens[position])
      .join("")
      .trim();
    const verdict = made.verdicts.find((one) => one.policy === policy);
    const threshold = thresholds.get(policy);
    return {
      words,
      policy,
      score,
      threshold,
      flagged: Boolean(verdict?.flagged) && score !== null && threshold !== undefined && score >= threshold,
    };
  });
  if (!lines.length) return null;
  const shown = lines.slice(0, SHOWN_WINDOWS);
  const line = (one, number) =>
    h(
      "li",
      {},
      h(
        "div",
        {},
        h("span", { class: "snippet" }, `${number + 1}. ${one.words}`),
        h("small", {}, one.policy || "no policy looked at it"),
      ),
      bar(one.score, one.threshold, one.flagged),
    );
  return h(
    "section",
    {},
    h("h2", {}, "Highest score by window"),
    h("ol", { class: "scores windows" }, shown.map(line)),
    lines.length > shown.length && h("p", { class: "hint" }, `The first ${shown.length} of ${lines.length} windows.`),
  );
}

async function sideBySide(asked, place, signal) {
  const column = (title, kind) => {
    const words = h("p", { class: "answer", tabindex: "0", role: "group", "aria-label": title });
    const end = h("p", { class: "hint", role: "status" }, "Waiting for the first token …");
    return {
      node: h("section", { class: `panel ${kind}`, "aria-busy": "true" }, h("h2", {}, title), words, end),
      words,
      end,
    };
  };
  const sides = { guarded: column("With the guard", "guarded"), unguarded: column("Without the guard", "unguarded") };
  show(place, h("div", { class: "halves answers" }, sides.guarded.node, sides.unguarded.node));
  const ended = (side, words, kind = "hint") => {
    [side.end.textContent, side.end.className] = [words, kind];
    side.node.removeAttribute("aria-busy");
    side.done = true;
  };
  try {
    for await (const event of events("/v1/compare", asked, signal)) {
      const side = sides[event.side];
      if (event.text) {
        side.words.append(event.text);
        side.end.textContent = "Answering …";
      } else if (event.error !== undefined) ended(side, event.error, "problem");
      else ended(side, event.finish_reason === "length" ? "Cut at the number of tokens." : "Ended by itself.");
    }
  } catch (error) {
    if (error.name !== "AbortError")
      for (const side of Object.values(sides)) if (!side.done) ended(side, error.message, "problem");
  }
  for (const side of Object.values(sides))
    if (!side.done) ended(side, signal.aborted ? "Stopped." : "Broken off.", signal.aborted ? "hint" : "problem");
}
