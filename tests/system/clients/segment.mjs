// Sends COUNT events with Segment's or RudderStack's own Node.js client: segment.mjs CLIENT MODULES URL KEY COUNT GZIP
import { createRequire } from "node:module";

const [, , client, modules, url, key, count, gzip] = process.argv;
const require = createRequire(modules + "/");

function made() {
  if (client === "segment") {
    const { Analytics } = require("@segment/analytics-node");
    const analytics = new Analytics({ writeKey: key, host: url, flushAt: 50, maxRetries: 20 });
    analytics.on("error", (error) => console.error(error.code, error.reason));
    return [analytics, () => analytics.closeAndFlush({ timeout: 60000 })];
  }
  const RudderAnalytics = require("@rudderstack/rudder-sdk-node");
  const analytics = new RudderAnalytics(key, {
    dataPlaneUrl: url, flushAt: 50, gzip: gzip === "gzip", retryCount: 10,
  });
  return [analytics, () => analytics.flush()];
}

const [analytics, done] = made();
for (let n = 0; n < Number(count); n += 1) {
  const userId = `node-${client}-${gzip}-${n % 50}`;
  if (n % 10 === 0) {
    analytics.identify({ userId, traits: { email: `${userId}@example.com`, company: "Example" } });
  } else {
    analytics.track({ userId, event: "Page Read", properties: { n } });
  }
  if (n % 20 === 0) await new Promise((resolve) => setTimeout(resolve, 50));
}
await done();
