/** Errors: the one the app catches, and where errors of the app's own listeners go. */
/** What went wrong, by `code`: the server's word, or one of ours in `MESSAGES`. */
export declare class RealtimeError extends Error {
    code: string;
    retryAfter: number | undefined;
    fields: Record<string, string> | undefined;
    /**
     * @param {string} code
     * @param {string} [message]
     * @param {number} [retryAfter] seconds
     * @param {Record<string, string>} [fields] field of the payload → what is wrong with it
     */
    constructor(code: string, message?: string, retryAfter?: number, fields?: Record<string, string>);
}
/** @param {unknown} error a listener's: it must be seen, and must not break what called the listener */
export declare function report(error: unknown): void;
