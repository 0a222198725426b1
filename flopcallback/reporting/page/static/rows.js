/**
 * The data of the page. What is long is packed, for a page of 5,000 modules to stay below a megabyte.
 */
page.read = async (id) => {
  const element = page.byId(id);
  if (!element.dataset.packed) return JSON.parse(element.textContent);
  const bytes = Uint8Array.from(atob(element.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
};

/** The rows as a tree: modules in their order, then folds of identical ones and what modules do themselves. */
page.rowsOf = (data) => {
  const { names, parents, modules, counts, runs } = data;
  const count = names.length, paths = [names[0]], depths = [0];
  const isFold = (row) => row in runs;
  /** Neither a module nor several. */
  const isOwn = (row) => row >= modules && !(row in counts);
  const plain = Array.from({ length: count }, () => []), folds = Array.from({ length: count }, () => []);
  const foldOf = new Map();
  for (let row = 1; row < count; row++) {
    const parent = parents[row]; // Always an earlier row.
    (isFold(row) ? folds : plain)[parent].push(row);
    const above = parent ? paths[parent] : "";
    paths.push(above ? `${above}${isOwn(row) ? ": " : "."}${names[row]}` : names[row]);
    depths.push(depths[parent] + 1);
  }
  /** The modules of a fold. */
  const members = (fold) => plain[parents[fold]].slice(runs[fold][0], runs[fold][0] + runs[fold][1]);
  for (let row = modules; row < count; row++) {
    if (isFold(row)) for (const member of members(row)) foldOf.set(member, row);
  }

  /** What is inside a row, with each fold that is not in `unfolded` as one. */
  function inside(row, unfolded) {
    if (!folds[row].length) return plain[row];
    const all = [];
    for (const child of plain[row]) {
      const fold = foldOf.get(child);
      if (fold === undefined || unfolded.has(fold)) all.push(child);
      else if (members(fold)[0] === child) all.push(fold);
    }
    return all;
  }

  /** What all names begin with, which tells none from another. */
  function commonPrefix() {
    let row = 0;
    for (;;) {
      const below = plain[row].filter((child) => child < modules);
      if (below.length !== 1 || !plain[below[0]].length) break;
      row = below[0];
    }
    return row ? `${paths[row]}.` : "";
  }

  return { data, count, modules, names, parents, counts, paths, depths, plain, inside, members, isFold, isOwn, foldOf, prefix: commonPrefix() };
};
