/** What is to be shown for a search, and how it is loaded. */

import * as api from "./api.js";
import { isBlank } from "./steps.js";
import { remember } from "./words.js";

export const PAGE = 24; // pictures that are loaded at once
const KEPT = 40; // answers that are kept, for the way back
const FRESH = 5 * 60 * 1000; // milliseconds until an answer is asked for again
const PICTURE_ALONE = "This model takes a picture alone. Remove the words.";
const WORDS_ALONE = "This model takes words alone. Remove the picture.";

/**
 * Return why the model cannot answer a query, as a request to the user; null where it can.
 *
 * `takes` is the service's: whether it searches by a picture alone, a text alone, and by both.
 */
export function missing({ references, text }, takes) {
  const hasPicture = references.length > 0;
  if (hasPicture && text) {
    if (takes.both) return null;
    if (takes.image && takes.text) return "This model takes a picture or words, not both. Remove one of them.";
    return takes.image ? PICTURE_ALONE : WORDS_ALONE;
  }
  if (hasPicture && !takes.image) return takes.both ? "Now type what should change." : WORDS_ALONE;
  if (text && !takes.text) return takes.both ? "Now pick the picture to start from." : PICTURE_ALONE;
  return null;
}

/**
 * Return what is shown for the last step of a trail: {kind, query, previous}.
 *
 * `kind` is "hits" or "gallery". While a new reference waits for its words, the previous step's
 * results stay, and `previous` is true.
 */
export function planOf(trail, takes) {
  const query = trail.at(-1);
  const answers = (step) => !isBlank(step) && missing(step, takes) === null;
  if (answers(query)) return { kind: "hits", query, previous: false };
  const before = query.references.length ? trail.slice(0, -1).findLast(answers) : undefined;
  if (before) return { kind: "hits", query: { ...before, where: query.where }, previous: true };
  return { kind: "gallery", query, previous: false };
}

const answers = new Map();

export const keyOf = ({ kind, query }) =>
  JSON.stringify(kind === "hits" ? [query.references, query.text, query.where] : [query.find, query.where]);

/**
 * Return the pictures from `offset` on: {items, more, total, took}.
 *
 * `more` tells whether there are further ones. `total` is null for hits, of which the service
 * returns `most` at most, and `took`, in milliseconds, is null for the gallery.
 */
export async function load(plan, offset, most, options) {
  const key = `${offset} ${keyOf(plan)}`;
  const kept = answers.get(key);
  if (kept && Date.now() - kept.time < FRESH) return kept.answer;
  const answer = plan.kind === "hits" ? await hits(plan, offset, most, options) : await items(plan, offset, options);
  remember(answer.items);
  answers.delete(key);
  answers.set(key, { answer, time: Date.now() });
  if (answers.size > KEPT) answers.delete(answers.keys().next().value);
  return answer;
}

async function hits({ query }, offset, most, options) {
  const k = Math.min(offset + PAGE, most);
  const { hits, took_ms: took } = await api.search(query, k, options);
  return { items: hits.slice(offset), more: hits.length === k && k < most, total: null, took };
}

async function items({ query }, offset, options) {
  const { items, total } = await api.gallery(query, offset, PAGE, options);
  return { items, more: offset + items.length < total, total, took: null };
}
