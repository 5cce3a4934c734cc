import assert from "node:assert/strict";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import { Client, OffshootError } from "../src/index.js";

const busy = { code: "busy", message: "under way", request_id: "r", retryable: true };

/** Answers by the script, or breaks off; `keys` are those it was sent. */
async function served(script: string[], work: (client: Client) => Promise<void>): Promise<(string | undefined)[]> {
  const keys: (string | undefined)[] = [];
  const server = createServer((request, response) => {
    keys.push(request.headers["idempotency-key"] as string | undefined);
    const word = script.shift();
    if (word === "break") return void request.socket.destroy();
    response.statusCode = word === "busy" ? 409 : 200;
    if (word === "busy") response.setHeader("retry-after", "1");
    response.end(JSON.stringify(word === "busy" ? busy : { removed: ["a@b"] }));
  });
  await new Promise<void>((ready) => server.listen(0, "127.0.0.1", ready));
  const client = new Client({ url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, apiKey: "x" });
  try {
    await work(client);
  } finally {
    await client.close();
    server.close();
  }
  return keys;
}

test("a change that broke off is sent again with its key until it is answered", async () => {
  const keys = await served(["break", "busy", "removed"], async (client) => {
    assert.deepEqual(await client.removeSnapshot("a@b"), ["a@b"]);
  });
  assert.equal(keys.length, 3);
  assert.equal(new Set(keys).size, 1);
  assert.ok(keys[0]);
});

test("it is given up in the end, and what has no key at once", async () => {
  const interrupted = (error: unknown) => error instanceof OffshootError && error.code === "interrupted";
  const changed = await served(["break", "break", "break"], async (client) => {
    await assert.rejects(client.removeSnapshot("a@b"), interrupted);
  });
  assert.equal(changed.length, 3);
  const read = await served(["break"], async (client) => {
    await assert.rejects(client.vms(), interrupted);
  });
  assert.deepEqual(read, [undefined]);
});
