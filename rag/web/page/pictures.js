// Indexed pictures: address, title, tags, score, thumbnail. Picture files: their bytes.

import { collection, info } from "./collection.js";
import { $, make } from "./dom.js";
import { language, t } from "./language.js";
import { Failure, show } from "./service.js";

const titles = new Map(); // of pictures that were shown, by address

/** Return the address of a picture; with `suffix` "/thumbnail", that of its thumbnail. */
export function addressOf(id, daoId, suffix = "") {
  const query = new URLSearchParams({ dao_id: daoId, collection });
  return `images/${encodeURIComponent(id)}${suffix}?${query}`;
}

/** Return the title of a picture, without characters that change the direction of other text. */
export function titleOf({ id, path, payload }) {
  const name = (path || payload.image_path || "").split(/[\\/]/).pop();
  const title = String(payload.title || payload.caption || name || id);
  return title.replace(/[\u202a-\u202e\u2066-\u2069]/g, "");
}

/** Return the title of a picture by its ID: the title that it was shown with, or the ID. */
export function knownTitle(id, daoId) {
  return titleOf({ id, path: id, payload: { title: titles.get(addressOf(id, daoId)) } });
}

export const tagsOf = (payload) =>
  [payload.tags ?? []].flat().filter((tag) => typeof tag === "string");

export const scoreOf = ({ score }) =>
  score.toLocaleString(language, { minimumFractionDigits: 3, maximumFractionDigits: 3 });

/** Keep a picture's title, and suggest its tenant and tags in the form. */
export function remember({ id, dao_id, payload }) {
  titles.set(addressOf(id, dao_id), titleOf({ id, payload }));
  suggest("#tenants", [dao_id]);
  suggest("#tags", tagsOf(payload));
}

function suggest(list, values) {
  const options = $(list);
  const known = new Set([...options.children].map((option) => option.value));
  for (const one of values) if (!known.has(one)) options.append(make("option", { value: one }));
}

/** Return a picture's thumbnail. If it fails to load, a tile with the title replaces it. */
export function thumbnail(picture, lazy) {
  const alt = titleOf(picture);
  const image = make("img", { alt, loading: lazy ? "lazy" : "eager", width: 384, height: 384 });
  image.onerror = () => {
    const tile = make("span", { className: "missing", textContent: alt });
    image.replaceWith(tile);
  };
  show(image, addressOf(picture.id, picture.dao_id, "/thumbnail"));
  return image;
}

/** Return the bytes of a file. Raises `Failure` if it is too large or unreadable. */
export async function read(file) {
  const most = info.max_image_bytes;
  if (file.size > most) {
    const size = Math.ceil(file.size / 1e6);
    throw new Failure(() => t("tooLarge", { size, most: most / 1e6 }), { status: 413 });
  }
  return file.arrayBuffer().catch(() => {
    throw new Failure(() => t("unreadable"), { status: 400 });
  });
}
