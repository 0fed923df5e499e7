// Show errors: the text of the page and, collapsed, the sentence of the service.

import { make } from "./dom.js";
import { t } from "./language.js";

/** Return the nodes that show an error. */
export function errorNodes(error) {
  const text = make("span", { textContent: error.message });
  if (!error.sentence) return [text];
  const summary = make("summary", { textContent: t("errorDetails") });
  const sentence = make("span", { lang: "en", textContent: error.sentence });
  return [text, make("details", { className: "sentence" }, summary, sentence)];
}
