// The link's one-time token stands after the #, which no server log and no Referer ever sees.
"use strict";

const form = document.getElementById("login");
const token = location.hash.slice(1);
if (token) {
  history.replaceState(null, "", location.pathname + location.search);
  form.elements.token.value = token;
  form.requestSubmit();
}
