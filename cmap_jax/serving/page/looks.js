/** Where it looks: which regions of the two pictures raise each part of a result's score. */

import { button, byId, h, icon } from "./dom.js";
import { branchWords, nameOf } from "./words.js";

const PARTS = ["modified", "preserved"];
// A start picture does not show the change; its heat map is of what it has of it already.
const ALREADY = { modified: "Already shows it", preserved: branchWords("preserved") };
const IN_RESULT = Object.fromEntries(PARTS.map((part) => [part, branchWords(part)]));

/**
 * Return a section that is closed at first, and asks the service when it is opened.
 *
 * `explain` takes {signal, onWait}, as `ask` of api.js does, and returns the service's answer.
 * Closing the section or the details calls a request off.
 */
export function whereItLooks(hit, explain) {
  const status = h("p", { role: "status" });
  const content = h("div", { class: "looks" });
  const section = h("details", { class: "where-it-looks" },
    h("summary", {}, h("h3", {}, icon("look"), "Where it looks")), status, content);
  let running = new AbortController();
  let isShown = false;

  async function load() {
    running = new AbortController();
    const { signal } = running;
    status.textContent = "Looking at both pictures…";
    content.replaceChildren(...skeletons());
    content.setAttribute("aria-busy", "true");
    const onWait = (seconds) => (status.textContent = seconds ? `The service is busy. Trying again in ${seconds} s…` : "Trying again…");
    try {
      const answer = await explain({ signal, onWait });
      signal.throwIfAborted();
      content.replaceChildren(...shown(answer, hit));
      status.textContent = "Yellow regions raise a part of the score most, dark blue ones little.";
      isShown = true;
    } catch (failure) {
      if (failure.name === "AbortError") return;
      status.textContent = failure.message;
      content.replaceChildren(button("Try again", retry));
    }
    content.removeAttribute("aria-busy");
  }

  function retry() {
    section.querySelector("summary").focus(); // the button that had the focus goes away
    load();
  }

  section.addEventListener("toggle", () => {
    running.abort();
    if (section.open && !isShown) load();
  });
  byId("details").addEventListener("close", () => running.abort(), { once: true });
  return section;
}

const skeletons = () => Array.from({ length: 4 }, () => h("div", { class: "skeleton", "aria-hidden": "true" }, h("span", { class: "frame" })));

/** Return a group of two overlays for each picture, and the scale of their colors. */
function shown(answer, hit) {
  const groups = [
    ["The picture you started from", answer.reference, ALREADY],
    [`This result, ${nameOf(hit)}`, answer.target, IN_RESULT],
  ];
  const bar = h("img", { alt: "from dark blue to yellow" });
  showEncoded(bar, answer.scale);
  const legend = h("p", { class: "scale" }, h("span", {}, "little"), bar, h("span", {}, "most"));
  return [
    ...groups.map(([picture, overlays, words]) => h("section", {},
      h("h4", {}, picture), h("div", { class: "pair" }, PARTS.map((part) => look(part, words[part], overlays[part], picture))))),
    legend,
    h("p", { class: "legend" }, "Each picture has its own scale. It is shown in gray, and cut as the model sees it."),
  ];
}

function look(part, words, encoded, picture) {
  const image = h("img", { alt: `${picture}: where “${words}” comes from` });
  if (encoded) showEncoded(image, encoded);
  const nothing = h("span", { class: "nothing" }, "No region raises it");
  return h("div", { class: `look ${part}` }, encoded ? image : nothing, h("span", { class: "what" }, words));
}

/** Show a JPEG in base64; the page's policy allows blobs, and no data in an address. */
function showEncoded(image, encoded) {
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  image.src = URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
  image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
}
