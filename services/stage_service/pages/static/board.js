// The board moves by itself: a transition on the stream makes it fetch its moving part again.
"use strict";

const DEBOUNCE_MS = 150; // events that come together make one fetch
const REST_MS = 400; // between two fetches at least this, or twice what the last one took
const SLOW_MS = 10000; // new leads and growing scores are no transitions: look now and then
const STREAM = "/v1/transitions/stream";
const TYPES = [
  "baton.stage.transitioned.v1", "baton.transition.corrected.v1", "baton.lead.merged.v1",
  "baton.lead.unmerged.v1",
];

const liveButton = document.getElementById("live-button");
const spoken = document.getElementById("spoken");
let source = null;
let paused = false;
let timer = 0;
let fetching = false;
let again = false;
let rest = REST_MS;
let spokenAt = 0;

function say(state, text) {
  liveButton.dataset.state = state;
  liveButton.querySelector("[data-text]").textContent = text;
  liveButton.setAttribute("aria-pressed", String(!paused));
}

function refresh(after = DEBOUNCE_MS) {
  if (paused || document.hidden) return;
  if (fetching) {
    again = true;
    return;
  }
  if (!timer) timer = setTimeout(fetchBoard, after);
}

async function fetchBoard() {
  timer = 0;
  fetching = true;
  const began = performance.now();
  const live = document.getElementById("live");
  try {
    await htmx.ajax("GET", live.dataset.src, { target: live, swap: "outerHTML" });
  } catch { /* the stream's state says it */ }
  rest = Math.max(REST_MS, 2 * (performance.now() - began));
  fetching = false;
  if (again) {
    again = false;
    refresh(rest);
  }
}

// What a fetch must not lose: which stages are unfolded, how far each is scrolled. What it shall show:
// which cards moved.
let unfolded = [];
let scrolled = [];
let places = new Map();
const cards = () => [...document.querySelectorAll("#live [data-card]")];

document.addEventListener("htmx:beforeSwap", () => {
  unfolded = [...document.querySelectorAll("#live details[open]")].map((d) => d.id);
  scrolled = [...document.querySelectorAll("#live .cards, #live .board, #live .news")].map((list) =>
    [list.id, list.scrollTop, list.scrollLeft]);
  places = new Map(cards().map((card) => [card.id, card.dataset.card]));
});
document.addEventListener("htmx:afterSwap", () => {
  for (const id of unfolded) document.getElementById(id)?.setAttribute("open", "");
  for (const [id, top, left] of scrolled) {
    document.getElementById(id)?.scrollTo({ top, left, behavior: "instant" });
  }
});
document.addEventListener("htmx:afterSettle", () => {
  for (const card of cards()) {
    if (places.size && places.get(card.id) !== card.dataset.card) card.classList.add("moved");
  }
});

function told(event) {
  refresh();
  if (Date.now() - spokenAt > 3000) {
    spokenAt = Date.now();
    const move = JSON.parse(event.data);
    spoken.textContent = move.lead
      ? `${move.lead.company ?? move.lead.name ?? "A lead"}: ${move.explanation}`
      : "Two leads were merged or parted.";
  }
}

function open() {
  if (source || paused || document.hidden) return;
  say("waiting", "Connecting…");
  source = new EventSource(STREAM);
  source.onopen = () => {
    say("live", "Live");
    refresh(0); // what happened while nobody listened
  };
  source.onerror = () => {
    if (paused || !source) return;
    say("waiting", "Reconnecting…");
    if (source.readyState === EventSource.CLOSED) {
      close();
      setTimeout(open, 2000);
    }
  };
  for (const type of TYPES) source.addEventListener(type, told);
}

function close() {
  source?.close();
  source = null;
}

liveButton.hidden = false;
liveButton.addEventListener("click", () => {
  paused = !paused;
  if (paused) {
    close();
    say("paused", "Paused");
  } else open();
});
// A hidden tab gives its connection back: browsers allow few for one host.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) close();
  else open();
});
setInterval(refresh, SLOW_MS);
open();
