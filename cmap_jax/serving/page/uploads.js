/**
 * Pictures of one's own: dropped, pasted, chosen or photographed.
 *
 * They stay in this page's memory and are sent to the service alone. A large picture is made
 * smaller first, since it is sent anew with each change of the words, and models see a few hundred
 * pixels.
 */

const LONGEST = 1024; // pixels of the longer side that are sent
const QUALITY = 0.92; // of the JPEG that such a picture is sent as
const SENT = ["image/jpeg", "image/png", "image/webp"]; // types that are sent as they are

const pictures = new Map(); // key -> {blob, name, address: of a preview, or null}
const visit = Date.now(); // a key of an earlier visit, in the browser's history, is no key of this one
let count = 0;

export const uploadOf = (key) => pictures.get(key);

/**
 * Keep a picture and return its reference, {upload: key, name}.
 *
 * A file that the browser cannot decode is kept as it is: the service may read more formats, and
 * its error names the fault.
 */
export async function keep(file) {
  const name = file.name || "pasted picture";
  const bitmap = await createImageBitmap(file).catch(() => null);
  const blob = bitmap ? await fitting(file, bitmap) : file;
  const upload = `${visit}-${++count}`;
  pictures.set(upload, { blob, name, address: bitmap && URL.createObjectURL(blob) });
  bitmap?.close();
  return { upload, name };
}

/** Tell whether a file says of itself that it is no picture. */
export const isOther = (file) => file.type !== "" && !file.type.startsWith("image/");

async function fitting(file, bitmap) {
  const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && SENT.includes(file.type)) return file;
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = "white"; // behind transparent pixels, which JPEG does not have
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return (await new Promise((done) => canvas.toBlob(done, "image/jpeg", QUALITY))) ?? file;
}
