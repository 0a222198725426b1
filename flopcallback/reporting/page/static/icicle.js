/**
 * The icicle: a block is a module, as wide as its share, above what is inside it. A click or Enter zooms in; arrow keys
 * go from block to block, Escape goes back.
 */
page.drawIcicle = (rows, data, table) => {
  const { byId, make } = page;
  const frame = byId("icicle");
  if (!frame || !data) return;
  const crumbs = byId("crumbs"), tell = byId("tell");
  const LEAST_PX = 3, GROUP_PX = 110, DRAWN_PX = 0.6, LABEL_PX = 30, PART_PX = 46, DEEPEST = 12;
  const state = { scope: "", of: "", path: [], unfolded: new Set(), active: 0 };
  let blocks = [];

  // ---- Shares ----
  const shares = {};
  /** By row, a figure's share of the whole; what contains others has what they have. */
  function sharesOf(key) {
    if (shares[key] || !data.figures[key]) return shares[key];
    const all = data.figures[key].shares.slice();
    for (let row = all.length - 1; row > 0; row--) if (!rows.isFold(row)) all[rows.parents[row]] += all[row];
    return (shares[key] = all.map((part) => part / data.whole));
  }

  const figure = (of) => data.figures[`${state.scope} ${of}`];
  const partOf = (node, of) => {
    const all = sharesOf(`${state.scope} ${of}`);
    return all ? node.rows.reduce((sum, row) => sum + all[row], 0) : null;
  };

  /** FLOP/s of a node over those that colours are relative to; null where a time or a reference is unknown. */
  function relativeRate(node) {
    const flops = figure("flops"), time = figure("time");
    if (!flops?.total || !time?.total || !data.scale) return null;
    const ms = partOf(node, "time") * time.total;
    return ms > 0 ? ((partOf(node, "flops") * flops.total) / ms) * 1e3 / data.scale.reference : null;
  }

  function colourOf(node) {
    if (node.rows.length === 1 && node.rows[0] in data.waiting) return data.waiting[node.rows[0]];
    if (!figure("time") || !data.scale) return "plain";
    const rate = relativeRate(node);
    if (!rate) return "none";
    if (data.isPeak && rate > 1) return "above";
    return `q${data.scale.limits.filter((limit) => rate >= limit).length}`;
  }

  // ---- Nodes: a row, or a few that are too small to stand alone ----
  const nodeOf = (row) => ({ rows: [row], row, name: rows.names[row], count: rows.counts[row] ?? 0 });

  function groupOf(nodes) {
    const name = `${nodes[0].name} and ${(nodes.length - 1).toLocaleString("en")} more`;
    return { rows: nodes.flatMap((node) => node.rows), row: null, nodes, name, count: 0 };
  }

  function inside(node) {
    return node.nodes ?? rows.inside(node.row, state.unfolded).map(nodeOf);
  }

  /** What is drawn inside a node that is so wide: neighbours too small to see are one block. */
  function parts(node, width) {
    const drawn = [], whole = partOf(node, state.of);
    let small = [], smallWidth = 0;
    const end = () => {
      if (small.length) drawn.push(small.length === 1 ? small[0] : groupOf(small));
      small = [];
      smallWidth = 0;
    };
    for (const child of inside(node)) {
      const part = partOf(child, state.of);
      if (!part) continue;
      const px = (width * part) / whole;
      if (px >= LEAST_PX) { end(); drawn.push(child); continue; }
      small.push(child);
      smallWidth += px;
      if (smallWidth >= GROUP_PX) end();
    }
    end();
    // A block of all that is inside would say nothing: zooming in gives them room.
    return drawn.length === 1 && drawn[0].nodes ? [] : drawn;
  }

  // ---- Drawing ----
  /** What alone fills a node stands in its place, with both names. */
  function innermostOf(node, width) {
    const [only, ...others] = node.row ? parts(node, width) : [];
    if (!only || others.length || only.row === null || rows.isOwn(only.row)) return node;
    const isWhole = partOf(only, state.of) >= 0.9999 * partOf(node, state.of);
    return isWhole ? innermostOf({ ...only, name: `${node.name}.${only.name}` }, width) : node;
  }

  function place(outer, left, width, level, above) {
    const node = level ? innermostOf(outer, width) : outer;
    const at = blocks.push({ node, left, width, level, above }) - 1;
    if (level >= DEEPEST) return;
    const whole = partOf(node, state.of);
    for (const child of parts(node, width)) {
      const own = (width * partOf(child, state.of)) / whole;
      if (own >= DRAWN_PX) place(child, left, own, level + 1, at);
      left += own;
    }
  }

  const percent = (part) => (part > 0 && part < 0.0005 ? "<0.1 %" : `${(100 * part).toFixed(1)} %`);

  function si(value, unit) {
    const prefixes = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"];
    let power = 0;
    while (value >= 999.5 && power < prefixes.length - 1) { value /= 1000; power++; }
    return `${value >= 99.95 ? value.toFixed(0) : value.toPrecision(3)} ${prefixes[power]}${unit}`;
  }

  const milliseconds = (ms) => `${ms >= 99.95 ? Math.round(ms).toLocaleString("en") : ms.toPrecision(3)} ms`;

  function rateText(node) {
    const rate = relativeRate(node);
    if (!rate) return "";
    const value = si(rate * data.scale.reference, "FLOP/s");
    if (data.isPeak) return rate > 1 ? `${value}, above the peak: not believable` : `${value}, ${percent(rate)} of the peak`;
    return `${value}, ${rate >= 9.95 ? rate.toFixed(0) : rate.toPrecision(2)} times the median`;
  }

  const nameOf = (node) => (node.row === null ? node.name : node.row === 0 ? rows.names[0] : rows.paths[node.row]);

  /** All that is known of a block, in words. */
  function described(node) {
    const of = state.scope === "step" ? "the step's" : "the forward's", texts = [];
    if (node.count) texts.push(`${node.count.toLocaleString("en")} modules`);
    const type = node.row === null ? "" : table.exact("type", node.row);
    if (type && type !== "operator" && type !== node.name) texts.push(type);
    for (const name of ["time", "flops"]) {
      const all = figure(name);
      if (!all) continue;
      const part = partOf(node, name), word = name === "time" ? "time" : "FLOPs";
      const amount = all.total === null ? "" : name === "time" ? `, ${milliseconds(part * all.total)}` : `, ${si(part * all.total, "FLOPs")}`;
      texts.push(part || name === "time" ? `${percent(part)} of ${of} ${word}${part ? amount : ""}` : "no FLOPs");
    }
    const rate = rateText(node);
    if (rate) texts.push(rate);
    return texts.join(" · ");
  }

  function drawBlock(block, at, width) {
    const { node, left, level } = block;
    const element = make("div", `block ${colourOf(node)}${block.width < LABEL_PX ? " narrow" : ""}`);
    element.style.left = `${(100 * left) / width}%`;
    element.style.width = `${(100 * block.width) / width}%`;
    element.style.setProperty("--level", level);
    element.tabIndex = at === state.active ? 0 : -1;
    element.dataset.at = at;
    element.dataset.name = nameOf(node);
    if (node.row !== null) element.dataset.row = node.row;
    element.setAttribute("role", "treeitem");
    element.setAttribute("aria-level", level + 1);
    element.setAttribute("aria-label", `${nameOf(node)}: ${described(node)}`);
    if (block.width >= LABEL_PX) {
      element.append(make("span", "label", node.count ? `${node.name} × ${node.count.toLocaleString("en")}` : node.name));
      if (block.width >= PART_PX) element.append(make("span", "part", percent(partOf(node, state.of))));
    }
    return element;
  }

  function tellOf(node) {
    tell.replaceChildren(make("b", "", nameOf(node)), ` ${described(node)}`);
  }

  function drawCrumbs() {
    const trail = [{ node: nodeOf(0) }, ...state.path.map((node) => ({ node }))];
    const list = trail.map(({ node }, at) => {
      const button = make("button", "", at ? node.name : rows.names[0]);
      button.type = "button";
      button.disabled = at === trail.length - 1;
      button.addEventListener("click", () => zoomTo(state.path.slice(0, at)));
      return button;
    });
    const top = trail[trail.length - 1].node;
    const fold = top.row !== null && rows.isFold(top.row) ? top.row : null;
    const more = [];
    if (fold !== null) {
      more.push(action(`Show all ${rows.members(fold).length}`, () => {
        state.unfolded.add(fold);
        const all = rows.members(fold).map(nodeOf);
        zoomTo([...state.path.slice(0, -1), { ...groupOf(all), name: rows.names[fold] }]);
      }));
    }
    if (top.row) more.push(action("Show in the table", () => table.reveal(top.row)));
    if (state.unfolded.size) more.push(action("Fold again", () => { state.unfolded.clear(); zoomTo([]); }));
    crumbs.replaceChildren(...list, ...more);
    crumbs.hidden = !state.path.length && !state.unfolded.size;
  }

  function action(text, act) {
    const button = make("button", "action", text);
    button.type = "button";
    button.addEventListener("click", act);
    return button;
  }

  function draw() {
    const top = state.path[state.path.length - 1] ?? nodeOf(0), width = frame.clientWidth || 1000;
    const hadFocus = frame.contains(document.activeElement);
    blocks = [];
    if (partOf(top, state.of)) place(top, 0, width, 0, -1);
    state.active = Math.min(state.active, Math.max(0, blocks.length - 1));
    frame.replaceChildren(...blocks.map((block, at) => drawBlock(block, at, width)));
    if (hadFocus) frame.children[state.active]?.focus();
    frame.style.setProperty("--levels", 1 + Math.max(0, ...blocks.map((block) => block.level)));
    byId("icicle-empty").hidden = blocks.length > 0;
    for (const button of document.querySelectorAll("[data-scope], [data-of]")) {
      const { scope = state.scope, of = state.of } = button.dataset;
      button.setAttribute("aria-pressed", scope === state.scope && of === state.of);
      button.disabled = !data.figures[`${scope} ${of}`];
    }
    drawCrumbs();
    tell.replaceChildren(make("b", "", nameOf(top)), ` ${described(top)}${state.path.length ? "" : ". Click a block to zoom in, Escape goes back."}`);
  }

  // ---- What the reader does ----
  function zoomTo(path) {
    state.path = path;
    state.active = 0;
    draw();
  }

  /** Zooms into a block; the path is that of all blocks above it. */
  function zoomInto(at) {
    const steps = [];
    for (let each = at; each > 0; each = blocks[each].above) steps.unshift(blocks[each].node);
    if (!steps.length) { zoomTo(state.path.slice(0, -1)); return; }
    if (inside(steps[steps.length - 1]).length) zoomTo([...state.path, ...steps]);
    else if (steps[steps.length - 1].row) table.reveal(steps[steps.length - 1].row);
  }

  function focusOn(at) {
    if (at === undefined || at < 0) return;
    frame.children[state.active]?.setAttribute("tabindex", "-1");
    state.active = at;
    frame.children[at].tabIndex = 0;
    frame.children[at].focus();
  }

  const level = () => blocks.map((_, at) => at).filter((at) => blocks[at].level === blocks[state.active].level);
  const keys = {
    ArrowRight: () => focusOn(level()[level().indexOf(state.active) + 1]),
    ArrowLeft: () => focusOn(level()[level().indexOf(state.active) - 1]),
    ArrowUp: () => focusOn(blocks[state.active].above),
    ArrowDown: () => focusOn(blocks.findIndex((block) => block.above === state.active)),
    Home: () => focusOn(0),
    Enter: () => zoomInto(state.active),
    " ": () => zoomInto(state.active),
    Escape: () => zoomTo(state.path.slice(0, -1)),
  };
  const blockAt = (event) => event.target.closest(".block");
  frame.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  frame.addEventListener("click", (event) => { if (blockAt(event)) zoomInto(Number(blockAt(event).dataset.at)); });
  for (const kind of ["pointerover", "focusin"]) {
    frame.addEventListener(kind, (event) => { if (blockAt(event)) tellOf(blocks[blockAt(event).dataset.at].node); });
  }
  frame.addEventListener("focusin", (event) => { if (blockAt(event)) state.active = Number(blockAt(event).dataset.at); });
  for (const button of document.querySelectorAll("[data-scope], [data-of]")) {
    button.addEventListener("click", () => { Object.assign(state, button.dataset); draw(); });
  }
  let drawnWidth = 0; // Zooming changes the height alone.
  new ResizeObserver(() => {
    if (!frame.clientWidth || frame.clientWidth === drawnWidth) return;
    drawnWidth = frame.clientWidth;
    draw();
  }).observe(frame);

  // What says most comes first: the time of a step.
  const first = ["step time", "forward time", "step flops", "forward flops"].find((key) => data.figures[key]);
  [state.scope, state.of] = first.split(" ");
  byId("icicle-tools").hidden = false;
  draw();
};
