/** What surrounds chat and panels: which of them is shown, the people that are a sheet on a phone, and the way out. */

import { $ } from "./dom.js";

/** A mouse, and so somebody who sees cursors and likes the keyboard ready. */
export const pointer = matchMedia("(hover: hover) and (pointer: fine)");

/** The tabs of this browser, which have one cookie between them. */
const tabs = new BroadcastChannel("signed-out");

/** @param {() => void} listener called when another tab has signed out */
export const leftElsewhere = (listener) => void (tabs.onmessage = listener);

/**
 * Begin anew, so that nothing of one user is left on the page for the next.
 * @param {string} why
 * @param {{ everywhere?: boolean }} [options] the other tabs, too
 */
export function leave(why, { everywhere = false } = {}) {
  if (everywhere) tabs.postMessage(null);
  sessionStorage.setItem("notice", why);
  localStorage.removeItem("signed-in");
  location.reload();
}

/** @param {"chat" | "live"} name what is shown where there is no room for both */
export function view(name) {
  $("#app").dataset.view = name;
  for (const button of $(".views").children) button.setAttribute("aria-pressed", String(button.dataset.view === name));
}

/** @param {boolean} open the people, where they have no column of their own */
export function side(open) {
  if ($("#side").classList.contains("open") === open) return;
  $("#side").classList.toggle("open", open);
  $("#shade").hidden = !open;
  $("#open-side").setAttribute("aria-expanded", String(open));
  for (const other of [$(".bar"), $(".places"), $("#app > main")]) other.inert = open;
  $(open ? "#close-side" : "#open-side").focus();
}
