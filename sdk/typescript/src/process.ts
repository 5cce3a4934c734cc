import { OffshootError } from "./errors.js";
import type { components } from "./openapi.js";
import type { Conversation } from "./transport.js";

export type ExitStatus = components["schemas"]["ExitStatus"];
export type StreamName = "stdout" | "stderr";

/** Bytes in one frame to the daemon. */
const MAX_FRAME = 256 * 1024;

/** As a shell would report it: 128 + signal, 124 for a timeout. */
export function exitCode(status: ExitStatus): number {
  if (status.kind === "exited") return status.code;
  return status.kind === "signaled" ? 128 + status.signal : 124;
}

/** How a process ended, and what it printed. */
export class ExecResult {
  constructor(
    readonly stdout: Buffer,
    readonly stderr: Buffer,
    readonly status: ExitStatus,
    /** Output beyond the limit was dropped. */
    readonly truncated: boolean,
  ) {}

  get exitCode(): number {
    return exitCode(this.status);
  }

  /** Standard output as text. */
  get text(): string {
    return this.stdout.toString();
  }

  get errorText(): string {
    return this.stderr.toString();
  }

  /** Itself, if it ended with status 0. */
  check(): this {
    if (this.exitCode === 0) return this;
    const last = this.errorText.trim().split("\n").at(-1) || "nothing on standard error";
    throw new ProcessFailed(`the process ended with status ${this.exitCode}: ${last}`, this);
  }
}

export class ProcessFailed extends OffshootError {
  override name = "ProcessFailed";
  constructor(
    message: string,
    readonly result: ExecResult,
  ) {
    super(message, { code: "exec_failed" });
  }
}

/** `stdout` or `stderr`, and the bytes. */
export function output(frame: Buffer): [StreamName, Buffer] {
  if (frame[0] === 1) return ["stdout", frame.subarray(1)];
  if (frame[0] === 2) return ["stderr", frame.subarray(1)];
  throw new OffshootError(`a frame begins with ${frame[0]}, which names no stream`);
}

/**
 * A process in a VM, followed while it runs. It is killed when this is closed before it has ended, unless it was left
 * with `detach`. Iterate over it for its output as it comes; `wait` gives the rest at once.
 */
export class Process implements AsyncIterable<[StreamName, Buffer]>, AsyncDisposable {
  readonly #conversation: Conversation;
  /** In the guest. */
  pid: number | undefined;
  /** `vm.attach(id)` takes it up again. */
  id: string | undefined;
  #end: { status: ExitStatus; truncated: boolean } | undefined;
  #detached = false;

  constructor(conversation: Conversation) {
    this.#conversation = conversation;
  }

  /** Once it runs. */
  async started(): Promise<this> {
    while (this.pid === undefined) {
      const message = await this.#conversation.hear();
      if (!Buffer.isBuffer(message) && message.event === "started") {
        this.pid = message["pid"] as number;
        this.id = message["exec"] as string;
      }
    }
    return this;
  }

  /** To its standard input, or its terminal. */
  async write(data: string | Uint8Array): Promise<void> {
    const bytes = Buffer.from(data as string);
    for (let at = 0; at < bytes.length; at += MAX_FRAME) {
      await this.#conversation.give(Buffer.concat([Buffer.of(0), bytes.subarray(at, at + MAX_FRAME)]));
    }
  }

  closeStdin(): Promise<void> {
    return this.#conversation.say({ type: "stdin-end" });
  }

  /** Of its terminal. */
  resize(rows: number, cols: number): Promise<void> {
    return this.#conversation.say({ type: "resize", rows, cols });
  }

  /** To its foreground process group, by number. */
  signal(signal: number): Promise<void> {
    return this.#conversation.say({ type: "signal", signal });
  }

  /** It and all it has started. */
  kill(): Promise<void> {
    return this.#conversation.say({ type: "kill" });
  }

  /** Lets it run on without us. */
  async detach(): Promise<void> {
    await this.#conversation.say({ type: "detach" });
    for await (const _ of this);
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<[StreamName, Buffer]> {
    while (this.#end === undefined && !this.#detached) {
      const heard = await this.#conversation.hear();
      if (Buffer.isBuffer(heard)) {
        yield output(heard);
      } else if (heard.event === "ended") {
        this.#end = { status: heard["status"] as ExitStatus, truncated: heard["truncated"] as boolean };
      } else if (heard.event === "detached") {
        this.#detached = true;
      }
    }
  }

  /** How it ended, with all output that was not read yet. */
  async wait(): Promise<ExecResult> {
    const kept: Record<StreamName, Buffer[]> = { stdout: [], stderr: [] };
    for await (const [stream, data] of this) kept[stream].push(data);
    if (!this.#end) throw new OffshootError("the process was detached: its end is not known here");
    const { status, truncated } = this.#end;
    return new ExecResult(Buffer.concat(kept.stdout), Buffer.concat(kept.stderr), status, truncated);
  }

  close(): void {
    this.#conversation.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
  }
}
