/** A picture's details: all that is known of it, and why it came. */

import { addressOfPicture, hasKey, showPicture } from "./api.js";
import { byId, button, h, icon } from "./dom.js";
import { whereItLooks } from "./looks.js";
import { meter } from "./results.js";
import { attributes, decimals, fieldName, nameOf, partsOf } from "./words.js";

/**
 * Open the details of one of the shown pictures.
 *
 * `items` are all that are shown: the bars are drawn against the largest part among them, with a
 * mark at their mean. `onPick` and `onAdd` make the picture the reference or one more; `onAdd` is
 * null where no more can be added. `explain` asks the service where the score comes from, or is null.
 */
export function showDetails(item, items, { onPick, onAdd, explain }) {
  const dialog = byId("details");
  const image = h("img", { alt: "", draggable: "false" });
  showPicture(image, item.id, 768);
  const leave = (call) => () => {
    dialog.close();
    call(item);
  };
  const close = button(null, () => dialog.close(), { name: "close", kind: "bare close", label: "Close" });
  const ways = h("div", { class: "ways" },
    button("Search from this", leave(onPick), { name: "search", kind: "primary" }),
    onAdd && button("Add as a reference", leave(onAdd), { name: "add" }));
  const facts = attributes(item).flatMap(([field, words]) => [h("dt", {}, fieldName(field)), h("dd", {}, words)]);
  dialog.replaceChildren(
    close,
    h("figure", {}, hasKey() ? image : h("a", { href: addressOfPicture(item.id, 1024), target: "_blank", rel: "noopener", "aria-label": "Open the picture in a new tab" }, image)),
    h("div", { class: "about" },
      h("h2", { id: "details-name" }, nameOf(item)),
      h("p", { class: "id" }, item.id),
      ways,
      item.parts && why(item, items),
      explain && whereItLooks(item, explain),
      facts.length > 0 && h("h3", {}, "About the picture"),
      facts.length > 0 && h("dl", {}, facts)));
  dialog.showModal();
}

/** Close the details by a click beside them. */
export function closeByClick() {
  const dialog = byId("details");
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}

const mean = (values) => values.reduce((total, value) => total + value, 0) / values.length;

function why(hit, items) {
  const all = items.map(partsOf);
  const branches = partsOf(hit);
  const most = Math.max(1e-9, ...all.flat().flatMap(({ levels }) => levels.map(({ value }) => Math.abs(value))));
  const top = Math.max(1e-9, ...all.flat().map(({ value }) => Math.abs(value)));
  const rows = branches.map((branch, i) => {
    const valueOf = (parts) => parts[i].value;
    const levels = branch.levels.length > 1 ? branch.levels.map((level, j) =>
      row(level.words, level.value, most, mean(all.map((parts) => parts[i].levels[j].value)), "level")) : [];
    return h("div", { class: `branch ${branch.key}` }, row(branch.long, branch.value, top, mean(all.map(valueOf)), "whole"), levels);
  });
  return h("section", { class: "why-it-came" },
    h("h3", {}, icon("why"), "Why it came"),
    rows,
    h("p", { class: "legend" }, `The score, ${decimals(hit.score)}, is the sum of these parts. A full bar is the largest part of its kind among the pictures shown, the line is their average.`));
}

function row(words, value, most, average, kind) {
  const label = `${decimals(value)}; the average is ${decimals(average)}`;
  return h("div", { class: `part ${kind}` }, h("span", {}, words), h("span", { class: "value", "aria-label": label }, decimals(value)), meter(value / most, average / most));
}
