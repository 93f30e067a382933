/** The grid of pictures: cards, skeletons while it loads, and what is said when there are none. */

import { showPicture } from "./api.js";
import { byId, button, h, icon } from "./dom.js";
import { attributes, nameOf, number, partsOf } from "./words.js";

const SKELETONS = 12;

/**
 * Return a picture's card.
 *
 * A click on the picture calls `onPick`; the small button calls `onDetails`. `most` is the largest
 * part of a score among the hits, which bars are drawn against.
 */
function card(item, most, { onPick, onDetails }) {
  const name = nameOf(item);
  const image = h("img", { alt: "", loading: "lazy", decoding: "async", draggable: "false" });
  const frame = h("span", { class: "frame" }, image);
  image.addEventListener("load", () => frame.classList.add("loaded"));
  image.addEventListener("error", () => frame.replaceChildren(icon("broken"), h("span", { class: "unseen" }, "No picture")));
  showPicture(image, item.id, 384);
  const facts = attributes(item).slice(0, 3).map(([, words]) => words).join(" · ");
  const caption = h("span", { class: "name" }, name);
  const pick = h("button", { type: "button", class: "pick", onclick: () => onPick(item) },
    frame, h("span", { class: "hidden" }, "Search from "), caption, facts && h("span", { class: "facts" }, facts));
  const why = button(null, () => onDetails(item), { name: item.parts ? "why" : "add", kind: "why", label: item.parts ? `Why ${name} came` : `More about ${name}` });
  return h("li", { class: "card" }, pick, why, item.parts && bars(item, most));
}

/** Return a hit's parts as bars, one a branch, drawn against the largest part of all hits. */
function bars(hit, most) {
  const rows = partsOf(hit).map(({ key, short, value }) =>
    h("span", { class: `bar ${key}` }, h("span", {}, short), meter(value / most)));
  return h("div", { class: "bars", "aria-hidden": "true" }, rows);
}

/** Return a bar of a length from -1 to 1; a negative one is drawn in another color. */
export function meter(length, mark = null) {
  const fill = h("i", { class: length < 0 ? "fill negative" : "fill" });
  fill.style.width = `${100 * Math.min(Math.abs(length), 1)}%`;
  const line = mark === null ? null : h("i", { class: "mark" });
  if (line) line.style.left = `${100 * Math.min(Math.max(mark, 0), 1)}%`;
  return h("span", { class: "meter" }, fill, line);
}

export const mostOf = (items) =>
  Math.max(1e-9, ...items.flatMap((item) => partsOf(item).map(({ value }) => Math.abs(value))));

/** Show pictures in place of, or after, those that are there. */
export function showItems(items, handlers, { append = false } = {}) {
  const most = mostOf(items);
  const cards = items.map((item) => card(item, most, handlers));
  const grid = byId("grid");
  grid.classList.remove("skeletons");
  if (append) grid.append(...cards);
  else grid.replaceChildren(...cards);
}

/** Show that pictures are on their way: the old ones fade, or gray cards stand in for them. */
export function showLoading(keep) {
  const grid = byId("grid");
  grid.setAttribute("aria-busy", "true");
  if (keep && grid.children.length) return;
  const skeleton = () => h("li", { class: "card skeleton", "aria-hidden": "true" }, h("span", { class: "frame" }), h("span", { class: "line" }), h("span", { class: "line short" }));
  grid.classList.add("skeletons");
  grid.replaceChildren(...Array.from({ length: SKELETONS }, skeleton));
}

export function showLoaded() {
  byId("grid").removeAttribute("aria-busy");
}

/** Say why there are no pictures, and offer ways on: [[words, onclick], ...]. */
export function showMessage(kind, words, ways = []) {
  const buttons = ways.map(([label, onclick]) => button(label, onclick));
  byId("message").replaceChildren(
    h("div", { class: `message ${kind}` }, icon(kind === "error" ? "warning" : "search"), h("p", {}, words), h("div", { class: "ways" }, buttons)));
}

export function clearMessage() {
  byId("message").replaceChildren();
}

/** Let the arrow keys walk over the cards, and Home and End go to the first and the last. */
export function walkByKeys() {
  byId("grid").addEventListener("keydown", (event) => {
    const cards = [...byId("grid").querySelectorAll(".pick")];
    const position = cards.indexOf(event.target);
    if (position < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const top = cards[0].getBoundingClientRect().top;
    const across = cards.filter((one) => one.getBoundingClientRect().top === top).length;
    const next = {
      ArrowRight: position + 1, ArrowLeft: position - 1,
      ArrowDown: position + across, ArrowUp: position - across,
      Home: 0, End: cards.length - 1,
    }[event.key];
    if (next === undefined || !cards[next]) return;
    event.preventDefault();
    cards[next].focus();
  });
}

export const tookWords = (milliseconds) => `${number(Math.max(1, Math.round(milliseconds)))} ms`;
