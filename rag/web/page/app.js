// Start the search page, and take the pictures that users drop, paste or choose.
//
// All modules show the service's answers as text, never as HTML. The query string of the page's
// address contains the search; its parameters have the names of the form's fields.

import { begin, count, isOff, load } from "./collection.js";
import "./details.js";
import { $ } from "./dom.js";
import { language, speak } from "./language.js";
import { goSoon, searchBy } from "./navigation.js";
import { hideAlert, run, showFailure } from "./results.js";
import { drawQuery, fill, form, isTyped } from "./search_form.js";
import { choose } from "./uploads.js";

// ---- drop, paste and choose pictures -------------------------------------------------------

const drop = $("#drop");

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");

/** Add files if `where` is "add" or the dialog is open. Otherwise search by the first file. */
function take(where, files) {
  if (files.length === 0 || isOff()) return;
  if ($("#add").open || where === "add") choose(files);
  else searchBy(files[0]);
}

window.addEventListener("dragover", (event) => {
  if (!hasFiles(event) || isOff()) return;
  event.preventDefault();
  $("#details").close();
  drop.hidden = $("#add").open; // the open dialog takes the files
  for (const zone of drop.children) zone.classList.toggle("over", zone.contains(event.target));
});
window.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.hidden = true;
});
window.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  drop.hidden = true;
  take(event.target.closest?.("[data-drop]")?.dataset.drop, [...event.dataTransfer.files]);
});
window.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length === 0 || $("#details").open || event.clipboardData.getData("text")) return;
  event.preventDefault();
  take("search", files);
});
$("#choose").onclick = () => $("#example").click();
$("#example").onchange = ({ target }) => {
  take("search", [...target.files]);
  target.value = ""; // so that the same file can be chosen again
};

// ---- start ---------------------------------------------------------------------------------

function start() {
  for (const button of document.querySelectorAll("[data-language]")) {
    button.onclick = () => {
      localStorage.setItem("language", button.dataset.language);
      speak(button.dataset.language);
    };
  }
  for (const dialog of [$("#details"), $("#add")]) {
    dialog.onclick = ({ target }) => {
      if (target.closest(".close")) dialog.close();
    };
  }
  speak(language);
  $("#filters").open = matchMedia("(min-width: 45rem)").matches;
  const early = [...form.elements].some(isTyped); // the user typed before this script ran
  fill([...form.elements].filter((one) => !isTyped(one)));
  if (early) goSoon();
  else run();
  connect();
}

/** Load the service's description, then start the searches that wait for it. */
async function connect() {
  $("main").ariaBusy = "true";
  try {
    await load();
  } catch (error) {
    showFailure(error, false, connect);
    $("main").ariaBusy = "false";
    return;
  }
  $("#off").hidden = !isOff();
  form.hidden = $("#open-add").hidden = isOff();
  if (isOff()) {
    hideAlert();
    $("main").ariaBusy = "false";
    return;
  }
  begin();
  drawQuery();
  count();
}

start();
