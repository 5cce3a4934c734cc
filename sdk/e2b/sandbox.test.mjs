// E2B's JavaScript SDK, against the daemon that pytest has started (see test_javascript.py).
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { CommandExitError, NotFoundError, Sandbox } from "e2b";

let sandbox;
before(async () => {
  sandbox = await Sandbox.create("base", { timeoutMs: 600_000, metadata: { by: "javascript" } });
});
after(async () => {
  await sandbox?.kill();
});

test("a sandbox is found by what it carries", async () => {
  assert.ok(await sandbox.isRunning());
  assert.equal((await sandbox.getInfo()).metadata.by, "javascript");
  const found = await Sandbox.list({ query: { metadata: { by: "javascript" } } }).nextItems();
  assert.deepEqual(
    found.map((one) => one.sandboxId),
    [sandbox.sandboxId],
  );
});

test("commands run, fail, stream and are killed", async () => {
  const heard = [];
  const ran = await sandbox.commands.run("echo out; echo err >&2", { onStdout: (text) => heard.push(text) });
  assert.deepEqual([ran.stdout, ran.stderr, heard], ["out\n", "err\n", ["out\n"]]);
  await assert.rejects(sandbox.commands.run("exit 3"), (error) => error instanceof CommandExitError && error.exitCode === 3);
  const sleeper = await sandbox.commands.run("sleep 1234", { background: true });
  assert.ok((await sandbox.commands.list()).some((one) => one.pid === sleeper.pid));
  assert.ok(await sandbox.commands.kill(sleeper.pid));
  await assert.rejects(sleeper.wait(), CommandExitError);
});

test("files go both ways and are watched", async () => {
  await sandbox.files.makeDir("js");
  const events = [];
  const watch = await sandbox.files.watchDir("js", (event) => events.push(`${event.type} ${event.name}`));
  await sandbox.files.write("js/a", "text");
  assert.equal(await sandbox.files.read("js/a"), "text");
  assert.deepEqual((await sandbox.files.list("js")).map((entry) => entry.name), ["a"]);
  for (let tries = 0; tries < 100 && !events.includes("create a"); tries++) {
    await new Promise((wake) => setTimeout(wake, 100));
  }
  assert.ok(events.includes("create a"), `${events}`);
  await watch.stop();
  await assert.rejects(sandbox.files.read("nowhere"), NotFoundError);
});

test("a terminal answers", async () => {
  let seen = "";
  const terminal = await sandbox.pty.create({ cols: 80, rows: 24, onData: (data) => (seen += Buffer.from(data)) });
  await sandbox.pty.sendInput(terminal.pid, Buffer.from("echo $((6 * 7)); exit\n"));
  await terminal.wait();
  assert.match(seen, /42/);
});
