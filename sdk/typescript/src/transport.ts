/** Requests and WebSockets to one daemon. */
import { randomUUID } from "node:crypto";
import { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { Agent, type Dispatcher, request } from "undici";
import WebSocket from "ws";
import { OffshootError } from "./errors.js";
import type { Place } from "./place.js";
import { transactionHeader } from "./within.js";

export type Query = Record<string, string | number | boolean | undefined>;

export interface Asked {
  /** The VM whose open transaction the request belongs to. */
  vm?: string;
  body?: unknown;
  query?: Query;
  content?: Uint8Array | string | Readable;
}

/** How often a request is sent again whose connection broke off. */
const REPEATS = 2;

export class Transport {
  readonly #agent: Agent;

  constructor(readonly place: Place) {
    // What is answered late is a long wait that was asked for: time limits are the requests' own.
    const connect = place.socketPath ? { socketPath: place.socketPath } : {};
    this.#agent = new Agent({ connect, headersTimeout: 0, bodyTimeout: 0 });
  }

  async close(): Promise<void> {
    await this.#agent.close();
  }

  async json<T>(method: string, path: string, asked: Asked = {}): Promise<T> {
    const text = await (await this.send(method, path, asked)).text();
    return (text ? JSON.parse(text) : undefined) as T;
  }

  /** The body of a successful answer. */
  async send(method: string, path: string, asked: Asked = {}) {
    const { content } = asked;
    // Its bytes can be sent but once: a daemon that has to be started is started before.
    if (content instanceof Readable && this.place.start) await this.json("GET", "/v1/daemon");
    // By it the daemon knows a request that it was sent before, and does nothing twice.
    const key = method === "GET" ? undefined : randomUUID();
    const answer = await this.#repeating(key, content, () => this.#request(method, path, asked, key));
    if (answer.statusCode >= 400) throw OffshootError.of(await answer.body.text(), answer.statusCode);
    return answer.body;
  }

  /** Does `work`; if its connection breaks off, again, as long as that does nothing twice. */
  async #repeating<T extends Dispatcher.ResponseData>(
    key: string | undefined,
    content: Asked["content"],
    work: () => Promise<T>,
  ): Promise<T> {
    let repeats = key === undefined || content instanceof Readable ? 0 : REPEATS;
    for (let repeated = false; ;) {
      try {
        const answer = await this.#restarting(work, content);
        // The daemon may still be carrying out what it was sent before.
        if (!repeated || answer.statusCode !== 409 || !("retry-after" in answer.headers)) return answer;
        await answer.body.dump();
        await sleep(1000);
      } catch (error) {
        if (!(error instanceof OffshootError) || error.code !== "interrupted" || repeats === 0) throw error;
        repeats -= 1;
        repeated = true;
      }
    }
  }

  #request(method: string, path: string, asked: Asked, key: string | undefined) {
    const url = new URL(this.place.url + path);
    for (const [key, value] of Object.entries(asked.query ?? {})) {
      if (value !== undefined) url.searchParams.set(key, String(value));
    }
    const headers: Record<string, string> = { ...this.place.headers, ...transactionHeader(asked.vm) };
    if (key !== undefined) headers["idempotency-key"] = key;
    let body = asked.content ?? null;
    if (asked.body !== undefined) {
      body = JSON.stringify(asked.body);
      headers["content-type"] = "application/json";
    }
    return request(url, { method: method as "GET", headers, body, dispatcher: this.#agent });
  }

  /** A WebSocket of the API. */
  async connect(path: string, vm: string): Promise<Conversation> {
    return this.#restarting(() => this.#open(path, vm));
  }

  #open(path: string, vm: string): Promise<Conversation> {
    const { url, socketPath } = this.place;
    const target = socketPath ? `ws+unix:${socketPath}:${path}` : url.replace(/^http/, "ws") + path;
    const headers = { ...this.place.headers, ...transactionHeader(vm) };
    const socket = new WebSocket(target, { headers, perMessageDeflate: false, handshakeTimeout: 60_000 });
    // Listens before it is open: what the daemon says first can come with its consent.
    const conversation = new Conversation(socket);
    return new Promise((opened, failed) => {
      socket.once("open", () => opened(conversation));
      socket.once("error", failed);
      socket.once("unexpected-response", (_, answer) => {
        const pieces: Buffer[] = [];
        answer.on("data", (piece: Buffer) => pieces.push(piece));
        answer.on("end", () => failed(OffshootError.of(Buffer.concat(pieces).toString(), answer.statusCode ?? 0)));
        answer.on("error", failed);
      });
    });
  }

  /** Does `work`; where no daemon answers, once more after it was started. Nothing was sent then, except of a stream. */
  async #restarting<T>(work: () => Promise<T>, content?: Asked["content"]): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (content instanceof Readable && content.errored === error) throw error;
      if (!refused(error)) throw interrupted(error);
      if (!this.place.start || content instanceof Readable) throw this.#unreachable(error);
    }
    await this.place.start();
    try {
      return await work();
    } catch (error) {
      throw refused(error) ? this.#unreachable(error) : interrupted(error);
    }
  }

  #unreachable(cause: unknown): OffshootError {
    const { socketPath, url } = this.place;
    const hint = socketPath
      ? "start one with `offshoot serve`, or put `offshoot` in PATH so that it is started when needed"
      : "check the URL";
    return new OffshootError(`no daemon answers at ${socketPath ?? url}`, { code: "unavailable", hint }, { cause });
  }
}

