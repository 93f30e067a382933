/** Plain words for what the service answers: names of pictures, attributes, and parts of a score. */

const NAMES = ["title", "name", "label"];

/** Return a message as a sentence, with a capital and a full stop. */
export const sentence = (words) => capital(words.trim()).replace(/[^.!?]$/, "$&.");

const capital = (words) => words.charAt(0).toUpperCase() + words.slice(1);

/** Return what to call a picture: its title among the metadata, or else its file's name. */
export function nameOf(item) {
  for (const [key, value] of Object.entries(item.metadata ?? {})) {
    if (NAMES.includes(key.toLowerCase()) && value) return String(value);
  }
  return fileName(item.id).replace(/\.[a-z0-9]{2,5}$/i, "") || item.id;
}

const known = new Map(); // names of the pictures that were seen, by id

/** Keep the names of pictures, for when there is but an id. */
export const remember = (items) => items.forEach((item) => known.set(item.id, nameOf(item)));

export const isKnown = (id) => known.has(id);

/** Return what to call a picture of the gallery by its id: its name where it was seen. */
export const nameOfId = (id) => known.get(id) ?? fileName(id);

const fileName = (id) => id.slice(id.lastIndexOf("/") + 1);

/** Return a metadata field's name for people: "sleeve_length" is "Sleeve length". */
export function fieldName(field) {
  return capital(field.replace(/[_-]+/g, " ").trim());
}

/** Return a metadata value for people; lists are joined, and nothing is an empty text. */
export function valueWords(value) {
  if (value === null || value === undefined) return "";
  if (Array.isArray(value)) return value.map(valueWords).filter(Boolean).join(", ");
  if (typeof value === "number") return number(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  return String(value);
}

/** Return an item's metadata as [field, words], without its title and without empty values. */
export function attributes(item) {
  return Object.entries(item.metadata ?? {})
    .filter(([field]) => !NAMES.includes(field.toLowerCase()))
    .map(([field, value]) => [field, valueWords(value)])
    .filter(([, words]) => words);
}

export const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 2 });

export const decimals = (value) => value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });

export const counted = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

/** A condition of a filter in words: "red or blue", "at least 10", "10 to 50". */
export function conditionWords(condition) {
  if (Array.isArray(condition)) return condition.map(valueWords).join(" or ");
  if (condition === null || typeof condition !== "object") return valueWords(condition);
  const { min, max } = condition;
  if (min === undefined) return `at most ${valueWords(max)}`;
  return max === undefined ? `at least ${valueWords(min)}` : `${valueWords(min)} to ${valueWords(max)}`;
}

/* The branches of a composed query's score. `short` stands on a small picture, `long` beside a bar. */
const BRANCHES = {
  modified: { short: "change", long: "Shows the change" },
  preserved: { short: "kept", long: "Keeps the rest" },
  text: { short: "words", long: "Fits the words" },
  image: { short: "look", long: "Looks like the reference" },
};
/** Return what a branch of the score is for people. */
export const branchWords = (key) => (BRANCHES[key] ?? COMPOSED).long;

const COMPOSED = { short: "match", long: "Fits the picture and the words" };

const LEVELS = { high: "as a whole", mid: "in its parts", low: "in fine detail" };
const ORDER = Object.keys(LEVELS);

const sum = (values) => values.reduce((total, value) => total + value, 0);

/**
 * Return a hit's score by branch: [{key, short, long, value, levels: [{words, value}]}].
 *
 * The keys of `parts` are "branch/level". The values of a branch's levels sum to its value, and
 * the values of all branches to the score.
 */
export function partsOf(hit) {
  const branches = Map.groupBy(Object.entries(hit.parts ?? {}), ([key]) => key.split("/")[0]);
  return [...branches].map(([key, entries]) => ({
    key,
    ...(BRANCHES[key] ?? COMPOSED),
    value: sum(entries.map(([, value]) => value)),
    levels: entries
      .map(([name, value]) => ({ level: name.split("/")[1] ?? "", value }))
      .sort((a, b) => ORDER.indexOf(a.level) - ORDER.indexOf(b.level))
      .map(({ level, value }) => ({ words: LEVELS[level] ?? level, value })),
  }));
}
