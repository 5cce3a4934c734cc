/** Micro-VMs for AI agents: run, snapshot, fork, roll back. */
export { Client, type CreateOptions } from "./client.js";
export { type ErrorBody, OffshootError } from "./errors.js";
export { Files } from "./files.js";
export type { components } from "./openapi.js";
export type { ClientOptions } from "./place.js";
export { ExecResult, type ExitStatus, Process, ProcessFailed, type StreamName } from "./process.js";
export {
  type CodeResult,
  type Command,
  type ExecOptions,
  type RaceResult,
  type Racer,
  Transaction,
  type TryResult,
  Vm,
} from "./vm.js";
