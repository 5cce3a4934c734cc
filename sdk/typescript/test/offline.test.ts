/** What needs no VM: where the daemon is, and what is said of what goes wrong on the way to it. */
import assert from "node:assert/strict";
import { createReadStream, mkdtempSync, rmSync, statSync, symlinkSync } from "node:fs";
import { type Server, createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { Client, OffshootError } from "../src/index.js";
import { find } from "../src/place.js";
import { Transport } from "../src/transport.js";
import { Vm } from "../src/vm.js";

function scratch(t: { after(work: () => void): void }): string {
  const dir = mkdtempSync(join(tmpdir(), "offshoot-ts-"));
  t.after(() => rmSync(dir, { recursive: true }));
  return dir;
}

async function serving(
  t: { after(work: () => void): void },
  answer: (path: string) => [number, unknown],
): Promise<{ transport: Transport; asked: string[] }> {
  const asked: string[] = [];
  const server: Server = createServer((request, response) => {
    asked.push(`${request.method} ${request.url}`);
    const [status, body] = answer(request.url ?? "");
    request.resume().on("end", () => response.writeHead(status).end(JSON.stringify(body)));
  });
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  t.after(() => void server.close());
  const transport = new Transport(find({ url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }));
  t.after(() => void transport.close());
  return { transport, asked };
}

const missing = { code: "not_found", message: "there is no such thing" };

test("the state directory is the command line's, made private and under its one name", (t) => {
  const home = scratch(t);
  const before = { ...process.env };
  t.after(() => void Object.assign(process.env, { OFFSHOOT_HOME: "", XDG_DATA_HOME: "" }, before));
  Object.assign(process.env, { HOME: home, XDG_DATA_HOME: join(home, "data"), OFFSHOOT_HOME: "", OFFSHOOT_URL: "" });
  const { socketPath } = find({});
  const made = join(home, ".local/share/offshoot");
  assert.equal(statSync(made).mode & 0o777, 0o700);
  assert.equal(socketPath, find({ stateDir: made }).socketPath);
  symlinkSync(home, join(home, "link"));
  assert.equal(find({ stateDir: join(home, "link/new") }).socketPath, find({ stateDir: join(home, "new") }).socketPath);
  assert.throws(() => find({ stateDir: "/dev/null" }), OffshootError);
});

test("a file that is not there is told as that, and nothing is sent twice", async (t) => {
  const { transport, asked } = await serving(t, () => [200, {}]);
  const vm = new Vm(transport, "id", "name");
  await assert.rejects(vm.files.write("/x", createReadStream("/no/such/file")), { code: "ENOENT", syscall: "open" });
  assert.ok(asked.length <= 1, `${asked}`);
});

test("names are one segment of a path", async (t) => {
  const { transport, asked } = await serving(t, () => [200, {}]);
  const vm = new Vm(transport, "id", "name");
  await vm.restartContext("a/b?c");
  assert.deepEqual(asked, ["POST /v1/vms/id/contexts/a%2Fb%3Fc/restart"]);
});

test("where no daemon listens, that is said", async (t) => {
  const client = new Client({ stateDir: scratch(t), autostart: false });
  await assert.rejects(client.vms(), { code: "unavailable" });
  await client.close();
});

test("a VM that is gone at the end is as it was to be", async (t) => {
  const { transport } = await serving(t, () => [404, missing]);
  await new Vm(transport, "id", "name")[Symbol.asyncDispose]();
  const refusing = await serving(t, () => [409, { code: "conflict", message: "no" }]);
  await assert.rejects(new Vm(refusing.transport, "id", "name")[Symbol.asyncDispose](), { code: "conflict" });
});

test("whether a path is there is not said of a VM that is not", async (t) => {
  const gone = await serving(t, () => [404, missing]);
  await assert.rejects(new Vm(gone.transport, "id", "name").files.exists("/x"), { code: "not_found" });
  const there = await serving(t, (path) => (path.includes("path=%2Fx") ? [404, missing] : [200, {}]));
  assert.equal(await new Vm(there.transport, "id", "name").files.exists("/x"), false);
});
