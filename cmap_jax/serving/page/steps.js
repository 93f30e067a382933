/**
 * The steps of a search: the present query, its address, and the way back.
 *
 * A query is plain data: `references`, each {item: id} of the gallery or {upload: key, name};
 * `text`; `where`, the filters in the service's form; `find`, words to look up in the gallery while
 * nothing is searched for. The browser's history holds the steps, so that its back button, the
 * page's undo and a reload agree.
 */

export const BLANK = Object.freeze({ references: [], text: "", where: {}, find: "" });

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** Tell whether a query searches for nothing, so that the gallery is shown. */
export const isBlank = (query) => query.references.length === 0 && query.text === "";

/** Return the address of a query, relative to the page. Pictures of one's own are only counted. */
export function addressOf(query) {
  const fields = new URLSearchParams();
  for (const { item } of query.references) if (item !== undefined) fields.append("item", item);
  const uploads = query.references.filter(({ upload }) => upload !== undefined).length;
  if (uploads) fields.set("uploads", uploads);
  if (query.text) fields.set("text", query.text);
  if (Object.keys(query.where).length) fields.set("where", JSON.stringify(query.where));
  if (query.find) fields.set("find", query.find);
  return fields.size ? `?${fields}` : location.pathname;
}

/** Return the query of an address, and remarks on what the address could not carry. */
export function queryOf(address) {
  const fields = new URLSearchParams(address);
  const remarks = [];
  if (Number(fields.get("uploads")) > 0) {
    remarks.push("This search began with a picture from outside the gallery, which neither a link nor a reload keeps. Add it again.");
  }
  const where = whereOf(fields.get("where") ?? "{}");
  if (where === null) remarks.push("The filters in this link cannot be read; they are left out.");
  const references = fields.getAll("item").map((item) => ({ item }));
  const text = fields.get("text") ?? "";
  return { query: { references, text, where: where ?? {}, find: fields.get("find") ?? "" }, remarks };
}

/** Return the filters of a JSON text, without those that ask for nothing; null where it has none. */
function whereOf(json) {
  try {
    const where = JSON.parse(json);
    if (!isObject(where)) return null;
    const conditions = Object.entries(where).map(([field, condition]) => [field, withBounds(condition)]);
    return Object.fromEntries(conditions.filter(([, condition]) => condition !== undefined));
  } catch {
    return null;
  }
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** Return a condition; a range without the bounds that are null, undefined where it has no other. */
function withBounds(condition) {
  if (!isObject(condition)) return condition;
  const bounds = Object.entries(condition).filter(([, bound]) => bound !== null);
  return bounds.length ? Object.fromEntries(bounds) : undefined;
}

export class Steps {
  /**
   * `onChange` is called, without arguments, after each change of the present query. `isKnown`
   * tells whether a picture of one's own is still there; a reload loses it.
   */
  constructor(onChange, isKnown) {
    this.onChange = onChange;
    this.isKnown = isKnown;
    this.typing = false; // whether further typing belongs to the present entry of the history
    this.index = 0;
    this.latest = 0;
    this.trail = [BLANK];
    addEventListener("popstate", (event) => this._enter(event.state));
  }

  get current() {
    return this.trail.at(-1);
  }

  get canUndo() {
    return this.index > 0;
  }

  get canRedo() {
    return this.index < this.latest;
  }

  /** Read the address, or after a reload the history; return remarks on what is lost. */
  start() {
    const { remarks } = queryOf(location.search);
    this._enter(history.state);
    const state = { index: this.index, trail: this.trail };
    history.replaceState(state, "", addressOf(this.current));
    return remarks;
  }

  /**
   * Go on with a changed query.
   *
   * Other references are a new step of the trail; other words and filters change the present one.
   * All changes can be undone one by one, except that what is typed in one go is one change.
   */
  go(changes, { typing = false } = {}) {
    const query = { ...this.current, ...changes };
    if (same(query, this.current)) return;
    this._enterNew(this._trailWith(query), typing && this.typing);
    this.typing = typing;
  }

  /** Return to an earlier step of the trail and leave out those after it. */
  returnTo(position) {
    this._enterNew(this.trail.slice(0, position + 1), false);
  }

  /** Let what is typed from now on be a change of its own. */
  endTyping() {
    this.typing = false;
  }

  _trailWith(query) {
    if (isBlank(query)) return [query];
    const replaces = same(query.references, this.current.references) || isBlank(this.current);
    return [...(replaces ? this.trail.slice(0, -1) : this.trail), query];
  }

  _enterNew(trail, replace) {
    const index = this.index + (replace ? 0 : 1);
    history[replace ? "replaceState" : "pushState"]({ index, trail }, "", addressOf(trail.at(-1)));
    this.latest = index;
    this._enter({ index, trail });
  }

  _enter(state) {
    this.index = state?.index ?? 0;
    this.latest = Math.max(this.latest, this.index);
    this.trail = (state?.trail ?? [queryOf(location.search).query]).map((query) => this._kept(query));
    this.typing = false;
    this.onChange();
  }

  /** Return a query without the pictures that are no longer there. */
  _kept(query) {
    const isThere = ({ upload }) => upload === undefined || this.isKnown(upload);
    return { ...query, references: query.references.filter(isThere) };
  }
}
