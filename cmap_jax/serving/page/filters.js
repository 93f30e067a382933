/** Filters on metadata, built from the fields that the service describes. */

import { byId, button, debounced, h } from "./dom.js";
import { conditionWords, fieldName, number } from "./words.js";

const FEW = 10; // values that are shown at first
const MANY = 30; // values from which on they can be looked up by typing
const PAUSE = 400; // milliseconds after the last movement of a slider

/**
 * Build the controls of all fields.
 *
 * Args: `fields`, the service's, by name {kind: "choice", values: {value: count}} or {kind:
 * "range", min, max}; `onChange`, called with a field and its new condition, undefined for none.
 * Returns a function that shows the conditions of a query.
 */
export function buildFilters(fields, onChange) {
  const builders = { choice, range };
  const known = Object.entries(fields).filter(([, form]) => form.kind in builders && isUseful(form));
  const controls = known.map(([field, form]) => [field, builders[form.kind](field, form, (condition) => onChange(field, condition))]);
  byId("fields").replaceChildren(...controls.map(([, { element }]) => element));
  byId("filters").hidden = controls.length === 0;
  openWhereWide();
  return (where) => {
    for (const [field, control] of controls) control.show(where[field]);
    showActive(where, onChange);
  };
}

/** Tell whether a field can tell pictures apart; a range of numbers may be empty. */
const isUseful = ({ kind, values, min, max }) => (kind === "range" ? min < max : Object.keys(values).length > 0);

function openWhereWide() {
  const wide = matchMedia("(min-width: 60rem)");
  const follow = () => (byId("filters").open = wide.matches);
  wide.addEventListener("change", follow);
  follow();
}

/** Show the conditions in use as chips that remove them. */
function showActive(where, onChange) {
  const conditions = Object.entries(where);
  const chips = conditions.map(([field, condition]) => {
    const words = `${fieldName(field)}: ${conditionWords(condition)}`;
    return h("li", {}, button(words, () => onChange(field, undefined), { name: "close", kind: "chip", label: `Remove the filter ${words}` }));
  });
  if (chips.length > 1) chips.push(h("li", {}, button("Clear all filters", () => onChange(null), { kind: "text" })));
  byId("active").replaceChildren(...chips);
  byId("filter-count").textContent = conditions.length ? ` (${conditions.length})` : "";
}

function choice(field, { values }, onChange) {
  const sorted = Object.entries(values).sort((a, b) => b[1] - a[1]);
  const boxes = sorted.map(([value]) => h("input", { type: "checkbox", value }));
  const rows = sorted.map(([value, count], i) =>
    h("label", { class: "option" }, boxes[i], swatch(field, value), h("span", {}, value), h("small", {}, number(count))));
  const list = h("div", { class: "values" }, rows);
  const chosen = () => boxes.filter((box) => box.checked).map((box) => box.value);
  list.addEventListener("change", () => onChange(chosen().length ? chosen() : undefined));
  const element = h("fieldset", {}, h("legend", {}, fieldName(field)), list);
  if (rows.length > FEW + 2) element.append(...folding(field, list, rows, boxes));
  const show = (condition = []) => {
    const wanted = [condition].flat().map(String);
    for (const box of boxes) box.checked = wanted.includes(box.value);
    list.dispatchEvent(new Event("fold"));
  };
  return { element, show };
}

/** Fold a long list of values: the first and the checked ones are shown, the others at a wish. */
function folding(field, list, rows, boxes) {
  let open = false;
  const find = h("input", { type: "search", placeholder: "Find a value", "aria-label": `Find a value of ${fieldName(field)}`, hidden: true });
  const toggle = button("", () => {
    open = !open;
    fold();
  }, { kind: "text" });
  const fold = () => {
    const words = open ? find.value.trim().toLowerCase() : "";
    rows.forEach((row, i) => {
      const hit = open ? boxes[i].value.toLowerCase().includes(words) : i < FEW;
      row.hidden = !hit && !boxes[i].checked;
    });
    find.hidden = !open || rows.length < MANY;
    list.classList.toggle("long", open);
    toggle.textContent = open ? "Show fewer" : `Show all ${number(rows.length)}`;
    toggle.setAttribute("aria-expanded", open);
  };
  find.addEventListener("input", fold);
  list.addEventListener("fold", fold);
  list.before(find);
  fold();
  return [toggle];
}

/** Return a dot of the color that a value names, for fields about color. */
function swatch(field, value) {
  if (!/colou?r/i.test(field) || !CSS.supports("color", value)) return null;
  const dot = h("i", { class: "swatch" });
  dot.style.backgroundColor = value;
  return dot;
}

/** Two sliders over one track, and beside them the numbers, which can be typed as well. */
function range(field, { min, max }, onChange) {
  const whole = Number.isInteger(min) && Number.isInteger(max);
  const step = whole ? 1 : "any";
  const name = fieldName(field);
  const input = (type, words, value) => h("input", { type, min, max, step, value, "aria-label": `${name}, ${words}` });
  const sliders = [input("range", "at least", min), input("range", "at most", max)];
  const numbers = [input("number", "at least", min), input("number", "at most", max)];
  const track = h("div", { class: "sliders" }, sliders);
  const element = h("fieldset", {}, h("legend", {}, name), track, h("div", { class: "numbers" }, numbers[0], h("span", {}, "to"), numbers[1]));

  const later = debounced((condition) => onChange(condition), PAUSE);
  let bounds = [min, max]; // as they are searched for; the fields show them rounded
  const showBounds = () => {
    bounds.forEach((value, i) => {
      sliders[i].value = value;
      numbers[i].value = whole ? value : Number(value.toFixed(2));
    });
    const part = (value) => `${max > min ? (100 * (value - min)) / (max - min) : 0}%`;
    track.style.setProperty("--from", part(bounds[0]));
    track.style.setProperty("--to", part(bounds[1]));
  };
  const move = (i, text) => {
    const value = text === "" ? [min, max][i] : Number(text);
    bounds = i === 0 ? [Math.min(value, bounds[1]), bounds[1]] : [bounds[0], Math.max(value, bounds[0])];
    showBounds();
    const [low, high] = bounds;
    const condition = { ...(low > min && { min: low }), ...(high < max && { max: high }) };
    later(Object.keys(condition).length ? condition : undefined);
  };
  sliders.forEach((slider, i) => slider.addEventListener("input", () => move(i, slider.value)));
  numbers.forEach((one, i) => one.addEventListener("change", () => move(i, one.value)));
  const show = (condition) => {
    const { min: low, max: high } = typeof condition === "number" ? { min: condition, max: condition } : condition ?? {};
    bounds = [Number.isFinite(low) ? low : min, Number.isFinite(high) ? high : max];
    showBounds();
  };
  return { element, show };
}
