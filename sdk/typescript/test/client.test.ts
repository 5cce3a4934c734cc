import assert from "node:assert/strict";
import { execFile, execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { after, before, test } from "node:test";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { Readable } from "node:stream";
import { Client, OffshootError, ProcessFailed, type Vm } from "../src/index.js";

const program = process.env["OFFSHOOT_BIN"];
assert.ok(program, "OFFSHOOT_BIN has to be the path of the program to test; `cargo xtask sdk` sets it");

const stateDir = mkdtempSync(join(tmpdir(), "offshoot-ts-"));
const client = new Client({ stateDir });
let vm: Vm;

before(async () => {
  vm = await client.create({ name: "shared" });
});

after(async () => {
  await client.close();
  execFileSync(program, ["--state-dir", stateDir, "daemon", "stop", "--vms"], { stdio: "pipe" });
  rmSync(stateDir, { recursive: true });
});

test("a process tells what it printed and how it ended", async () => {
  const done = await vm.exec("echo out; echo err >&2; exit 3");
  assert.deepEqual([done.text, done.errorText, done.exitCode], ["out\n", "err\n", 3]);
  assert.throws(() => done.check(), ProcessFailed);
  assert.equal((await vm.exec(["cat"], { input: "in" })).text, "in");
  assert.deepEqual((await vm.exec("sleep 60", { timeoutMs: 200 })).status, { kind: "timed-out" });
});

test("a process is followed, written to and taken up again", async () => {
  const cat = await vm.spawn(["cat"], { stdin: true });
  await cat.write("hello");
  await cat.closeStdin();
  assert.equal((await cat.wait()).text, "hello");
  const reader = await vm.spawn("read line; echo got $line", { stdin: true });
  await reader.detach();
  const again = await vm.attach(reader.id!);
  await again.started();
  await again.write("it\n");
  assert.equal((await again.wait()).text, "got it\n");
  const terminal = await vm.spawn("stty size", { pty: { rows: 12, cols: 34 } });
  assert.equal((await terminal.wait()).text.trim(), "12 34");
});

test("much output arrives whole", async () => {
  const much = await vm.spawn("seq 1 200000");
  const { stdout } = await much.wait();
  assert.equal(stdout.toString().trimEnd().split("\n").length, 200_000);
});

test("an interpreter keeps its variables and tells its errors", async () => {
  const heard: string[] = [];
  const onOutput = (stream: string, text: string) => void heard.push(`${stream}: ${text}`);
  const first = await vm.runCode("x = 40\nprint('hello')\nx + 1", { context: "kept", onOutput });
  assert.deepEqual([first.text, first.stdout, heard], ["41", "hello\n", ["stdout: hello\n"]]);
  assert.equal((await vm.runCode("x + 2", { context: "kept" })).text, "42");
  assert.equal((await vm.runCode("1 / 0", { context: "kept" })).error?.name, "ZeroDivisionError");
  assert.ok((await vm.runCode("while True: pass", { context: "kept", timeoutMs: 300 })).interrupted);
});

test("what was run is told, newest first", async () => {
  await vm.exec("exit 3");
  await vm.runCode("6 * 7", { context: "told" });
  const until = Date.now() + 10_000;
  // The record of an end follows it.
  while ((await vm.history({ limit: 2 })).some((entry) => entry.state === "running")) assert.ok(Date.now() < until);
  const [code, process] = await vm.history({ output: true, limit: 2 });
  assert.deepEqual([code?.kind, code?.what, process?.kind, process?.succeeded], ["code", "6 * 7", "exec", false]);
  const failures = (await vm.history({ failures: true })).map((entry) => entry.id);
  assert.deepEqual([failures.includes(process!.id), failures.includes(code!.id)], [true, false]);
});

test("files go both ways, and errors have codes", async () => {
  const content = Buffer.alloc(1_000_000, "abcdefg");
  await vm.files.write("/root/some/a.bin", content, { mode: 0o600 });
  assert.ok((await vm.files.read("/root/some/a.bin")).equals(content));
  assert.equal((await vm.files.read("/root/some/a.bin", { offset: 7, length: 3 })).toString(), "abc");
  await vm.files.write("/root/some/b", Readable.from([Buffer.from("from "), Buffer.from("pieces")]));
  assert.equal(await vm.files.readText("/root/some/b"), "from pieces");
  assert.deepEqual((await vm.files.list("/root/some")).map((entry) => entry.name).sort(), ["a.bin", "b"]);
  await vm.files.remove("/root/some", { recursive: true });
  assert.equal(await vm.files.exists("/root/some"), false);
  await assert.rejects(client.vm("nobody"), (error: OffshootError) => error.code === "not_found" && !!error.requestId);
});

test("forks continue and differ", async () => {
  await vm.runCode("y = 41", { context: "forked" });
  const forks = await vm.fork(2, { name: "child" });
  assert.deepEqual(forks.map((fork) => fork.name).sort(), ["child-1", "child-2"]);
  for (const fork of forks) assert.equal((await fork.runCode("y += 1; y", { context: "forked" })).text, "42");
  const numbers = await Promise.all(forks.map((fork) => fork.exec("head -c 8 /dev/urandom | od -An -tx1")));
  assert.notEqual(numbers[0]?.text, numbers[1]?.text);
  for (const fork of forks) await fork.destroy();
});

test("a transaction is kept as a whole or not at all", async () => {
  await vm.transaction(() => vm.files.write("/root/kept", "kept"));
  let outside: Promise<unknown> | undefined;
  const outsiders = client.vms();
  await assert.rejects(
    vm.transaction(async (transaction) => {
      await vm.exec("rm /root/kept");
      assert.ok(transaction.id);
      throw new Error("no");
    }),
    /no/,
  );
  await outsiders;
  assert.equal(await vm.files.readText("/root/kept"), "kept");
  let begun = () => {};
  let finish = () => {};
  const open = new Promise<void>((resolve) => (begun = resolve));
  const done = new Promise<void>((resolve) => (finish = resolve));
  const transaction = vm.transaction(() => (begun(), done));
  await open;
  outside = vm.exec("true");
  await assert.rejects(outside, (error: OffshootError) => error.code === "in_transaction");
  finish();
  await transaction;
});

test("attempts, races, rollbacks and rests", async () => {
  const tried = await vm.attempt("rm /root/kept; echo gone", { check: "test -e /root/kept" });
  assert.deepEqual([tried.committed, tried.stdout.toString()], [false, "gone\n"]);
  assert.equal(await vm.files.readText("/root/kept"), "kept");
  const won = await vm.race("hostname | tee /root/who", 2, { score: "wc -c < /root/who" });
  assert.equal(won.racers.length, 2);
  assert.ok(won.racers[won.winner! - 1]!.stdout.equals(await vm.files.read("/root/who")));
  await vm.undo();
  assert.equal(await vm.files.exists("/root/who"), false);
  assert.equal((await vm.suspend()).state, "suspended");
  assert.equal((await vm.resume()).state, "running");
  for await (const event of client.events()) {
    assert.ok(event.id > 0);
    break;
  }
});

test("the quickstart of the README runs", async () => {
  const readme = readFileSync(resolve("README.md"), "utf8");
  const quickstart = /```js\n([\s\S]*?)```/.exec(readme)?.[1];
  assert.ok(quickstart);
  const script = join(stateDir, "quickstart.mjs");
  writeFileSync(script, quickstart.replace('"offshoot"', JSON.stringify(pathToFileURL(resolve("dist/index.js")).href)));
  const env = { ...process.env, OFFSHOOT_HOME: stateDir };
  const { stdout } = await promisify(execFile)(process.execPath, [script], { env });
  assert.equal(stdout.match(/ 42\n/g)?.length, 4);
  assert.match(stdout, /undone: the process ended with status 1/);
});
