// Sends one lead event: node send-event.mjs ada@example.com
import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";

const url = process.env.BATON_URL ?? "http://127.0.0.1:8080";
const event = {
  specversion: "1.0",
  id: randomUUID(), // the same at each try: Baton takes an event once
  source: "/examples",
  type: "demo.requested",
  data: { email: process.argv[2], company: "Example" },
};

async function send(event) {
  for (let attempt = 1; ; attempt++) {
    let answer;
    try {
      answer = await fetch(`${url}/v1/events`, {
        method: "POST",
        headers: {
          authorization: `Bearer ${process.env.BATON_API_KEY}`,
          "content-type": "application/cloudevents+json",
        },
        body: JSON.stringify(event),
      });
    } catch (error) {
      if (attempt === 8) throw error; // not reached
    }
    if (answer?.ok) return (await answer.json()).results[0];
    if (answer && answer.status !== 429 && answer.status < 500) {
      const problem = await answer.json();
      throw new Error(`${problem.detail} ${problem.remedy ?? ""}`);
    }
    if (attempt === 8) throw new Error(`Baton answered ${answer.status}`);
    const asked = Number(answer?.headers.get("retry-after")) || 0;
    await pause(1000 * Math.max(asked, 0.2 * 2 ** attempt * Math.random()));
  }
}

const result = await send(event);
console.log(result.status, result.lead_id);
for (const move of result.transitions) {
  console.log(`${move.from} -> ${move.to}: ${move.explanation}`);
}
