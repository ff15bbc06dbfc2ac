// On every page: the theme button, and times that stay true.
"use strict";

const THEMES = ["auto", "light", "dark"];
const NAMES = { auto: "as the system", light: "light", dark: "dark" };
const themeButton = document.getElementById("theme");

function showTheme() {
  const theme = document.documentElement.dataset.theme ?? "auto";
  themeButton.dataset.shows = theme;
  themeButton.setAttribute("aria-label", `Theme: ${NAMES[theme]}. Change it`);
  themeButton.title = `Theme: ${NAMES[theme]}`;
}

themeButton.hidden = false;
showTheme();
themeButton.addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "auto";
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    if (next === "auto") localStorage.removeItem("theme");
    else localStorage.setItem("theme", next);
  } catch { /* not remembered */ }
  showTheme();
});

const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

function coarse(seconds) {
  const left = Math.max(0, Math.floor(seconds));
  const [size, unit] = UNITS.find(([size]) => left >= size) ?? [1, "s"];
  return `${Math.floor(left / size)} ${unit}`;
}

function ahead(seconds) {
  const [size] = UNITS.find(([size]) => seconds >= size) ?? [1];
  return coarse(Math.floor(seconds / size + 0.5) * size);
}

function freshen(root = document) {
  for (const time of root.querySelectorAll("time[data-words]")) {
    const moment = new Date(time.dateTime);
    const seconds = (Date.now() - moment) / 1000;
    if (time.dataset.words === "since") time.textContent = coarse(seconds);
    else if (seconds < -1) time.textContent = `in ${ahead(-seconds)}`;
    else time.textContent = seconds < 5 ? "just now" : `${coarse(seconds)} ago`;
    time.title = moment.toLocaleString(undefined, { dateStyle: "full", timeStyle: "medium" });
  }
}

freshen();
setInterval(freshen, 15000);
document.addEventListener("htmx:afterSettle", (event) => freshen(event.target));

// What an answer refused stands in #problems until something is tried again.
const problems = document.getElementById("problems");
document.addEventListener("htmx:beforeRequest", () => problems.replaceChildren());
document.addEventListener("htmx:sendError", () => {
  const notice = document.createElement("p");
  notice.className = "notice bad";
  notice.textContent = "Baton does not answer. Try it again in a moment.";
  problems.replaceChildren(notice);
});

// Filters act when chosen; without this script their button does it.
document.addEventListener("change", (event) => {
  const form = event.target.closest("form[data-acts]");
  if (form && event.target.matches("select, input[type=date]")) form.requestSubmit();
});
