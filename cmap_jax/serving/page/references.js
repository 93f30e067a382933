/** The reference pictures: their cards, and the ways to add one of one's own. */

import { showPicture } from "./api.js";
import { byId, button, h, icon, toast } from "./dom.js";
import { isOther, keep, uploadOf } from "./uploads.js";
import { fileName } from "./words.js";

/** Return a small picture of a reference; a placeholder where it cannot be shown. */
export function thumbnail(reference, size) {
  const name = reference.item === undefined ? reference.name : fileName(reference.item);
  const image = h("img", { alt: name, draggable: "false" });
  const frame = h("span", { class: "thumbnail" }, image);
  image.addEventListener("error", () => frame.replaceChildren(icon("broken"), h("span", { class: "unseen" }, name)));
  if (reference.item !== undefined) showPicture(image, reference.item, size);
  else if (uploadOf(reference.upload)?.address) image.src = uploadOf(reference.upload).address;
  else image.dispatchEvent(new Event("error"));
  return frame;
}

/** Show the references of the query; `onRemove` is called with one's position. */
export function showReferences(references, onRemove) {
  const cards = references.map((reference, position) => {
    const name = reference.item ?? reference.name;
    const remove = button(null, () => onRemove(position), {
      name: "close", kind: "bare", label: `Remove the reference ${name}`,
    });
    const caption = reference.item === undefined ? `Your picture: ${reference.name}` : fileName(reference.item);
    return h("li", {}, thumbnail(reference, 384), h("span", { class: "caption", title: name }, caption), remove);
  });
  byId("references").replaceChildren(...cards);
  byId("panel").classList.toggle("has-reference", references.length > 0);
  byId("references").classList.toggle("several", references.length > 1);
}

/**
 * Let people drop, paste, choose and photograph pictures.
 *
 * `onAdd` is called with the new references of one go, `most` returns how many a search may have.
 */
export function takePictures(onAdd, most) {
  const add = async (files) => {
    const [others, pictures] = [files.filter(isOther), files.filter((file) => !isOther(file))];
    if (others.length) toast(`${others[0].name} is not a picture. Use a JPEG, PNG or WebP file.`);
    if (pictures.length > most()) toast(`A search starts from ${most()} pictures at most; the first ${most()} are taken.`);
    if (pictures.length) onAdd(await Promise.all(pictures.slice(0, most()).map(keep)));
  };
  for (const [opener, input] of [["choose", "file"], ["photograph", "camera"]]) {
    byId(opener).addEventListener("click", () => byId(input).click());
    byId(input).addEventListener("change", ({ target }) => {
      add([...target.files]);
      target.value = ""; // so that the same file can be chosen again
    });
  }
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    add(files);
  });
  takeDrops(add);
}

function takeDrops(add) {
  const cover = byId("dropping");
  const carries = (event, type) => event.dataTransfer?.types.includes(type);
  addEventListener("dragover", (event) => {
    if (!carries(event, "Files") && !carries(event, "text/uri-list")) return;
    event.preventDefault();
    cover.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) cover.hidden = true;
  });
  addEventListener("drop", (event) => {
    cover.hidden = true;
    const files = [...(event.dataTransfer?.files ?? [])];
    if (!files.length && !carries(event, "text/uri-list")) return;
    event.preventDefault();
    if (files.length) add(files);
    else toast("This page does not fetch pictures from other sites. Save the picture and drop the file.");
  });
}