function refused(error: unknown): boolean {
  // A file that is to be sent and is not there has an ENOENT too. Of several addresses each has an error.
  const first: unknown = error instanceof AggregateError ? error.errors[0] : error;
  const { code, syscall } = (first ?? {}) as { code?: string; syscall?: string };
  return syscall === "connect" && (code === "ECONNREFUSED" || code === "ENOENT");
}

function interrupted(error: unknown): unknown {
  if (error instanceof OffshootError) return error;
  return new OffshootError("the connection to the daemon broke off", { code: "interrupted" }, { cause: error });
}

export type Message = { event: string } & Record<string, unknown>;

/** Texts are JSON messages, binary frames are bytes of processes. A slow reader slows the daemon. */
export class Conversation {
  readonly #socket: WebSocket;
  readonly #waiting: (Message | Buffer)[] = [];
  #problem: unknown;
  #over = false;
  #wake: () => void = () => {};

  constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.on("message", (data: Buffer, binary: boolean) => {
      this.#waiting.push(binary ? data : (JSON.parse(data.toString()) as Message));
      // One frame ahead of whoever takes them.
      socket.pause();
      this.#wake();
    });
    socket.on("close", () => {
      this.#over = true;
      this.#wake();
    });
    socket.on("error", (error) => {
      this.#problem = error;
      this.#wake();
    });
  }

  say(message: unknown): Promise<void> {
    return this.give(JSON.stringify(message));
  }

  give(frame: string | Uint8Array): Promise<void> {
    return new Promise((given, failed) => {
      this.#socket.send(frame, (error) => (error ? failed(interrupted(error)) : given()));
    });
  }

  /** The next frame. A `failed` message is thrown. */
  async hear(): Promise<Message | Buffer> {
    for (;;) {
      const frame = this.#waiting.shift();
      if (frame !== undefined) {
        if (!Buffer.isBuffer(frame) && frame.event === "failed") {
          throw OffshootError.of(JSON.stringify(frame["error"]), 0);
        }
        return frame;
      }
      if (this.#over || this.#problem !== undefined) {
        throw interrupted(this.#problem ?? new Error("the daemon closed it"));
      }
      const woken = new Promise<void>((resolve) => (this.#wake = resolve));
      this.#socket.resume();
      await woken;
    }
  }

  close(): void {
    // What is still on its way is not wanted; a paused socket would never see the daemon's farewell.
    this.#socket.resume();
    this.#socket.close();
  }
}
