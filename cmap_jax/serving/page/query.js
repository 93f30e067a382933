/** The words of the query, with Enter, clearing, and a pause before a search. */

import { byId, debounced } from "./dom.js";

const PAUSE = 300; // milliseconds without typing until a search

/**
 * Watch the text field.
 *
 * `onType` is called with the words after each pause, `onDone` when they are complete: after Enter,
 * after clearing, and when the field is left.
 */
export function watchText(onType, onDone) {
  const field = byId("text");
  const later = debounced(() => onType(words()), PAUSE);
  const now = () => {
    later.cancel();
    onType(words());
    onDone();
  };
  field.addEventListener("input", (event) => {
    fit();
    if (!event.isComposing) later();
  });
  field.addEventListener("compositionend", later);
  field.addEventListener("change", now);
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault(); // a change is one sentence: a line break would mean nothing
    now();
  });
  byId("clear-text").addEventListener("click", () => {
    field.value = "";
    fit();
    now();
    field.focus();
  });
  byId("panel").addEventListener("submit", (event) => event.preventDefault());
}

/** Return the words as they are searched for. */
export const words = () => byId("text").value.trim().replace(/\s+/g, " ");

/** Show the words of a step, unless the field has them already. */
export function showText(text) {
  if (words() !== text) byId("text").value = text;
  fit();
}

/** Give the field the height of its text. */
function fit() {
  const field = byId("text");
  byId("clear-text").hidden = field.value === "";
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

/** Put the cursor behind the words, where that opens no keyboard on the screen. */
export function focusText() {
  if (matchMedia("(any-pointer: fine)").matches) byId("text").focus({ preventScroll: true });
}
