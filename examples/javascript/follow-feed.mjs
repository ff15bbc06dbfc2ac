// Follows the transitions, and goes on where it stopped: node follow-feed.mjs place.txt
// With a database of your own, keep the position in the transaction that does the work.
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";

const url = process.env.BATON_URL ?? "http://127.0.0.1:8080";
const headers = { authorization: `Bearer ${process.env.BATON_API_KEY}` };
const place = process.argv[2];
let after = existsSync(place) ? readFileSync(place, "utf8") : "0";

for (;;) {
  let page;
  try {
    // Answered when there is something new, or after 25 s.
    const answer = await fetch(`${url}/v1/transitions?after=${after}&wait=25`, { headers });
    if (answer.status >= 400 && answer.status < 500 && answer.status !== 429) {
      console.error((await answer.json()).detail);
      process.exit(1);
    }
    if (!answer.ok) throw new Error(`answered ${answer.status}`);
    page = await answer.json();
  } catch {
    await pause(1000 + 1000 * Math.random()); // Baton is away: it goes on when it is back
    continue;
  }
  for (const item of page.items) {
    console.log(item.position, item.lead?.email, item.from, item.to); // the work
    writeFileSync(place, String(item.position));
  }
  after = page.next_cursor ?? after;
}
