/** The trail: one link for each reference that the search has come by. */

import { byId, h, icon } from "./dom.js";
import { nameOfReference, thumbnail } from "./references.js";
import { isBlank } from "./steps.js";

/** Show the steps; `onReturn` is called with the position of the one that is clicked. */
export function showTrail(trail, onReturn, onGallery) {
  const steps = trail.map((query, position) => [query, position]).filter(([query]) => !isBlank(query));
  byId("trail").hidden = steps.length === 0;
  const first = h("li", {}, h("button", { type: "button", class: "step", onclick: onGallery }, icon("gallery"), h("span", {}, "Gallery")));
  const rest = steps.map(([query, position], i) => step(query, i === steps.length - 1, () => onReturn(position)));
  byId("trail").querySelector("ol").replaceChildren(first, ...rest);
  rest.at(-1)?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function step(query, isLast, onclick) {
  const pictures = query.references.map((reference) => thumbnail(reference, 128));
  const words = query.text ? `“${query.text}”` : query.references.map(nameOfReference).join(", ");
  const content = [...pictures, h("span", { class: query.text ? null : "dim" }, words)];
  const inside = h("button", { type: "button", class: "step", "aria-current": isLast ? "step" : null, onclick }, content);
  return h("li", {}, icon("next"), inside);
}
