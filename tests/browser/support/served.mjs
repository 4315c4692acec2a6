/** Preloaded by `node --import`: the client is what a server would serve, which the folder SERVED holds. */

import { existsSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { registerHooks } from "node:module";

registerHooks({
  load(url, context, next) {
    if (!url.includes("/starlette_realtime/browser/")) return next(url, context);
    const path = join(process.env.SERVED, basename(url));
    if (!existsSync(path)) throw new Error(`${basename(url)} isn't served: import client.js`);
    return { format: "module", shortCircuit: true, source: readFileSync(path, "utf8") };
  },
});
