/** A WebSocket that can be cut, to see what a lost connection does to a page. */

/** @type {Set<WebSocket>} */
const open = new Set();
let until = -Infinity;

export class CuttableSocket extends WebSocket {
  /**
   * @param {string | URL} url
   * @param {string | string[]} [protocols]
   */
  constructor(url, protocols) {
    // @ts-expect-error: instead of a socket, something that fails like one
    if (performance.now() < until) return new Unreachable();
    super(url, protocols);
    open.add(this);
    this.addEventListener("close", () => open.delete(this));
  }

  /**
   * @override
   * @param {string} data
   */
  send(data) {
    // One that is closing would drop it as well, and the browser would complain each time.
    if (this.readyState === WebSocket.OPEN) super.send(data);
  }
}

/** As much of a WebSocket as the client needs to see it fail. */
class Unreachable {
  /** @type {((event: { code: number, reason: string }) => void) | null} */
  onclose = null;

  constructor() {
    setTimeout(() => this.onclose?.({ code: 1006, reason: "" }));
  }

  close() {}
}

/**
 * Cut this page's connection; what is on the way is lost, and new ones fail until `seconds` have passed.
 * @param {number} seconds
 */
export function cut(seconds) {
  until = performance.now() + seconds * 1000;
  // Not 1000, with which one leaves for good: presence waits for who was cut off.
  for (const socket of open) socket.close(4999, "cut");
  // As the browser does when a network is back: the client doesn't wait out its backoff.
  setTimeout(() => dispatchEvent(new Event("online")), seconds * 1000);
}
