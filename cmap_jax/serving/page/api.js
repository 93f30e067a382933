/** Requests to the service, and one sentence for whatever goes wrong. */

import { uploadOf } from "./uploads.js";
import { sentence } from "./words.js";

const PATIENCE = 8; // times that a request is repeated while the service is busy
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
export async function ask(path, { body = null, signal = null, onWait = () => {} } = {}) {
  for (let attempt = 1; ; attempt++) {
    const response = await reach(path, { method: body ? "POST" : "GET", body, signal, headers: headers() });
    if (response.ok) return response.json();
    const busy = response.status === 429 || response.status === 503;
    if (!busy || attempt > PATIENCE) throw await failure(response);
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

/** Return the address of a gallery picture, shrunk to `size` pixels a side on the screen. */
export function addressOfPicture(id, size) {
  // A slash stays a slash, since many proxies refuse an encoded one.
  const path = encodeURIComponent(id.toWellFormed()).replaceAll("%2F", "/");
  return `items/${path}/image?size=${devicePixelRatio > 1 ? 2 * size : size}`;
}

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

export const about = (options) => ask("about", options);

/** Return pictures of the gallery: {items, total}. */
export function gallery({ where, find }, offset, limit, options) {
  const fields = new URLSearchParams({ offset, limit });
  if (find) fields.set("q", find);
  if (Object.keys(where).length) fields.set("where", JSON.stringify(where));
  return ask(`items?${fields}`, options);
}

/** Return the best `k` pictures for a query: {hits, took_ms}. */
export function search(query, k, options) {
  const body = new FormData();
  for (const { item, upload } of query.references) {
    if (item !== undefined) body.append("item", item);
    else body.append("image", uploadOf(upload).blob, uploadOf(upload).name);
  }
  if (query.text) body.append("text", query.text);
  if (Object.keys(query.where).length) body.append("where", JSON.stringify(query.where));
  body.append("k", k);
  return ask("search", { ...options, body });
}
