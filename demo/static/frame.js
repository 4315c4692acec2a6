/** What surrounds the chat: the column of people that is a sheet on a phone, and the way out. */

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

/** @param {boolean} open the people, where they have no column of their own */
export function side(open) {
  if ($("#side").classList.contains("open") === open) return;
  $("#side").classList.toggle("open", open);
  $("#shade").hidden = !open;
  $("#open-side").setAttribute("aria-expanded", String(open));
  for (const other of [$(".talk"), $(".places")]) other.inert = open;
  $(open ? "#close-side" : "#open-side").focus();
}
