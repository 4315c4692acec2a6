/** The close-code table: what each code is called, and whether to connect again (the server has the same table). */
export type Reconnect = "yes" | "no" | "token" | "after";
/** @typedef {"yes" | "no" | "token" | "after"} Reconnect `token`: with a new token; `after`: when the server said */
/** @type {Readonly<Record<number, {code: number, name: string, reconnect: Reconnect}>>} */
export declare const CLOSE_CODES: Readonly<Record<number, {
    code: number;
    name: string;
    reconnect: Reconnect;
}>>;
