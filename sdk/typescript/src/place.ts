/** Where the daemon is, and how it is started: the rules of the command line. */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { accessSync, constants, mkdirSync, realpathSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import { OffshootError } from "./errors.js";

/** A longer runtime directory leaves no room for the names of sockets below it. */
const MAX_RUNTIME_DIR = 64;

export interface ClientOptions {
  /** Of a daemon that listens for TCP; `$OFFSHOOT_URL`. */
  url?: string;
  /** `$OFFSHOOT_API_KEY`. */
  apiKey?: string;
  /** Of a daemon on this host; `$OFFSHOOT_HOME`, by default `~/.local/share/offshoot`. */
  stateDir?: string;
  /** Start the daemon of this host if none runs, with `offshoot` from `$OFFSHOOT_BIN` or PATH; true by default. */
  autostart?: boolean;
}

export interface Place {
  url: string;
  socketPath?: string;
  headers: Record<string, string>;
  /** Starts the daemon; absent where that is not ours to do. */
  start?: () => Promise<void>;
}

export function find(options: ClientOptions): Place {
  const url = options.url ?? (options.stateDir ? undefined : process.env["OFFSHOOT_URL"]);
  if (url) {
    const key = options.apiKey ?? process.env["OFFSHOOT_API_KEY"];
    return { url: url.replace(/\/+$/, ""), headers: key ? { authorization: `Bearer ${key}` } : {} };
  }
  const stateDir = prepared(options.stateDir || process.env["OFFSHOOT_HOME"] || defaultStateDir());
  const place: Place = { url: "http://offshoot", socketPath: socketOf(stateDir), headers: {} };
  const program = options.autostart === false ? undefined : findProgram();
  if (program) place.start = () => start(program, stateDir);
  return place;
}

function defaultStateDir(): string {
  return join(homedir(), ".local", "share", "offshoot");
}

/** The API socket of the daemon that serves `stateDir`, a directory under its one name; see ARCHITECTURE.md, "Storage". */
export function socketOf(stateDir: string): string {
  const leaf = createHash("sha256").update(stateDir).digest("hex").slice(0, 8);
  const xdg = process.env["XDG_RUNTIME_DIR"];
  if (xdg?.startsWith("/")) {
    const directory = join(xdg, "offshoot", leaf);
    if (Buffer.byteLength(directory) <= MAX_RUNTIME_DIR) return join(directory, "offshoot.sock");
  }
  const uid = process.getuid?.() ?? 0;
  return join(uid === 0 ? "/run/offshoot" : `/tmp/offshoot-${uid}`, leaf, "offshoot.sock");
}

/** The state directory, made and canonical, so that its socket has one name. */
function prepared(stateDir: string): string {
  try {
    mkdirSync(stateDir, { recursive: true, mode: 0o700 });
    return realpathSync(stateDir);
  } catch (cause) {
    const hint = "give another place with `stateDir` or OFFSHOOT_HOME";
    const more = { code: "invalid_argument", hint } as const;
    throw new OffshootError(`the state directory \`${stateDir}\` cannot be made`, more, { cause });
  }
}

function findProgram(): string | undefined {
  if (process.env["OFFSHOOT_BIN"]) return process.env["OFFSHOOT_BIN"];
  const places = (process.env["PATH"] ?? "").split(delimiter).filter(Boolean);
  return places.map((place) => join(place, "offshoot")).find(executable);
}

function executable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** It leaves by itself when there is nothing left to do. */
async function start(program: string, stateDir: string): Promise<void> {
  try {
    await promisify(execFile)(program, ["--state-dir", stateDir, "list", "--json"]);
  } catch (error) {
    throw new OffshootError("the daemon could not be started", { code: "unavailable" }, { cause: error });
  }
}
