/** The search page: ties the steps of a search to the service and to what is seen. */

import * as api from "./api.js";
import { closeByClick, showDetails } from "./details.js";
import { byId, debounced, h, toast } from "./dom.js";
import { buildFilters } from "./filters.js";
import { focusText, showText, watchText } from "./query.js";
import { showReferences, takePictures } from "./references.js";
import * as results from "./results.js";
import { keyOf, load, missing, planOf } from "./search.js";
import { addressOf, BLANK, isBlank, Steps } from "./steps.js";
import { showTrail } from "./trail.js";
import { uploadOf } from "./uploads.js";
import { counted, number } from "./words.js";

const PATIENCE = 4000; // milliseconds until a search is called slow

const steps = new Steps(refresh, (key) => uploadOf(key) !== undefined);
let about = null;
let showFilters = () => {};
let running = new AbortController();
const NOTHING = Object.freeze({ key: null, items: [], plan: null });
let shown = NOTHING; // what the grid holds; the key is null while other pictures are on their way

// Changes of the query.

const pick = (item) => {
  steps.go({ references: [{ item: item.id }], text: "" });
  scrollTo({ top: 0 });
  focusText();
};

const add = (references) => {
  const all = [...steps.current.references, ...references];
  steps.go({ references: all.slice(0, about.limits.references) });
};

const startFrom = (references) => {
  steps.go({ references });
  focusText();
};

const filter = (field, condition) => {
  const where = field === null ? {} : { ...steps.current.where, [field]: condition };
  if (field !== null && condition === undefined) delete where[field];
  steps.go({ where });
};

const startOver = () => steps.go({ ...BLANK, where: steps.current.where });

const details = (item) => {
  const { length } = steps.current.references;
  const canAdd = length > 0 && length < about.limits.references;
  const { kind, query } = shown.plan;
  // The service explains the result of one picture and words.
  const canExplain = about.explains && kind === "hits" && query.references.length === 1 && query.text;
  showDetails(item, shown.items, {
    onPick: pick,
    onAdd: canAdd ? (one) => add([{ item: one.id }]) : null,
    explain: canExplain ? (options) => api.explain(query, item.id, options) : null,
  });
};

const handlers = { onPick: pick, onDetails: details };

// What is seen.

/** Show the present step, and load its pictures unless they are there. */
async function refresh() {
  if (about === null) return;
  const plan = planOf(steps.trail, about.takes);
  showQuery(plan);
  const key = keyOf(plan) + plan.previous;
  if (key === shown.key) return;
  running.abort();
  running = new AbortController();
  const { signal } = running;
  results.clearMessage();
  results.showLoading(shown.plan?.kind === plan.kind);
  shown = { ...shown, key: null };
  byId("more").hidden = true;
  const answer = await patiently((options) => load(plan, 0, about.limits.k, options), signal, refresh, () => {
    shown = NOTHING;
    byId("grid").replaceChildren();
  });
  if (answer === null) return;
  shown = { key, items: answer.items, plan };
  results.showItems(answer.items, handlers);
  showCount(answer);
}

/** Load more pictures of the same search. */
async function more() {
  const { plan, items } = shown;
  byId("more").disabled = true;
  results.clearMessage();
  const { signal } = running;
  const answer = await patiently((options) => load(plan, items.length, about.limits.k, options), signal, more);
  byId("more").disabled = false;
  if (answer === null) return;
  const first = byId("grid").children.length;
  shown.items = [...items, ...answer.items];
  results.showItems(answer.items, handlers, { append: true });
  showCount(answer);
  byId("grid").children[first]?.querySelector(".pick").focus({ preventScroll: true });
}

/**
 * Wait for an answer and tell how it goes; null where it was called off or failed.
 *
 * After a failure `onFailure` is called, and the user is offered `retry`.
 */
async function patiently(request, signal, retry, onFailure = () => {}) {
  const status = byId("status");
  const slow = setTimeout(() => (status.textContent = "Still searching; the connection is slow…"), PATIENCE);
  const onWait = (seconds) => {
    clearTimeout(slow);
    status.textContent = seconds ? `The service is busy. Trying again in ${seconds} s…` : "Trying again…";
  };
  status.textContent = "Searching…";
  try {
    const answer = await request({ signal, onWait });
    signal.throwIfAborted();
    results.showLoaded();
    return answer;
  } catch (failure) {
    if (failure.name === "AbortError") return null;
    results.showLoaded();
    onFailure();
    showFailure(failure, retry);
    return null;
  } finally {
    clearTimeout(slow);
  }
}

