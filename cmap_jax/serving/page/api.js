/** Requests to the service, and one sentence for whatever goes wrong. */

import { uploadOf } from "./uploads.js";
import { sentence } from "./words.js";

const PATIENCE = 8; // times that a search is repeated while the service is busy
const KEY = "cmap-key"; // of the session's storage

/** An answer that is no result: a sentence for people, and the status, 0 without an answer. */
export class Failure extends Error {
  constructor(sentence, status) {
    super(sentence);
    this.status = status;
  }
}

export const hasKey = () => Boolean(sessionStorage.getItem(KEY));
export const setKey = (key) => sessionStorage.setItem(KEY, key);

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/**
 * Ask the service and return its answer, parsed.
 *
 * While it is busy (429 and 503) the request is repeated after the time that it names. `onWait` is
 * then called with the seconds that remain, and with 0 when the request goes out again.
 */
export async function ask(path, { body = null, signal = null, onWait = () => {}, patience = PATIENCE } = {}) {
  for (let attempt = 1; ; attempt++) {
    const response = await reach(path, { method: body ? "POST" : "GET", body, signal, headers: headers() });
    if (response.ok) return response.json();
    const busy = response.status === 429 || response.status === 503;
    if (!busy || attempt > patience) throw await failure(response);
    await countDown(secondsOf(response.headers.get("Retry-After")), signal, onWait);
  }
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The service cannot be reached. Is it still running, and are you online?", 0);
  }
}

async function failure(response) {
  const answer = await response.json().catch(() => ({}));
  return new Failure(sentence(answer.error ?? `the service failed with status ${response.status}`), response.status);
}

/** Return the seconds of a Retry-After header, which is a number or a date; 2 without one. */
function secondsOf(header) {
  if (header === null) return 2;
  const seconds = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.min(Math.max(Math.ceil(seconds), 1), 120) : 2;
}

async function countDown(seconds, signal, onWait) {
  for (let left = seconds; left > 0; left--) {
    onWait(left);
    await new Promise((done) => setTimeout(done, 1000));
    signal?.throwIfAborted();
  }
  onWait(0);
}

/**
 * Return the address of an item.
 *
 * A slash stays a slash, since many proxies refuse an encoded one. It is encoded where it would mean
 * something else: browsers take segments of dots away, and behind the id "/image" is its picture.
 */
function addressOf(id) {
  const segments = id.toWellFormed().split("/").map(encodeURIComponent);
  const hasDots = segments.some((segment) => segment === "." || segment === "..");
  const last = segments.length > 1 && segments.at(-1) === "image" ? `%2F${segments.pop()}` : "";
  return `items/${segments.join(hasDots ? "%2F" : "/")}${last}`;
}

/** Return the address of a gallery picture that takes `size` pixels a side on the screen. */
export const addressOfPicture = (id, size) => `${addressOf(id)}/image?size=${devicePixelRatio > 1 ? 2 * size : size}`;

/** Show a gallery picture in an <img>; with an API key it is fetched, since <img> sends none. */
export async function showPicture(image, id, size) {
  const address = addressOfPicture(id, size);
  if (!hasKey()) {
    image.src = address;
    return;
  }
  const response = await fetch(address, { headers: headers() }).catch(() => null);
  if (!response?.ok) {
    image.dispatchEvent(new Event("error"));
    return;
  }
  image.src = URL.createObjectURL(await response.blob());
  image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
}

/** Return what the service says of itself; while it starts, which may take minutes, wait for it. */
export const about = (options) => ask("about", { ...options, patience: Infinity });

export const item = (id) => ask(addressOf(id));

/** Return pictures of the gallery: {items, total}. */
export function gallery({ where, find }, offset, limit, options) {
  const fields = new URLSearchParams({ offset, limit });
  if (find) fields.set("q", find);
  if (Object.keys(where).length) fields.set("where", JSON.stringify(where));
  return ask(`items?${fields}`, options);
}

/** Return a query's pictures and words as a form. */
function formOf(query) {
  const body = new FormData();
  for (const { item, upload } of query.references) {
    if (item !== undefined) body.append("item", item);
    else body.append("image", uploadOf(upload).blob, uploadOf(upload).name);
  }
  if (query.text) body.append("text", query.text);
  return body;
}

/** Return where the score of the picture `id` comes from: overlays of the reference and of it. */
export function explain(query, id, options) {
  const body = formOf(query);
  body.append("target", id);
  return ask("explain", { ...options, body });
}

/** Return the best `k` pictures for a query: {hits, took_ms}. */
export function search(query, k, options) {
  const body = formOf(query);
  if (Object.keys(query.where).length) body.append("where", JSON.stringify(query.where));
  body.append("k", k);
  return ask("search", { ...options, body });
}
