// The service's description (GET /info), and the collection that the page shows.

import { $ } from "./dom.js";
import { redrawn, t } from "./language.js";
import { Failure, ask } from "./service.js";

export let info = {};
export let collection = "";
export let points = null; // number of pictures in the collection; null if unknown
let counting = false;

/** Resolves when `begin` is called: search is on, and the collection is chosen. */
export const { promise: ready, resolve: begin } = Promise.withResolvers();

export const isOff = () => info.qdrant_enabled === false;

/** Load the service's description, and choose the collection. Raises `Failure`. */
export async function load() {
  info = await ask("info");
  const asked = new URLSearchParams(location.search).get("collection");
  collection = asked ?? info.collection ?? "";
  if (asked) $(".brand").search = new URLSearchParams({ collection }).toString();
}

/** Count the pictures of the collection, and show the number. */
export async function count() {
  counting = true;
  try {
    points = (await ask(`collections/${encodeURIComponent(collection)}`)).points;
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    points = null; // the search shows the error
  } finally {
    counting = false;
  }
  drawCollection();
}

/** Count the pictures if an earlier count failed. */
export function countIfUnknown() {
  if (points === null && !counting) count();
}

function drawCollection() {
  $("#collection").textContent =
    points === null ? collection : t("collection", { n: points, name: collection });
}

redrawn.add(drawCollection);
