import { OffshootError } from "./errors.js";
import { Files } from "./files.js";
import type { components } from "./openapi.js";
import { ExecResult, type ExitStatus, Process, type StreamName, output } from "./process.js";
import { type Message, type Transport } from "./transport.js";
import { within } from "./within.js";

type Schemas = components["schemas"];

/** A program and its arguments, or a script for bash. */
export type Command = string | readonly string[];

export interface ExecOptions {
  env?: Record<string, string>;
  cwd?: string;
  user?: string;
  /** Milliseconds; then it is killed with all it has started. */
  timeoutMs?: number;
}

/** What code printed, its value, and how it ended. */
export interface CodeResult {
  stdout: string;
  stderr: string;
  /** Of the last expression, by MIME type. */
  value?: Record<string, string>;
  /** The value as plain text. */
  text?: string;
  error?: { name: string; message: string; traceback: string };
  /** By a timeout, or because somebody asked. */
  interrupted: boolean;
  /** The interpreter was made for this code: there were no variables of earlier code. */
  created: boolean;
  /** Everything else it showed, by MIME type, in order. */
  displays: Record<string, string>[];
}

export interface TryResult {
  committed: boolean;
  stdout: Buffer;
  stderr: Buffer;
  checkStdout: Buffer;
  checkStderr: Buffer;
  status?: ExitStatus;
  /** Why it was rolled back. */
  reason?: string;
  transaction: string;
}

export interface Racer {
  number: number;
  name?: string;
  stdout: Buffer;
  stderr: Buffer;
  status?: ExitStatus;
  score?: number;
  problem?: Schemas["Problem"];
}

export interface RaceResult {
  /** The VM has continued as this one. */
  winner?: number;
  racers: Racer[];
  /** What the VM was before; `undo` goes back to it. */
  undo?: string;
}

function command(given: Command): Schemas["CommandLine"] {
  return typeof given === "string" ? { shell: given } : { argv: [...given] };
}

function exec(given: Command, options: ExecOptions): Schemas["ExecRequest"] {
  const { timeoutMs, env, cwd, user } = options;
  return {
    ...command(given),
    ...(env && { env }),
    ...(cwd !== undefined && { cwd }),
    ...(user !== undefined && { user }),
    ...(timeoutMs !== undefined && { limits: { timeout_ms: timeoutMs } }),
  };
}

function collected(part: Schemas["Output"]): Buffer {
  return Buffer.from(part.data, part.encoding === "base64" ? "base64" : "utf8");
}

/** A VM, by its id: the same one whatever happens to it. `await using` destroys it at the end. */
export class Vm implements AsyncDisposable {
  readonly #transport: Transport;
  readonly files: Files;

