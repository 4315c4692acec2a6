// Reads a list of {where, source, folder, files} from stdin, compiles each source as a module and links its imports; writes
// a line for each that is wrong. `/<anywhere>/<name>.js` is the kit's own module where there is one, `./…` another file of the page.
import { existsSync, readFileSync } from "node:fs";
import { basename, join, posix } from "node:path";
import { SourceTextModule, SyntheticModule } from "node:vm";

const KIT = process.argv[2];
const NAMED = /import\s+(?:(\w+)\s*,?\s*)?(?:\{([^}]*)\})?\s*from\s*["']([^"']+)["']/g;

/** A library that is none of ours: it has whatever the module takes from it. */
function library(specifier, source) {
  const exported = new Set();
  for (const [, standard, list, from] of source.matchAll(NAMED)) {
    if (from !== specifier) continue;
    if (standard) exported.add("default");
    for (const each of (list ?? "").split(",")) if (each.trim()) exported.add(each.trim().split(/\s+as\s+/)[0]);
  }
  return new SyntheticModule([...exported], () => {});
}

async function check({ where, source, folder, files }) {
  const made = new Map();
  const compile = (identifier, text) => {
    if (!made.has(identifier)) made.set(identifier, new SourceTextModule(text, { identifier }));
    return made.get(identifier);
  };
  const link = (specifier, { identifier }) => {
    const kit = join(KIT, basename(specifier));
    if (identifier.startsWith(KIT) || (specifier.startsWith("/") && existsSync(kit))) return compile(kit, readFileSync(kit, "utf8"));
    const path = posix.join(folder, specifier);
    if (specifier.startsWith("./") && files[path] !== undefined) return compile(path, files[path]);
    if (/^[./]/.test(specifier)) throw new Error(`there is no ${specifier} on this page, nor in the browser client`);
    return library(specifier, files[identifier] ?? source);
  };
  try {
    await compile(where, source).link(link);
  } catch (error) {
    return `${where}: ${error.message}`;
  }
}

const list = JSON.parse(readFileSync(0, "utf8"));
for (const report of await Promise.all(list.map(check))) if (report) console.log(report);
