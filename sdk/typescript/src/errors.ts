import type { components } from "./openapi.js";

export type ErrorBody = components["schemas"]["ErrorBody"];

/** A request that failed. `code` is stable (see docs/errors), `requestId` finds the request in the daemon's log. */
export class OffshootError extends Error {
  override name = "OffshootError";
  readonly code: string;
  readonly reason: string | undefined;
  readonly hint: string | undefined;
  readonly requestId: string | undefined;
  /** The same request may succeed later without anyone changing it. */
  readonly retryable: boolean;

  constructor(message: string, more: Partial<ErrorBody> = {}, options?: ErrorOptions) {
    super(more.hint ? `${message}; hint: ${more.hint}` : message, options);
    this.code = more.code ?? "internal";
    this.reason = more.cause ?? undefined;
    this.hint = more.hint ?? undefined;
    this.requestId = more.request_id;
    this.retryable = more.retryable ?? false;
  }

  /** The error that an answer without success describes. */
  static of(text: string, status: number): OffshootError {
    try {
      const body = JSON.parse(text) as Partial<ErrorBody>;
      if (body !== null && typeof body === "object" && typeof body.message === "string") {
        return new OffshootError(body.message, body);
      }
    } catch {
      // What is not ours is told by its status.
    }
    return new OffshootError(`the daemon answered with status ${status}`);
  }
}
