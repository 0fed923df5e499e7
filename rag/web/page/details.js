// The dialog that shows one picture.

import { $, make } from "./dom.js";
import { errorNodes } from "./errors.js";
import { t } from "./language.js";
import { searchLike, searchTag } from "./navigation.js";
import { addressOf, scoreOf, tagsOf, thumbnail, titleOf } from "./pictures.js";
import { found, removeFound, say } from "./results.js";
import { Failure, ask } from "./service.js";

const details = $("#details");

let opened = null; // the picture that the dialog shows

function openDetails(picture) {
  opened = picture;
  const { id, dao_id, path, payload } = picture;
  $("#details .photo").replaceChildren(thumbnail(picture, false));
  $("#details-title").textContent = titleOf(picture);
  $("#details .tags").replaceChildren(...tagsOf(payload).map(tagButton));
  const rows = [[t("id"), id], [t("tenant"), dao_id], [t("path"), path]];
  if (found.scored) rows.unshift([t("score"), scoreOf(picture)]);
  const shown = new Set(["image_id", "dao_id", "image_path"]);
  rows.push(...Object.entries(payload).filter(([name]) => !shown.has(name)));
  $("#details tbody").replaceChildren(
    ...rows.map(([name, data]) =>
      make("tr", {}, make("th", { scope: "row", textContent: name }), cell(data)),
    ),
  );
  $("#details .problem").replaceChildren();
  askToRemove(false);
  details.showModal();
  $("#details-title").focus(); // the first button may be far down, below a long table
  details.scrollTop = 0;
}

function cell(data) {
  const plain = (one) => one === null || typeof one !== "object";
  const text = Array.isArray(data) && data.every(plain) ? data.join(", ") : data;
  return plain(text)
    ? make("td", { textContent: String(text ?? "") })
    : make("td", {}, make("pre", { textContent: JSON.stringify(data, null, 2) }));
}

function tagButton(tag) {
  const button = make("button", { type: "button", textContent: tag });
  button.onclick = () => searchTag(tag);
  return button;
}

function askToRemove(asking) {
  $("#confirm").hidden = !asking;
  $("#like-this").parentElement.hidden = asking;
  if (asking) $("#remove-no").focus();
}

async function remove() {
  const picture = opened;
  try {
    await ask(addressOf(picture.id, picture.dao_id), { method: "DELETE" });
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    $("#details .problem").replaceChildren(...errorNodes(error));
    return;
  }
  details.close();
  await removeFound(picture);
  say(() => t("removed", { title: titleOf(picture) }));
}

$("#grid").onclick = ({ target }) => {
  const button = target.closest("button");
  if (!button) return;
  button.focus(); // Safari does not focus it; the closing dialog returns the focus
  openDetails(found.pictures[[...$("#grid").children].indexOf(button.parentElement)]);
};
$("#like-this").onclick = () => searchLike(opened);
$("#remove").onclick = () => askToRemove(true);
$("#remove-no").onclick = () => {
  askToRemove(false);
  $("#remove").focus();
};
$("#remove-yes").onclick = remove;
