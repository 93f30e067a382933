/** The trail: one link for each reference that the search has come by. */

import { byId, h, icon } from "./dom.js";
import { thumbnail } from "./references.js";
import { isBlank } from "./steps.js";

const COUNTS = ["words alone", "picture", "two pictures", "three pictures", "four pictures"];

/** Show the steps; `onReturn` is called with the position of the one that is clicked. */
export function showTrail(trail, onReturn, onGallery) {
  const steps = trail.filter((query) => !isBlank(query));
  byId("trail").hidden = steps.length === 0;
  const first = h("li", {}, h("button", { type: "button", class: "step", onclick: onGallery }, icon("gallery"), h("span", {}, "Gallery")));
  const offset = trail.length - steps.length;
  const rest = steps.map((query, position) => step(query, position === steps.length - 1, () => onReturn(offset + position)));
  byId("trail").querySelector("ol").replaceChildren(first, ...rest);
  rest.at(-1)?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function step(query, isLast, onclick) {
  const pictures = query.references.map((reference) => thumbnail(reference, 128));
  const words = query.text ? `“${query.text}”` : COUNTS[query.references.length];
  const content = [...pictures, h("span", { class: query.text ? null : "dim" }, words)];
  const inside = h("button", { type: "button", class: "step", "aria-current": isLast ? "step" : null, onclick }, content);
  return h("li", {}, icon("next"), inside);
}
