// Calls of the server's JSON API. The token is kept until the tab is closed, and nowhere else.

const TOKEN = "neurona-token";
const TIMEOUT_MS = 60000;

/** An error as the server says it. */
export class CallError extends Error {
  constructor(message, code, status) {
    super(message);
    this.code = code;
    this.status = status;
  }

  get wantsToken() {
    return this.status === 401;
  }
}

export function token() {
  return sessionStorage.getItem(TOKEN) ?? "";
}

export function setToken(value) {
  if (value) sessionStorage.setItem(TOKEN, value);
  else sessionStorage.removeItem(TOKEN);
}

/** Runs a unary method, such as "Models/List"; returns the answer and what it took. */
export async function call(method, request, { signal } = {}) {
  const headers = { "Content-Type": "application/json", "x-request-timeout-ms": String(TIMEOUT_MS) };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  const body = JSON.stringify(request);
  const started = performance.now();
  let response;
  let text;
  try {
    response = await fetch(`neurona.v1.${method}`, { method: "POST", headers, body, signal, cache: "no-store", credentials: "omit", redirect: "error" });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError("server not reachable: it may have stopped, or closed the connection", "UNAVAILABLE", 0);
  }
  const roundTrip = performance.now() - started;
  if (!response.ok) throw errorOf(response, text);
  return { answer: JSON.parse(text), roundTrip, timing: parseTiming(response.headers.get("server-timing") ?? ""), sent: body.length, received: text.length };
}

function errorOf(response, text) {
  let said = {};
  try {
    said = JSON.parse(text);
  } catch {
    said = { message: text.trim().slice(0, 500) };
  }
  const message = typeof said?.message === "string" && said.message ? said.message : `HTTP status ${response.status}`;
  return new CallError(message, String(said?.code ?? ""), response.status);
}

/** What the header Server-Timing says: durations in milliseconds, and texts, by name. */
export function parseTiming(header) {
  const timing = {};
  for (const part of header.split(",")) {
    const [name, ...parameters] = part.split(";").map((piece) => piece.trim());
    if (!name) continue;
    const entry = {};
    for (const parameter of parameters) {
      const [key, value = ""] = parameter.split(/=(.*)/s);
      const plain = value.replace(/^"(.*)"$/, "$1");
      if (key.toLowerCase() === "dur" && Number.isFinite(Number(plain))) entry.duration = Number(plain);
      if (key.toLowerCase() === "desc") entry.text = plain;
    }
    timing[name.toLowerCase()] = entry;
  }
  return timing;
}

/** What the page may know of the server: addresses and versions. */
export async function serverFacts() {
  try {
    const response = await fetch("playground/server.json", { cache: "no-store", credentials: "omit" });
    return response.ok ? await response.json() : {};
  } catch {
    return {};
  }
}
