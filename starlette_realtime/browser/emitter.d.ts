/** Listeners by event name; one that throws is reported and harms nobody else. */
export type Listener = (...args: any[]) => unknown;
/** @typedef {(...args: any[]) => unknown} Listener */
export declare class Emitter {
    #private;
    /**
     * @param {string} event
     * @param {Listener} listener
     * @returns {() => void} takes the listener off again
     */
    on(event: string, listener: Listener): () => void;
}
