/** The page: signing in, and what its buttons and fields do. */

import { Dashboard } from "./dashboard.js";
import { $, toast } from "./dom.js";
import { leave, leftElsewhere, pointer, side, view } from "./frame.js";
import { Lab } from "./lab.js";
import { Visit } from "./visit.js";

const scroller = $("[data-messages]");
const textarea = $("[data-composer]").elements.text;
const columns = matchMedia("(min-width: 640px)"); // where the people have one of their own

/** @type {Visit | null} */
let visit = null;

/** @param {{ name: string, token: string }} session */
async function enter(session) {
  const [titles, places] = await Promise.all(["/rooms", "/processes"].map(async (path) => (await fetch(path)).json()));
  localStorage.setItem("name", session.name);
  localStorage.setItem("signed-in", "yes");
  $("#welcome").hidden = true;
  $("#app").hidden = false;
  visit = new Visit(session, titles, places);
  new Lab(visit);
  const dashboard = new Dashboard(visit.client, titles, visit.processes);
  // Watched while it is shown: its size changes when it comes and goes.
  new ResizeObserver(() => dashboard.watch($("#live").checkVisibility())).observe($("#live"));
  Object.assign(window, { demo: { client: visit.client, rooms: visit.rooms } }); // to tinker with, in the console
  if (pointer.matches) textarea.focus();
}

/** @param {string} why */
function welcome(why) {
  $("#welcome").hidden = false;
  $("#notice").textContent = why;
  const { name } = $("[data-sign-in]").elements;
  name.value = localStorage.getItem("name") ?? "";
  name.select();
}

$("[data-sign-in]").onsubmit = async (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  const name = $("[data-sign-in]").elements.name.value;
  const error = $("#sign-in-error");
  error.textContent = "";
  try {
    const headers = { "content-type": "application/json" };
    const answer = await fetch("/session", { method: "POST", headers, body: JSON.stringify({ name }) });
    if (answer.ok) await enter(await answer.json());
    else if (answer.status === 429) error.textContent = "Many people are coming in. Try again in a moment.";
    else if (answer.status === 422) error.textContent = "A name has 1 to 32 printable characters.";
    else error.textContent = "The server refused. Try again.";
  } catch {
    error.textContent = "The server can't be reached. Try again.";
  }
};

/** What leaving now would lose. */
const pending = () => visit?.pending ?? 0;

$("[data-sign-out]").onclick = async () => {
  if (pending() && !confirm("Some messages have not been sent yet. Sign out all the same?")) return;
  try {
    await fetch("/session", { method: "DELETE" });
    visit = null; // nobody is asked again
    leave("You have signed out.", { everywhere: true });
  } catch {
    toast("The server can't be reached, so you are still signed in.");
  }
};

$("[data-composer]").onsubmit = (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  const text = textarea.value.trim();
  if (!text) return;
  textarea.value = "";
  visit?.say(text);
};

textarea.onkeydown = (/** @type {KeyboardEvent} */ event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("[data-composer]").requestSubmit();
};
textarea.oninput = () => visit?.typing();

scroller.onscroll = () => {
  visit?.current.log.scrolled();
  if (visit?.current.log.stuck) $("#newer").hidden = true;
};
new ResizeObserver(() => visit?.current.log.settle()).observe(scroller);
$("#newer").onclick = () => scroller.scrollTo({ top: scroller.scrollHeight, behavior: "smooth" });
$("#older").onclick = () => visit?.load(visit.current);
$("#stage").onpointermove = (/** @type {PointerEvent} */ event) => visit?.cursors.point(visit.current.room, event);
$("#recolour").onclick = () => visit?.recolour();
$("#open-side").onclick = () => side(true);
for (const button of $(".views").children) button.onclick = () => view(button.dataset.view);
$("#close-side").onclick = $("#shade").onclick = () => side(false);
columns.onchange = () => side(false);
leftElsewhere(() => {
  if (!visit) return;
  visit = null;
  leave("You have signed out in another tab.");
});
addEventListener("beforeunload", (event) => {
  if (pending()) event.preventDefault();
});
document.addEventListener("visibilitychange", () => visit?.statusChanged());
document.addEventListener("keydown", ({ key }) => key === "Escape" && side(false));

// Whoever signed in here before may still be: a reload asks, a first visit doesn't.
const notice = sessionStorage.getItem("notice");
sessionStorage.removeItem("notice");
const answer = !notice && localStorage.getItem("signed-in") ? await fetch("/session").catch(() => null) : null;
if (answer?.ok) await enter(await answer.json());
else welcome(notice ?? "");
