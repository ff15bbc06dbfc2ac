// Verifies received webhooks as a receiver on Node.js does: with the packages standardwebhooks and svix, and
// Ed25519 (v1a), which neither of them knows, with Node's own crypto. Prints how many were right and refused.
import { createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import { Webhook as StandardWebhook } from "standardwebhooks";
import { Webhook as SvixWebhook } from "svix";

const DER_OF_ED25519 = Buffer.from("302a300506032b6570032100", "hex");

export function verifyEd25519(publicKey, headers, body) {
  const raw = Buffer.from(publicKey.replace(/^whpk_/, ""), "base64");
  const key = createPublicKey({ key: Buffer.concat([DER_OF_ED25519, raw]), format: "der", type: "spki" });
  const signed = Buffer.from(`${headers["webhook-id"]}.${headers["webhook-timestamp"]}.${body}`);
  return headers["webhook-signature"].split(" ").some((each) => {
    const [version, signature] = each.split(",");
    return version === "v1a" && verify(null, signed, key, Buffer.from(signature, "base64"));
  });
}

const told = { v1: 0, v1a: 0, refused: 0 };
for (const { headers, body, good, bad } of JSON.parse(readFileSync(process.argv[2], "utf8"))) {
  for (const Webhook of [StandardWebhook, SvixWebhook]) {
    for (const secret of good.v1) {
      new Webhook(secret).verify(body, headers);
      told.v1 += 1;
    }
    try {
      new Webhook(bad).verify(body, headers);
    } catch {
      told.refused += 1;
    }
  }
  for (const publicKey of good.v1a ?? []) {
    if (!verifyEd25519(publicKey, headers, body)) throw new Error("v1a is not right");
    if (verifyEd25519(publicKey, headers, `${body} `)) throw new Error("v1a takes anything");
    told.v1a += 1;
  }
}
console.log(JSON.stringify(told));
