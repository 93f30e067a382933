/** Small helpers that build the page's elements. */

export const byId = (id) => document.getElementById(id);

/**
 * Return a new element.
 *
 * Attributes that begin with "on" are listeners; false and null leave an attribute out, true sets
 * it without a value. Children that are false or null are left out.
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== false));
  return element;
}

/** Return an icon of the page's sprite; it is decoration and has no name. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** Return a button with an icon and words. */
export function button(words, onclick, { name = null, kind = null, label = null } = {}) {
  const attributes = { type: "button", class: kind, "aria-label": label, title: label, onclick };
  return h("button", attributes, name && icon(name), words && h("span", {}, words));
}

/** Call a function once no further call has come for some milliseconds. */
export function debounced(call, milliseconds) {
  let timer = 0;
  const later = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(call, milliseconds, ...values);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}

let leaving = 0;

/** Say something that needs no answer, for some seconds. */
export function toast(...content) {
  const box = byId("toast");
  clearTimeout(leaving);
  box.replaceChildren(...content);
  box.classList.add("shown");
  leaving = setTimeout(() => box.classList.remove("shown"), 7000);
}