function showQuery(plan) {
  const { current } = steps;
  const { references, text, where, find } = current;
  showReferences(references, (position) => steps.go({ references: references.filter((_, i) => i !== position) }));
  showText(text);
  showFilters(where);
  showTrail(steps.trail, (position) => steps.returnTo(position), startOver);
  byId("hint").textContent = isBlank(current) ? "" : missing(current, about.takes) ?? "";
  byId("undo").disabled = !steps.canUndo;
  byId("redo").disabled = !steps.canRedo;
  byId("find").hidden = plan.kind !== "gallery";
  if (byId("find-words").value.trim() !== find) byId("find-words").value = find;
  byId("heading").textContent = plan.kind === "gallery" ? "Gallery" : plan.previous ? "Results of the previous step" : "Results";
  document.title = text ? `${text} – ${about.title}` : about.title;
}

function showCount({ more: isMore, total, took }) {
  const { plan, items } = shown;
  byId("more").hidden = !isMore;
  const isGallery = plan.kind === "gallery";
  if (items.length === 0) {
    byId("status").textContent = "";
    showEmpty(isGallery);
  } else if (isGallery) {
    byId("status").textContent = `${counted(total, "picture")}. Pick one to search from it.`;
  } else {
    byId("status").textContent = `${counted(items.length, "picture")}, best first · ${results.tookWords(took)}`;
  }
}

function showEmpty(isGallery) {
  const { where, find } = steps.current;
  const ways = [];
  if (Object.keys(where).length) ways.push(["Clear the filters", () => filter(null)]);
  if (isGallery && find) ways.push(["Show the whole gallery", () => steps.go({ find: "" })]);
  const words = ways.length ? "No picture passes. Try other filters or words." : "There are no pictures in this gallery yet.";
  results.showMessage("empty", words, ways);
}

function showFailure(failure, retry) {
  byId("status").textContent = "";
  if (failure.status === 401) {
    askForKey(failure, retry);
    return;
  }
  const { references, where } = steps.current;
  const isOurs = failure.status >= 400 && failure.status < 500 && failure.status !== 429;
  const ways = isOurs ? [] : [["Try again", retry]];
  if (isOurs && references.some(({ upload }) => upload !== undefined)) {
    ways.push(["Remove my picture", () => steps.go({ references: references.filter(({ upload }) => upload === undefined) })]);
  }
  if (isOurs && Object.keys(where).length) ways.push(["Clear the filters", () => filter(null)]);
  if (isOurs && !isBlank(steps.current)) ways.push(["Start over", startOver]);
  results.showMessage("error", failure.message, ways);
}

function askForKey(failure, retry) {
  const field = h("input", { type: "password", autocomplete: "current-password", "aria-label": "Key of the service", required: true });
  const form = h("form", { class: "key" }, field, h("button", { type: "submit", class: "primary" }, "Use this key"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    api.setKey(field.value.trim());
    retry();
  });
  results.showMessage("error", failure.message);
  byId("message").firstElementChild.append(form);
  field.focus();
}

/** Copy the address of this search, or say why it has none. */
async function copyLink() {
  const own = steps.current.references.some(({ upload }) => upload !== undefined);
  if (own) {
    toast("This search starts from your own picture, which stays with you: a link cannot carry it. Search from one of the results, and that search can be linked.");
    return;
  }
  const address = new URL(addressOf(steps.current), location.href).href;
  try {
    await navigator.clipboard.writeText(address);
    toast("The link is copied. It repeats this search: pictures, words and filters.");
  } catch {
    // Without HTTPS a browser gives no page the clipboard.
    const field = h("input", { type: "text", readonly: true, value: address, "aria-label": "Link to this search" });
    toast("Copy this link: ", field);
    field.select();
  }
}

// The start.

async function start() {
  results.clearMessage();
  results.showLoading(false);
  about = await patiently((options) => api.about(options), running.signal, start, () => byId("grid").replaceChildren());
  if (about === null) return;
  byId("title").textContent = about.title;
  byId("count").textContent = counted(about.count, "picture");
  byId("change").hidden = !about.texts;
  byId("text").maxLength = about.limits.text_characters;
  byId("notes").replaceChildren(...(about.notes ?? []).map((note) => h("li", {}, note)));
  showFilters = buildFilters(about.fields, filter);
  for (const remark of steps.start()) toast(remark);
}

function listen() {
  watchText((text) => steps.go({ text }, { typing: true }), () => steps.endTyping());
  takePictures(startFrom, () => about?.limits.references ?? 1);
  byId("undo").addEventListener("click", () => history.back());
  byId("redo").addEventListener("click", () => history.forward());
  byId("link").addEventListener("click", copyLink);
  byId("more").addEventListener("click", more);
  const find = debounced(() => steps.go({ find: byId("find-words").value.trim() }, { typing: true }), 300);
  byId("find-words").addEventListener("input", find);
  addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("input, textarea, select") || document.querySelector("dialog[open]");
    if (event.key !== "/" || isTyping) return;
    event.preventDefault();
    byId(about?.texts ? "text" : "find-words").focus();
  });
  closeByClick();
  results.walkByKeys();
}

listen();
start();
