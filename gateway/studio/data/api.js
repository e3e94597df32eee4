// The admin address, asked with the key that was typed in. The key is kept for this tab, and goes into no address.

/** Of the admin address, which a proxy may have put under a path of its own. */
const ROOT = new URL("..", document.baseURI).pathname.slice(0, -1);
const KEY = "eco-admin-key";
const BY = "eco-by";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const session = {
  get key() {
    return sessionStorage.getItem(KEY) || "";
  },
  get by() {
    return sessionStorage.getItem(BY) || "studio";
  },
  keep(key, by) {
    sessionStorage.setItem(KEY, key);
    if (by) sessionStorage.setItem(BY, by);
  },
  forget() {
    sessionStorage.removeItem(KEY);
  },
};

async function answer(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  if (session.key) headers.Authorization = `Bearer ${session.key}`;
  if (method !== "GET") headers["X-Eco-By"] = session.by;
  if (body instanceof Blob) headers["Content-Type"] = "application/gzip";
  else if (body !== undefined) headers["Content-Type"] = "application/json";
  const sent = body === undefined || body instanceof Blob ? body : JSON.stringify(body);
  let got;
  try {
    got = await fetch(ROOT + path, { method, headers, body: sent, signal, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The gateway does not answer.");
  }
  if (got.ok) return got;
  const said = await got.json().catch(() => null);
  if (got.status === 401) dispatchEvent(new Event("eco-locked"));
  throw new ApiError(got.status, said?.error?.message || `The gateway answered ${got.status}.`);
}

export const get = async (path) => (await answer(path)).json();
export const post = async (path, body) => (await answer(path, { method: "POST", body })).json();
export const remove = async (path) => (await answer(path, { method: "DELETE" })).json();
export const text = async (path) => (await answer(path)).text();
export const picture = async (path) => URL.createObjectURL(await (await answer(path)).blob());

/** Whether new requests are welcome, and why not. */
export async function readiness() {
  const got = await fetch(`${ROOT}/readyz`, { cache: "no-store" });
  return got.json();
}

/** Server-sent events of a POST, one after the other. */
export async function* events(path, body, signal) {
  const got = await answer(path, { method: "POST", body, signal });
  const reader = got.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data: "));
      if (data.length) yield JSON.parse(data.map((line) => line.slice(6)).join("\n"));
    }
  }
}

export const pathOf = (name) => `/v1/policies/${encodeURIComponent(name)}`;
