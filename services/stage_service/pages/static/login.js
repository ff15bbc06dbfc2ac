// The link's one-time token stands after the #, which no server log and no Referer ever sees.
"use strict";

const form = document.getElementById("login");

function redeem() {
  const token = location.hash.slice(1);
  if (!token) return;
  history.replaceState(null, "", location.pathname + location.search);
  form.elements.token.value = token;
  form.requestSubmit();
}

redeem();
// A link pasted into the address bar of this very page loads nothing anew.
addEventListener("hashchange", redeem);