  constructor(
    transport: Transport,
    readonly id: string,
    readonly name: string,
    /** Of a fork, what was renewed in it. */
    readonly attestations?: Schemas["Attestations"],
  ) {
    this.#transport = transport;
    this.files = new Files(transport, id);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.destroy();
    } catch (error) {
      // It is gone, as it was to be.
      if (!(error instanceof OffshootError && error.code === "not_found")) throw error;
    }
  }

  #path(verb = ""): string {
    return `/v1/vms/${this.id}${verb}`;
  }

  #post<T>(verb: string, body: unknown = {}): Promise<T> {
    return this.#transport.json("POST", this.#path(verb), { vm: this.id, body });
  }

  #get<T>(verb = ""): Promise<T> {
    return this.#transport.json("GET", this.#path(verb), { vm: this.id });
  }

  info(): Promise<Schemas["Vm"]> {
    return this.#get();
  }

  // What it does

  /** Runs a process to its end. At most 8 MiB of output are kept. */
  async exec(given: Command, options: ExecOptions & { input?: string } = {}): Promise<ExecResult> {
    const body = { exec: exec(given, options), ...(options.input !== undefined && { input: options.input }) };
    const done = await this.#post<Schemas["ExecResult"]>("/exec", body);
    return new ExecResult(collected(done.stdout), collected(done.stderr), done.status, done.truncated);
  }

  /** Starts a process and follows it. */
  async spawn(
    given: Command,
    options: ExecOptions & { stdin?: boolean; pty?: { rows: number; cols: number } } = {},
  ): Promise<Process> {
    const { pty } = options;
    const request = { ...exec(given, options), stdin: options.stdin ?? pty !== undefined, ...(pty && { pty }) };
    const conversation = await this.#transport.connect(this.#path("/exec"), this.id);
    try {
      await conversation.say(request);
      return await new Process(conversation).started();
    } catch (error) {
      conversation.close();
      throw error;
    }
  }

  /** Takes up the streams of a process that runs. */
  async attach(id: string): Promise<Process> {
    return new Process(await this.#transport.connect(this.#path(`/execs/${encodeURIComponent(id)}/attach`), this.id));
  }

  /** Runs code in a live interpreter that keeps its variables; it is made on first use, Python by default. */
  async runCode(
    code: string,
    options: {
      context?: string;
      language?: string;
      user?: string;
      cwd?: string;
      timeoutMs?: number;
      /** Told what it prints as it comes. */
      onOutput?: (stream: StreamName, text: string) => void;
    } = {},
  ): Promise<CodeResult> {
    const { context = "default", timeoutMs, onOutput, ...rest } = options;
    const request = { context, code, ...rest, ...(timeoutMs !== undefined && { timeout_ms: timeoutMs }) };
    const printed: Record<StreamName, Buffer[]> = { stdout: [], stderr: [] };
    const result: CodeResult = { stdout: "", stderr: "", interrupted: false, created: false, displays: [] };
    await this.#converse("/code", request, (heard) => {
      if (Buffer.isBuffer(heard)) {
        const [stream, data] = output(heard);
        printed[stream].push(data);
        onOutput?.(stream, data.toString());
      } else if (heard.event === "started") {
        result.created = heard["created"] as boolean;
      } else if (heard.event === "value") {
        result.value = heard["mime"] as Record<string, string>;
        if (result.value["text/plain"] !== undefined) result.text = result.value["text/plain"];
      } else if (heard.event === "display") {
        result.displays.push(heard["mime"] as Record<string, string>);
      } else if (heard.event === "error") {
        const { name, message, traceback } = heard as unknown as { name: string; message: string; traceback: string };
        result.error = { name, message, traceback };
      } else if (heard.event === "ended") {
        result.interrupted = heard["interrupted"] as boolean;
      }
    });
    result.stdout = Buffer.concat(printed.stdout).toString();
    result.stderr = Buffer.concat(printed.stderr).toString();
    return result;
  }

  /** A conversation up to its `ended`, which is returned. */
  async #converse(verb: string, request: unknown, take: (heard: Message | Buffer) => void): Promise<Message> {
    const conversation = await this.#transport.connect(this.#path(verb), this.id);
    try {
      await conversation.say(request);
      for (;;) {
        const heard = await conversation.hear();
        take(heard);
        if (!Buffer.isBuffer(heard) && heard.event === "ended") return heard;
      }
    } finally {
      conversation.close();
    }
  }

  async contexts(): Promise<Schemas["LiveContext"][]> {
    return (await this.#get<Schemas["ContextList"]>("/contexts")).contexts;
  }

  async removeContext(context: string): Promise<void> {
    await this.#transport.json("DELETE", this.#path(`/contexts/${encodeURIComponent(context)}`), { vm: this.id });
  }

  /** Its variables are gone. */
  async restartContext(context: string): Promise<void> {
    await this.#post(`/contexts/${encodeURIComponent(context)}/restart`);
  }

  /** What was run in it, newest first, also by others and before a restart; `output`: what it said, as far as the record has it. */
  async history(
    options: { failures?: boolean; output?: boolean; limit?: number } = {},
  ): Promise<Schemas["HistoryEntry"][]> {
    const { failures = false, output = false, limit = 100 } = options;
    const asked = { vm: this.id, query: { failures, output, limit } };
    return (await this.#transport.json<Schemas["HistoryList"]>("GET", this.#path("/history"), asked)).entries;
  }

  // Its states

  /** Keeps its present state. */
  snapshot(name?: string, options: { diskOnly?: boolean; note?: string } = {}): Promise<Schemas["Snapshot"]> {
    return this.#post("/snapshots", { name, note: options.note, disk_only: options.diskOnly ?? false });
  }

  async snapshots(): Promise<Schemas["Snapshot"][]> {
    return (await this.#get<Schemas["SnapshotList"]>("/snapshots")).snapshots;
  }

  /** New VMs that continue from its present state, each with an identity of its own. */
  fork(count = 1, options: { name?: string } = {}): Promise<Vm[]> {
    return fork(this.#transport, this.id, count, options.name, this.id);
  }

  /** Continues from an earlier snapshot (the newest if it is not said). What it leaves is kept: `undo` goes back. */
  rollback(to?: string, options: { lastGood?: boolean } = {}): Promise<Schemas["RolledBack"]> {
    return this.#post("/rollback", { snapshot: to, last_good: options.lastGood ?? false });
  }

  /** Takes back the last rollback, commit or race. */
  undo(): Promise<Schemas["RolledBack"]> {
    return this.#post("/undo");
  }

  /**
   * Does `work` as a transaction: kept as a whole when it returns, taken back when it throws. All calls on the VM made
   * within belong to it; within another one it is a savepoint. Nobody else can change the VM meanwhile.
   */
  async transaction<T>(work: (transaction: Transaction) => Promise<T>, options: { deadlineMs?: number } = {}) {
    const body = options.deadlineMs === undefined ? {} : { deadline_ms: options.deadlineMs };
    const begun = await this.#post<Schemas["Transaction"]>("/transactions", body);
    return within(this.id, begun.id, async () => {
      const transaction = new Transaction(begun, (verb) => this.#post(`/transactions/${begun.id}/${verb}`));
      let result: T;
      try {
        result = await work(transaction);
      } catch (error) {
        // What went wrong inside matters more than a rollback that fails: the daemon does it at the deadline.
        await transaction.rollback().catch(() => undefined);
        throw error;
      }
      if (!transaction.end) await transaction.commit();
      return result;
    });
  }

  /** Runs a command and takes back all it did unless it and `check` exit with 0 in time. */
  async attempt(given: Command, options: ExecOptions & { check?: Command } = {}): Promise<TryResult> {
    const { timeoutMs, check, ...rest } = options;
    const request = {
      exec: exec(given, rest),
      ...(check !== undefined && { check: command(check) }),
      ...(timeoutMs !== undefined && { timeout_ms: timeoutMs }),
    };
    const printed: Buffer[][] = [[], [], [], []];
    const told = await this.#converse("/try", request, (heard) => {
      if (!Buffer.isBuffer(heard)) return;
      const kept = printed[(heard[0] ?? 0) - 1];
      if (!kept) throw new OffshootError(`a frame begins with ${heard[0]}, which names no stream`);
      kept.push(heard.subarray(1));
    });
    const outcome = told as unknown as Schemas["TryOutcome"];
    const [stdout, stderr, checkStdout, checkStderr] = printed.map((pieces) => Buffer.concat(pieces));
    return {
      committed: outcome.end.committed,
      stdout: stdout!,
      stderr: stderr!,
      checkStdout: checkStdout!,
      checkStderr: checkStderr!,
      transaction: outcome.transaction,
      ...(outcome.status && { status: outcome.status }),
      ...(outcome.end.reason && { reason: outcome.end.reason }),
    };
  }

  /** Runs a command in `count` forks at once; the VM continues as the first success, or the best by `score`. */
  async race(given: Command, count: number, options: ExecOptions & { score?: Command } = {}): Promise<RaceResult> {
    const { score, ...rest } = options;
    const request = { count, exec: exec(given, rest), ...(score !== undefined && { score: command(score) }) };
    const racers = new Map<number, Racer>();
    const racer = (number: number): Racer => {
      const known = racers.get(number) ?? { number, stdout: Buffer.alloc(0), stderr: Buffer.alloc(0) };
      racers.set(number, known);
      return known;
    };
    const told = await this.#converse("/race", request, (heard) => {
      if (Buffer.isBuffer(heard)) {
        const one = racer(heard.readUInt16BE(1));
        const stream = heard[0] === 1 ? "stdout" : "stderr";
        one[stream] = Buffer.concat([one[stream], heard.subarray(3)]);
      } else if (heard["racer"] !== undefined) {
        const { event: _, racer: number, bytes: __, stream: ___, ...rest } = heard;
        Object.assign(racer(number as number), rest);
      }
    });
    const outcome = told as unknown as Schemas["RaceOutcome"];
    const found = [...racers.values()].sort((a, b) => a.number - b.number);
    return {
      racers: found,
      ...(outcome.winner != null && { winner: outcome.winner }),
      ...(outcome.undo && { undo: outcome.undo }),
    };
  }

  // Its life

  start(): Promise<Schemas["Vm"]> {
    return this.#change("start");
  }

  /** Its disk is kept. */
  stop(): Promise<Schemas["Vm"]> {
    return this.#change("stop");
  }

  restart(): Promise<Schemas["Vm"]> {
    return this.#change("restart");
  }

  pause(): Promise<Schemas["Vm"]> {
    return this.#change("pause");
  }

  /** Lets a paused or suspended VM run on. */
  resume(): Promise<Schemas["Vm"]> {
    return this.#change("resume");
  }

  /** Writes its memory to disk and ends its process. */
  suspend(): Promise<Schemas["Vm"]> {
    return this.#change("suspend");
  }

  async #change(verb: string): Promise<Schemas["Vm"]> {
    return (await this.#post<Schemas["Changed"]>(`/${verb}`)).vm!;
  }

  /** With its disk; named snapshots outlive it unless `snapshots`. */
  async destroy(options: { snapshots?: boolean } = {}): Promise<void> {
    const query = { snapshots: options.snapshots || undefined };
    await this.#transport.json("DELETE", this.#path(), { vm: this.id, query });
  }

  /** When it rests by itself, and how long it may run. */
  setLife(life: Schemas["SetLife"]): Promise<Schemas["Life"]> {
    return this.#transport.json("PATCH", this.#path("/life"), { vm: this.id, body: life });
  }

  /** When snapshots are taken without being asked for, and what a failed exec does. */
  setSnapshotPolicy(policy: Schemas["SetSnapshotPolicy"]): Promise<Schemas["SnapshotPolicy"]> {
    return this.#transport.json("PATCH", this.#path("/snapshot-policy"), { vm: this.id, body: policy });
  }
}

