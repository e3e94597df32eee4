// Elements without markup: text goes in as text, whatever it says.

export function h(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function show(node, ...children) {
  node.replaceChildren(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
}

let fields = 0;

/** A label, its control, and a hint that belongs to it. */
export function field(label, control, hint) {
  control.id = control.id || `field-${++fields}`;
  const said = hint && h("p", { class: "hint", id: `${control.id}-hint` }, hint);
  if (said) control.setAttribute("aria-describedby", said.id);
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, said);
}

export function choices(options, chosen) {
  return h(
    "select",
    {},
    options.map(([value, said]) => h("option", { value, selected: value === chosen }, said)),
  );
}

export function problem(message) {
  return h("div", { class: "problem", role: "alert" }, message);
}

/** A short line that goes by itself, and is read out. */
export function notice(message) {
  const place = document.getElementById("notice");
  place.textContent = message;
  clearTimeout(notice.timer);
  notice.timer = setTimeout(() => (place.textContent = ""), 6000);
}

/** Ask before something that cannot be taken back, or that lets out what was held. */
export function confirmed(title, text, action) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog",
      { "aria-labelledby": "dialog-title", "aria-describedby": "dialog-text" },
      h("h2", { id: "dialog-title" }, title),
      h("p", { id: "dialog-text" }, text),
      h(
        "div",
        { class: "actions" },
        h("button", { type: "button", autofocus: true, click: () => dialog.close("no") }, "Cancel"),
        h("button", { type: "button", class: "danger", click: () => dialog.close("yes") }, action),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** A share as percent, with as many digits as say something. */
export function percent(share) {
  if (typeof share !== "number") return "–";
  const value = share * 100;
  return `${value === 0 || value >= 10 ? value.toFixed(value === 100 || value === 0 ? 0 : 1) : value.toPrecision(2)} %`;
}

export function when(iso) {
  const at = new Date(iso);
  return h("time", { datetime: iso }, Number.isNaN(at.getTime()) ? iso : at.toLocaleString());
}

export const short = (digest) => (digest ? digest.slice(0, 12) : "–");
