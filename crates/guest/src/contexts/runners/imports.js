// `import` in code that runs as in a console, where the engine knows no modules: `import(...)` and import declarations are
// rewritten to calls of what is made here. Names are found as from a module in the context's directory, and, as `require`
// finds them, in the directories of the installation. Code that cannot be parsed is left to the engine, which says why.
const offshootImports = (() => {
  'use strict';
  const Module = require('module'), path = require('path');
  const { pathToFileURL } = require('url');
  const KEY = Symbol.for('offshoot.import'), CALL = "globalThis[Symbol.for('offshoot.import')]";
  const internal = require;
  // For this file alone, and not for those that the code starts.
  process.execArgv = process.execArgv.filter((word) => word !== '--expose-internals');

  // A function whose `import` names are relative to the directory of now.
  let directory, load, resolve;
  const settle = () => {
    const now = process.cwd();
    if (now === directory) return;
    const filename = path.join(now, '[context].cjs'), module_ = new Module(filename);
    module_.filename = filename;
    module_.paths = Module._nodeModulePaths(now);
    module_._compile('module.exports = (name, options) => import(name, options);', filename);
    [directory, load, resolve] = [now, module_.exports, Module.createRequire(filename).resolve];
  };

  const dynamic = async (name, options) => {
    settle();
    const find = resolve;
    try {
      return await load(name, options);
    } catch (error) {
      if (error?.code !== 'ERR_MODULE_NOT_FOUND' || /^(\.{0,2}\/|[a-z][a-z0-9+.-]+:)/i.test(String(name))) throw error;
      let found;
      try { found = find(String(name)); } catch { throw error; }
      return load(pathToFileURL(found).href, options);
    }
  };
  // What a declaration names has to be there.
  const declared = async (name, wanted) => {
    const all = await dynamic(name);
    for (const one of wanted) {
      if (!(one in all)) throw new SyntaxError(`The requested module '${name}' does not provide an export named '${one}'`);
    }
    return all;
  };
  Object.defineProperty(globalThis, KEY, { value: Object.assign(dynamic, { declared }) });

  const declaration = ({ source, specifiers }) => {
    const name = JSON.stringify(source.value);
    const said = (node) => JSON.stringify(node.name ?? node.value);
    const [wanted, bound, whole] = [[], [], []];
    for (const { type, imported, local } of specifiers) {
      if (type === 'ImportNamespaceSpecifier') {
        whole.push(local.name);
        continue;
      }
      const from = type === 'ImportDefaultSpecifier' ? '"default"' : said(imported);
      wanted.push(from);
      bound.push(`${from}: ${local.name}`);
    }
    const loaded = `await ${CALL}.declared(${name}, [${wanted.join()}])`;
    if (specifiers.length === 0) return `${loaded};`;
    if (wanted.length === 0) return `const ${whole[0]} = ${loaded};`;
    // The module itself, not a copy of it.
    if (whole.length > 0) return `const ${whole[0]} = ${loaded}, { ${bound.join(', ')} } = ${whole[0]};`;
    return `const { ${bound.join(', ')} } = ${loaded};`;
  };

  return (code) => {
    if (!/\bimport\b/.test(code)) return code;
    let program;
    try {
      const { parse } = internal('internal/deps/acorn/acorn/dist/acorn');
      program = parse(code, {
        ecmaVersion: 'latest', sourceType: 'script', allowAwaitOutsideFunction: true, allowImportExportEverywhere: true,
        allowHashBang: true,
      });
    } catch {
      return code;
    }
    const edits = [], first = [];
    for (const node of program.body) {
      if (node.type !== 'ImportDeclaration') continue;
      // They come before everything else; lines stay where they are, and statements apart.
      first.push(declaration(node));
      edits.push([node.start, node.end, `;${code.slice(node.start + 1, node.end).replace(/[^\r\n\u2028\u2029]/g, ' ')}`]);
    }
    const nodes = [program];
    for (let node = nodes.pop(); node !== undefined; node = nodes.pop()) {
      if (node.type === 'ImportExpression') edits.push([node.start, node.start + 'import'.length, CALL]);
      for (const part of Object.values(node)) {
        for (const one of Array.isArray(part) ? part : [part]) if (typeof one?.type === 'string') nodes.push(one);
      }
    }
    edits.sort(([a], [b]) => a - b);
    let made = first.join(' '), at = 0;
    for (const [start, end, text] of edits) {
      made += code.slice(at, start) + text;
      at = end;
    }
    return made + code.slice(at);
  };
})();