/** An open transaction; its end is usually that of the function it was given to. */
export class Transaction {
  readonly id: string;
  /** The snapshot of its beginning. */
  readonly snapshot: string;
  readonly #finish: (verb: string) => Promise<Schemas["Transaction"]>;
  /** Once it has ended. */
  end: Schemas["TransactionEnd"] | undefined;

  constructor(begun: Schemas["Transaction"], finish: (verb: string) => Promise<Schemas["Transaction"]>) {
    this.id = begun.id;
    this.snapshot = begun.snapshot;
    this.#finish = finish;
  }

  /** Keeps what was done; `vm.undo()` can still take it back. */
  async commit(): Promise<void> {
    this.end = (await this.#finish("commit")).end ?? undefined;
  }

  /** Takes back what was done. */
  async rollback(): Promise<void> {
    this.end = (await this.#finish("rollback")).end ?? undefined;
  }
}

export async function fork(
  transport: Transport,
  source: string,
  count: number,
  name?: string,
  vm?: string,
): Promise<Vm[]> {
  const body = { source, count, ...(name !== undefined && { name }) };
  const forked = await transport.json<Schemas["Forked"]>("POST", "/v1/forks", {
    body,
    ...(vm !== undefined && { vm }),
  });
  return forked.forks.map((one) => new Vm(transport, one.vm, one.name, one.attestations ?? undefined));
}
