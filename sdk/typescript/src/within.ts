/** Which transaction of which VM the calling code is in: kept per asynchronous call chain. */
import { AsyncLocalStorage } from "node:async_hooks";

const open = new AsyncLocalStorage<ReadonlyMap<string, string>>();

export function within<T>(vm: string, transaction: string, work: () => Promise<T>): Promise<T> {
  return open.run(new Map([...(open.getStore() ?? []), [vm, transaction]]), work);
}

export function transactionHeader(vm: string | undefined): Record<string, string> {
  const transaction = vm === undefined ? undefined : open.getStore()?.get(vm);
  return transaction ? { "offshoot-transaction": transaction } : {};
}
