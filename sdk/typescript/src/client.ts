import { randomBytes } from "node:crypto";
import type { components } from "./openapi.js";
import { type ClientOptions, find } from "./place.js";
import { Transport } from "./transport.js";
import { Vm, fork } from "./vm.js";

type Schemas = components["schemas"];

export type CreateOptions = Partial<Schemas["CreateVm"]>;

/** A daemon: that of this host's state directory, or one behind a URL. */
export class Client implements AsyncDisposable {
  readonly #transport: Transport;

  constructor(options: ClientOptions = {}) {
    this.#transport = new Transport(find(options));
  }

  /** Closes the connections; VMs live on. */
  close(): Promise<void> {
    return this.#transport.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** A new VM, running unless `start: false`. Without a name it gets a random one. */
  async create(options: CreateOptions = {}): Promise<Vm> {
    const body = { name: `ts-${randomBytes(4).toString("hex")}`, start: true, ...options };
    const { vm } = await this.#transport.json<Schemas["Changed"]>("POST", "/v1/vms", { body });
    return new Vm(this.#transport, vm!.id, vm!.name);
  }

  /** A VM that is there, by name or id. */
  async vm(name: string): Promise<Vm> {
    const shown = await this.#transport.json<Schemas["Vm"]>("GET", `/v1/vms/${encodeURIComponent(name)}`);
    return new Vm(this.#transport, shown.id, shown.name);
  }

  async vms(): Promise<Schemas["Vm"][]> {
    return (await this.#transport.json<Schemas["VmList"]>("GET", "/v1/vms")).vms;
  }

  /** New VMs that continue from a VM, a snapshot's id, or `VM@NAME`. */
  fork(source: string, count = 1, options: { name?: string } = {}): Promise<Vm[]> {
    return fork(this.#transport, source, count, options.name);
  }

  async snapshots(): Promise<Schemas["Snapshot"][]> {
    return (await this.#transport.json<Schemas["SnapshotList"]>("GET", "/v1/snapshots")).snapshots;
  }

  /** The ids of what was removed. With `prune` it is merged into what depends on it, else that is refused. */
  async removeSnapshot(snapshot: string, options: { prune?: boolean } = {}): Promise<string[]> {
    const path = `/v1/snapshots/${encodeURIComponent(snapshot)}`;
    const query = { prune: options.prune || undefined };
    return (await this.#transport.json<Schemas["SnapshotsRemoved"]>("DELETE", path, { query })).removed;
  }

  /** What differs between two states, each a VM or a snapshot; without `since`, from the state before `to`. */
  diff(to: string, since?: string, kinds?: Schemas["DiffKind"][]): Promise<Schemas["Diff"]> {
    return this.#transport.json("POST", "/v1/diff", { body: { to, from: since, kinds } });
  }

  async images(): Promise<Schemas["Image"][]> {
    return (await this.#transport.json<Schemas["ImageList"]>("GET", "/v1/images")).images;
  }

  daemon(): Promise<Schemas["Daemon"]> {
    return this.#transport.json("GET", "/v1/daemon");
  }

  /** Every event with a greater id, then those to come, for ever. */
  async *events(after = 0): AsyncGenerator<Schemas["Event"]> {
    for (;;) {
      const query = { after, wait_ms: 30_000 };
      const page = await this.#transport.json<Schemas["EventPage"]>("GET", "/v1/events", { query });
      yield* page.events;
      after = page.next_after;
    }
  }
}
