import type { Readable } from "node:stream";
import { OffshootError } from "./errors.js";
import type { components } from "./openapi.js";
import type { Transport } from "./transport.js";

type Schemas = components["schemas"];

/** Whose permissions count inside the VM; `root` unless it is said. */
export interface AsUser {
  user?: string;
}

/** Files inside a VM. Paths are absolute. */
export class Files {
  readonly #transport: Transport;
  readonly #vm: string;

  constructor(transport: Transport, vm: string) {
    this.#transport = transport;
    this.#vm = vm;
  }

  #path(verb = ""): string {
    return `/v1/vms/${this.#vm}/files${verb}`;
  }

  async read(path: string, options: AsUser & { offset?: number; length?: number } = {}): Promise<Buffer> {
    const body = await this.#transport.send("GET", this.#path(), { vm: this.#vm, query: { path, ...options } });
    return Buffer.from(await body.arrayBuffer());
  }

  /** As UTF-8. */
  async readText(path: string, options: AsUser = {}): Promise<string> {
    return (await this.read(path, options)).toString();
  }

  /** Its bytes as they come. */
  async open(path: string, options: AsUser = {}): Promise<Readable> {
    return this.#transport.send("GET", this.#path(), { vm: this.#vm, query: { path, ...options } });
  }

  /** All or nothing: it is renamed into place once it has arrived in full. Directories are made as needed. */
  async write(
    path: string,
    content: string | Uint8Array | Readable,
    options: AsUser & { mode?: number; makeParents?: boolean; exclusive?: boolean } = {},
  ): Promise<void> {
    const { makeParents = true, exclusive, ...rest } = options;
    const query = { path, ...rest, make_parents: makeParents || undefined, exclusive: exclusive || undefined };
    const body = await this.#transport.send("PUT", this.#path(), { vm: this.#vm, query, content });
    await body.dump();
  }

  async list(path: string, options: AsUser = {}): Promise<Schemas["DirectoryEntry"][]> {
    const query = { path, ...options };
    const listed = await this.#transport.json<Schemas["DirectoryList"]>("GET", this.#path("/list"), {
      vm: this.#vm,
      query,
    });
    return listed.entries;
  }

  stat(path: string, options: AsUser & { follow?: boolean } = {}): Promise<Schemas["FileStat"]> {
    const query = { path, ...options, follow: options.follow || undefined };
    return this.#transport.json("GET", this.#path("/stat"), { vm: this.#vm, query });
  }

  async exists(path: string, options: AsUser = {}): Promise<boolean> {
    try {
      await this.stat(path, options);
      return true;
    } catch (error) {
      if (!(error instanceof OffshootError && error.code === "not_found")) throw error;
    }
    // The VM and the user could be what was not found.
    await this.stat("/", options);
    return false;
  }

  /** With `parents` (the default), a directory that exists is fine. */
  mkdir(path: string, options: AsUser & { parents?: boolean; mode?: number } = {}): Promise<void> {
    return this.#post("/mkdir", { path, parents: true, ...options });
  }

  remove(path: string, options: AsUser & { recursive?: boolean } = {}): Promise<void> {
    return this.#post("/remove", { path, ...options });
  }

  rename(from: string, to: string, options: AsUser = {}): Promise<void> {
    return this.#post("/rename", { from, to, ...options });
  }

  /** A link at `path` to `target`. */
  symlink(path: string, target: string, options: AsUser = {}): Promise<void> {
    return this.#post("/symlink", { path, target, ...options });
  }

  chmod(path: string, mode: number, options: AsUser = {}): Promise<void> {
    return this.#post("/chmod", { path, mode, ...options });
  }

  async #post(verb: string, body: unknown): Promise<void> {
    await this.#transport.json("POST", this.#path(verb), { vm: this.#vm, body });
  }
}
