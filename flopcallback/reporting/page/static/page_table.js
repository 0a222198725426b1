/** The table of modules. */
page.drawTable = (rows) => {
  const { byId, make } = page;
  const { data, count, modules, names, paths, depths, plain } = rows;
  const column = Object.fromEntries(data.columns.map((each) => [each.key, each]));

  /** What stands in a row's cell: its text, the exact one, the bar's length in percent or null, and the share it shows. */
  function cellOf(each, row) {
    if (!each) return { text: "", exact: "", bar: null, share: "" };
    const [text, exact = "", bar = null, share = ""] = each.cells[each.of[row]];
    return { text, exact: exact || text, bar, share };
  }
  const searched = paths.map((path, row) =>
    `${path} ${cellOf(column.type, row).text} ${data.notes[row] || ""}`.toLowerCase());

  // ---- What is shown: all of it follows from this ----
  const AT_ONCE = 250, MORE = 1000;
  const state = {
    open: new Set(data.open), unfolded: new Set(), view: "tree", words: [], limit: AT_ONCE, focus: 0, detail: -1,
    sort: data.sort && { key: data.sort, down: true },
  };
  let found = null; // With a search: { rows, above: rows that contain them, open }.
  let shown = []; // Rows in the order in which they stand.

  function search(text) {
    state.words = text.toLowerCase().split(/\s+/).filter(Boolean);
    state.limit = AT_ONCE;
    if (!state.words.length) { found = null; return; }
    found = { rows: new Set(), above: new Set(), open: new Set() };
    for (let row = 0; row < modules; row++) {
      if (!state.words.every((word) => searched[row].includes(word))) continue;
      found.rows.add(row);
      for (let up = row; up; ) {
        up = rows.parents[up];
        if (found.above.has(up)) break;
        found.above.add(up);
        found.open.add(up);
      }
    }
  }

  /** A search looks at modules one by one. */
  const inside = (row) => (found ? plain[row] : rows.inside(row, state.unfolded));

  function sorted(list) {
    if (!state.sort) return list;
    const { key, down } = state.sort;
    const { of, unsortable } = key === "module" ? orderOfNames() : column[key];
    return list.slice().sort((one, other) => {
      const blanks = (of[one] < unsortable) - (of[other] < unsortable);
      return blanks || (down ? of[other] - of[one] : of[one] - of[other]) || one - other;
    });
  }

  let nameOrder = null; // Of many names it takes a while, so it waits for the first click.

  function orderOfNames() {
    if (nameOrder) return nameOrder;
    const collator = new Intl.Collator("en", { numeric: true });
    const ordered = Array.from({ length: count }, (_, row) => row).sort((a, b) => collator.compare(paths[a], paths[b]));
    const of = new Array(count);
    ordered.forEach((row, place) => { of[row] = place; });
    nameOrder = { of, unsortable: 0 };
    return nameOrder;
  }

  const openSet = () => (found ? found.open : state.open);

  function rowsToShow() {
    if (state.view !== "tree") return sorted(flatRows());
    const list = [], open = openSet();
    const stack = found && !found.rows.size ? [] : [[0, false]];
    while (stack.length) {
      const [row, isInside] = stack.pop();
      const isMatch = !found || isInside || found.rows.has(row);
      if (!isMatch && !found.above.has(row)) continue;
      list.push(row);
      if (!open.has(row)) continue;
      const below = sorted(inside(row));
      for (let at = below.length - 1; at >= 0; at--) stack.push([below[at], found !== null && isMatch]);
    }
    return list;
  }

  /** Modules one by one: all of them, or what has nothing inside, and what modules do themselves. */
  function flatRows() {
    const list = [], wantsAll = state.view === "all";
    const stack = [0];
    while (stack.length) {
      const row = stack.pop();
      const isShown = wantsAll ? row < modules : !plain[row].length;
      if (isShown && (!found || found.rows.has(row))) list.push(row);
      for (let at = plain[row].length - 1; at >= 0; at--) stack.push(plain[row][at]);
    }
    return list;
  }

  // ---- Drawing ----
  const body = byId("body"), heads = byId("heads"), more = byId("more");

  function drawHeads() {
    const all = [{ key: "module", heading: "module", tip: "", rank: 0, isText: true }, ...data.columns];
    heads.replaceChildren(...all.map((each) => {
      const head = make("th", `r${each.rank} w-${each.key} ${each.key === "module" ? "module" : each.isText ? "text" : ""}`);
      head.setAttribute("aria-sort", state.sort?.key !== each.key ? "none" : state.sort.down ? "descending" : "ascending");
      head.scope = "col";
      const button = make("button", "", each.heading);
      button.type = "button";
      button.title = each.tip;
      button.dataset.key = each.key;
      head.append(button);
      return head;
    }));
  }

  /** The text with the words that were searched for marked. */
  function marked(text) {
    const lower = text.toLowerCase(), fragment = document.createDocumentFragment();
    let at = 0;
    while (lower.length === text.length && state.words.length) { // Where lower case is longer, places would not agree.
      const hits = state.words.map((word) => [lower.indexOf(word, at), word.length]).filter(([place]) => place >= 0);
      if (!hits.length) break;
      const [place, length] = hits.reduce((one, other) => (other[0] < one[0] ? other : one));
      fragment.append(text.slice(at, place), make("mark", "", text.slice(place, place + length)));
      at = place + length;
    }
    fragment.append(text.slice(at));
    return fragment;
  }

  /** A button that shows the modules of a fold one by one, or as one again. */
  function foldButton(fold, isFolded) {
    const button = make("button", "fold", isFolded ? `× ${rows.counts[fold].toLocaleString("en")}` : "fold");
    button.type = "button";
    button.tabIndex = -1; // The key x does the same.
    button.dataset.fold = fold;
    button.title = isFolded ? `Show all ${rows.members(fold).length} one by one (x)` : "Show them as one (x)";
    return button;
  }

  /** The fold that a row stands for or, as its first module, can be put back into. */
  function foldAt(row) {
    if (rows.isFold(row)) return row;
    const fold = rows.foldOf.get(row);
    return fold !== undefined && !found && state.unfolded.has(fold) && rows.members(fold)[0] === row ? fold : undefined;
  }

  function toggleFold(fold) {
    if (!state.unfolded.delete(fold)) state.unfolded.add(fold);
    state.focus = state.unfolded.has(fold) ? rows.members(fold)[0] : fold;
    draw();
  }

  function nameCell(row, isTree) {
    const cell = make("td", rows.isOwn(row) ? "module own" : "module");
    cell.title = paths[row];
    const twist = make("span", "twist", isTree && inside(row).length ? "▸" : "");
    twist.setAttribute("aria-hidden", "true");
    const short = rows.prefix && paths[row].startsWith(rows.prefix) ? paths[row].slice(rows.prefix.length) : paths[row];
    cell.append(twist, marked(isTree ? names[row] : found ? paths[row] : short));
    const fold = isTree ? foldAt(row) : undefined;
    if (fold !== undefined) cell.append(foldButton(fold, fold === row));
    else if (row in rows.counts) cell.append(make("span", "badge", `× ${rows.counts[row].toLocaleString("en")}`));
    if (data.notes[row]) cell.append(make("span", "badge", data.notes[row]));
    return cell;
  }

  function valueCell(each, row) {
    const { text, exact, bar, share } = cellOf(each, row);
    const cell = make("td", `r${each.rank} ${each.isText ? "text" : ""}`, bar === null ? text : undefined);
    cell.title = exact;
    if (bar === null) {
      if (each.key === "rate" && text && each.of[row] < each.unsortable) cell.classList.add("warning");
      return cell;
    }
    if (!bar) {
      cell.append(make("span", "cell zero", text)); // A bar of nothing would only be ink.
      return cell;
    }
    const line = make("span", "cell"), track = make("span", "track"), fill = make("i", each.bar);
    line.append(make("span", "", text), make("small", "", share));
    fill.style.width = `${bar}%`;
    track.append(fill);
    cell.append(line, track);
    return cell;
  }

  function drawRow(row) {
    const isTree = state.view === "tree";
    const line = make("tr", row === state.detail ? "opened" : "");
    line.dataset.row = row;
    line.tabIndex = row === state.focus ? 0 : -1;
    line.setAttribute("aria-level", isTree ? depths[row] + 1 : 1);
    if (isTree && inside(row).length) line.setAttribute("aria-expanded", openSet().has(row));
    if (found && !found.rows.has(row)) line.classList.add("path-only");
    line.style.setProperty("--level", isTree ? depths[row] : 0);
    line.append(nameCell(row, isTree), ...data.columns.map((each) => valueCell(each, row)));
    return line;
  }

  /** A cell that spans more than these would add columns to the table. */
  const columnsInSight = () => [...heads.children].filter((head) => head.offsetWidth).length || 1;

  function drawDetail(row) {
    const line = make("tr", "detail"), cell = make("td"), list = make("dl");
    cell.colSpan = columnsInSight();
    for (const each of data.columns) {
      const { exact } = cellOf(each, row);
      // What is no module has no parameters either.
      if (!exact || (rows.isOwn(row) && /^0($| )/.test(exact))) continue;
      const pair = make("div");
      pair.append(make("dt", "", each.heading), make("dd", "", exact));
      list.append(pair);
    }
    cell.append(make("p", "path", paths[row]), list);
    line.append(cell);
    return line;
  }

  function draw() {
    const hadFocus = body.contains(document.activeElement);
    shown = rowsToShow();
    const lines = shown.slice(0, state.limit);
    if (!lines.includes(state.focus)) state.focus = lines.length ? lines[0] : 0;
    body.replaceChildren(...lines.flatMap((row) => (row === state.detail ? [drawRow(row), drawDetail(row)] : [drawRow(row)])));
    if (hadFocus) lineOf(state.focus)?.focus();
    const left = shown.length - lines.length;
    more.hidden = left <= 0;
    more.textContent = `Show ${Math.min(MORE, left).toLocaleString("en")} of ${left.toLocaleString("en")} more`;
    const matches = found ? `${found.rows.size.toLocaleString("en")} of ` : "";
    const isCut = rows.prefix && state.view !== "tree" && !found;
    const prefix = isCut ? ` All names begin with ${rows.prefix.slice(0, -1)}.` : "";
    byId("found").textContent = `${matches}${modules.toLocaleString("en")} modules. A click shows exact figures.${prefix}`;
  }

  const lineOf = (row) => body.querySelector(`tr[data-row="${row}"]`);

  // ---- What the reader does ----
  function toggle(row) {
    const open = openSet();
    if (!open.delete(row)) open.add(row);
    draw();
  }

  function toggleDetail(row) {
    state.detail = state.detail === row ? -1 : row;
    draw();
  }

  /** Shows a row wherever it is: its parents opened, the search cleared. */
  function reveal(row) {
    byId("search").value = "";
    search("");
    setView("tree");
    for (let up = row; up; ) {
      if (rows.foldOf.has(up)) state.unfolded.add(rows.foldOf.get(up));
      up = rows.parents[up];
      state.open.add(up);
    }
    state.detail = state.focus = row;
    const place = rowsToShow().indexOf(row);
    state.limit = Math.max(AT_ONCE, place + 50);
    draw();
    lineOf(row).scrollIntoView({ block: "center" });
    lineOf(row).focus({ preventScroll: true });
  }

  function setView(view) {
    state.view = view;
    state.limit = AT_ONCE;
    for (const button of document.querySelectorAll("[data-view]")) {
      button.setAttribute("aria-pressed", button.dataset.view === view);
    }
    byId("open-all").hidden = byId("close-all").hidden = view !== "tree";
  }

  heads.addEventListener("click", (event) => {
    const key = event.target.closest("button")?.dataset.key;
    if (!key) return;
    const downFirst = key !== "module" && !column[key].isText;
    const again = state.sort?.key === key;
    // The third click brings the model's own order back.
    state.sort = !again ? { key, down: downFirst } : state.sort.down === downFirst ? { key, down: !downFirst } : null;
    drawHeads();
    draw();
    heads.querySelector(`[data-key="${key}"]`).focus();
  });

  body.addEventListener("click", (event) => {
    const line = event.target.closest("tr[data-row]");
    if (!line || String(getSelection())) return;
    const row = Number(line.dataset.row), fold = event.target.closest(".fold")?.dataset.fold;
    if (fold !== undefined) { toggleFold(Number(fold)); return; }
    state.focus = row;
    const isParent = line.hasAttribute("aria-expanded");
    if (isParent && event.target.closest(".module")) toggle(row); else toggleDetail(row);
  });

  /** The row that contains one, as a fold where it stands as one. */
  function shownAbove(row) {
    const above = rows.parents[row];
    return shown.includes(above) ? above : rows.foldOf.get(above) ?? above;
  }

  const keys = {
    ArrowDown: (row, at) => shown[Math.min(at + 1, Math.min(shown.length, state.limit) - 1)],
    ArrowUp: (row, at) => shown[Math.max(at - 1, 0)],
    Home: () => shown[0],
    End: () => shown[Math.min(shown.length, state.limit) - 1],
    ArrowRight: (row) => {
      if (state.view !== "tree" || !inside(row).length) return row;
      if (openSet().has(row)) return shown[shown.indexOf(row) + 1] ?? row;
      toggle(row);
      return row;
    },
    ArrowLeft: (row) => {
      if (state.view !== "tree") return row;
      if (!openSet().has(row) || !inside(row).length) return shownAbove(row);
      toggle(row);
      return row;
    },
    Enter: (row) => { toggleDetail(row); return row; },
    " ": (row) => { toggleDetail(row); return row; },
    x: (row) => {
      const fold = foldAt(row);
      if (fold !== undefined) toggleFold(fold);
      return state.focus;
    },
  };
  body.addEventListener("keydown", (event) => {
    const line = event.target.closest("tr[data-row]");
    if (!line || !keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const row = Number(line.dataset.row);
    const next = keys[event.key](row, shown.indexOf(row));
    line.tabIndex = -1;
    const before = lineOf(state.focus);
    if (before) before.tabIndex = -1;
    state.focus = next;
    const after = lineOf(next);
    if (after) { after.tabIndex = 0; after.focus(); }
  });

  byId("search").addEventListener("input", (event) => { search(event.target.value); draw(); });
  for (const button of document.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => { setView(button.dataset.view); draw(); });
  }
  byId("open-all").addEventListener("click", () => {
    for (let row = 0; row < count; row++) if (plain[row].length) openSet().add(row);
    draw();
  });
  byId("close-all").addEventListener("click", () => { openSet().clear(); openSet().add(0); draw(); });
  more.addEventListener("click", () => { state.limit += MORE; draw(); });

  // Sentences elsewhere on the page lead to the row that they are about.
  for (const button of document.querySelectorAll(":is(.slow, .advice) [data-row]")) {
    button.addEventListener("click", () => reveal(Number(button.dataset.row)));
  }

  addEventListener("resize", () => {
    for (const cell of body.querySelectorAll(".detail > td")) cell.colSpan = columnsInSight();
  });

  drawHeads();
  setView("tree");
  draw();
  byId("tools").hidden = false;

  return {
    reveal,
    nameOf: (row) => paths[row],
    /** What a row's cell says in full; empty where there is nothing to say. */
    exact: (key, row) => cellOf(column[key], row).exact,
  };
};
